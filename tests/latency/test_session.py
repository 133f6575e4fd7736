from __future__ import annotations

import os

import pytest

from nni_spaceevo.errors import DeviceError
from nni_spaceevo.latency.kernel_graph import kernel_model
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.latency.session import TimedSession, one_core, onnxruntime_machine


def test_larger_kernels_take_longer():
    small, large = (
        TimedSession(kernel_model(RuntimeKernel("conv", hw, 32, 32, 3), 1), False).least_us(3, 10)
        for hw in (4, 56)
    )
    assert 0 < 5 * small < large


def test_a_model_that_the_runtime_refuses_is_a_device_error():
    model = kernel_model(RuntimeKernel("conv1x1", 4, 8, 8), 1)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(DeviceError, match="ONNX Runtime refuses"):
        TimedSession(model, optimize=False)


def test_pinning_ends_with_the_block_even_on_errors():
    allowed = os.sched_getaffinity(0)
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    with pytest.raises(ZeroDivisionError), one_core():
        assert len(os.sched_getaffinity(0)) == 1
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == allowed
    assert os.getpriority(os.PRIO_PROCESS, 0) == priority


def test_the_machine_names_its_runtime_and_options():
    machine = onnxruntime_machine()
    assert machine.runtime.startswith("onnxruntime ")
    assert machine.network_options["graph_optimization_level"] == "ORT_ENABLE_ALL"
    assert machine.threads == 1
