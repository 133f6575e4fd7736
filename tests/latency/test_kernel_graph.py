from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime as ort
import pytest

from nni_spaceevo.latency.kernel_graph import MAX_COPIES, copies_of, idle_model, kernel_model
from nni_spaceevo.latency.lowering import RUNTIME_OPS, RuntimeKernel

KERNELS = [
    RuntimeKernel("conv1x1", 6, 16, 24, 1, 2),
    RuntimeKernel("conv", 7, 3, 16, 3, 2),
    RuntimeKernel("dwconv", 6, 24, 24, 5, 2),
    RuntimeKernel("add", 5, 24, 24),
    RuntimeKernel("swish", 5, 24, 24),
    RuntimeKernel("hswish", 5, 24, 24),
    RuntimeKernel("hsigmoid", 5, 24, 24),
    RuntimeKernel("se", 5, 24, 24, squeezed=8),
    RuntimeKernel("pool", 5, 24, 24),
    RuntimeKernel("linear", 1, 24, 10),
]


def shape_of_output(k: RuntimeKernel) -> tuple[int, ...]:
    if k.type == "linear":
        return (1, k.cout)
    hw = 1 if k.type == "pool" else -(-k.hw // k.stride)
    return (1, hw, hw, k.cout)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.type)
def test_every_kernel_runs_as_the_runtime_would_run_it(kernel):
    model = kernel_model(kernel, 2)
    expected = Counter(RUNTIME_OPS[kernel.type] * 2)
    assert Counter(n.op_type for n in model.graph.node) == expected
    session = ort.InferenceSession(model.SerializeToString())
    inputs = {i.name: np.zeros(i.shape, np.uint8) for i in session.get_inputs()}
    outputs = session.run(None, inputs)
    assert [o.shape for o in outputs] == [shape_of_output(kernel)] * 2
    assert {o.dtype for o in outputs} == {np.dtype(np.uint8)}


def test_all_kernel_types_are_tested():
    assert {k.type for k in KERNELS} == set(RUNTIME_OPS)


def test_short_kernels_get_copies_and_long_ones_do_not():
    assert copies_of(RuntimeKernel("conv1x1", 1, 8, 8)) == MAX_COPIES
    assert copies_of(RuntimeKernel("conv", 56, 128, 128, 3)) == 1


def test_idle_model_has_as_many_outputs_as_copies():
    assert len(idle_model(5).graph.output) == 5
