from __future__ import annotations

import numpy as np
import pytest

from nni_spaceevo.errors import DeviceError
from nni_spaceevo.hyperspace import Hyperspace
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.latency.sampling import random_network

pytest.importorskip("ai_edge_litert", reason="the extra [litert] is not installed")

from nni_spaceevo.latency.devices.litert import LiteRTDevice, interpreter_of

DEVICE = LiteRTDevice()


def test_larger_kernels_take_longer():
    small, large = (
        DEVICE.kernel(RuntimeKernel("conv", hw, 32, 32, 3), 1).least_us(3, 10) for hw in (4, 56)
    )
    assert 0 < 5 * small < large


def test_networks_run_and_cost_more_than_a_call(digits: Hyperspace):
    network = random_network(digits, np.random.default_rng(0))
    timed = DEVICE.network(network.blocks, network.code.resolution)
    assert timed.least_us(3, 10) > DEVICE.idle(1).least_us(3, 10)


def test_hard_swish_runs_on_its_own_and_relu_is_free():
    lowering = DEVICE.lowering()
    assert lowering.operators["hswish"] == ("HARD_SWISH:int8",)
    assert "hswish" in lowering.own_kernel["conv1x1"]
    assert lowering.free["dwconv"] == ("relu", "relu6")


def test_the_machine_names_its_runtime():
    machine = DEVICE.machine()
    assert machine.runtime.startswith("ai-edge-litert ")
    assert machine.threads == 1


def test_a_damaged_model_is_a_device_error():
    with pytest.raises(DeviceError, match="model: LiteRT cannot read it"):
        interpreter_of(b"not a flatbuffer at all")
