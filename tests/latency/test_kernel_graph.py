from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from nni_spaceevo.errors import PredictorError
from nni_spaceevo.latency.kernel_graph import (
    MAX_COPIES,
    context_model,
    copies_of,
    idle_model,
    kernel_model,
)
from nni_spaceevo.latency.lowering import ACTIVATED, ACTIVATIONS, PLAIN, RuntimeKernel

KERNELS = [
    RuntimeKernel("conv1x1", 6, 16, 24, 1, 2),
    RuntimeKernel("conv", 7, 3, 16, 3, 2),
    RuntimeKernel("dwconv", 6, 24, 24, 5, 2),
    RuntimeKernel("add", 5, 24, 24),
    RuntimeKernel("conv", 7, 16, 16, 3, activation="hswish"),
    RuntimeKernel("dwconv", 7, 16, 16, 3, activation="relu6"),
    RuntimeKernel("relu", 5, 24, 24),
    RuntimeKernel("relu6", 5, 24, 24),
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


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.unit)
def test_every_kernel_runs_alone(kernel, precision):
    model = kernel_model(kernel, 2, precision)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    kind = np.uint8 if precision == "int8" else np.float32
    inputs = {i.name: np.zeros(i.shape, kind) for i in session.get_inputs()}
    outputs = session.run(None, inputs)
    assert [o.shape for o in outputs] == [shape_of_output(kernel)] * 2
    assert {o.dtype for o in outputs} == {np.dtype(kind)}


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.unit)
def test_every_kernel_runs_between_others(kernel, precision):
    context = context_model(kernel, precision)
    around = context_model(kernel, precision, present=False)
    assert len(context.model.graph.node) > len(around.model.graph.node)
    for model in (context.model, around.model):
        session = ort.InferenceSession(model.SerializeToString())
        (given,) = session.get_inputs()
        (output,) = session.run(None, {"input": np.ones(given.shape, np.float32)})
        assert np.isfinite(output).all()
    assert context.producers == {"add": 2}.get(kernel.type, int(kernel.cin > 3))


def test_all_kernel_types_are_tested():
    assert {k.type for k in KERNELS} == {*ACTIVATED, *PLAIN, *ACTIVATIONS}


def test_a_whole_block_has_no_graph_of_its_own():
    with pytest.raises(PredictorError, match="'block_resnet' cannot be run alone; known: conv1x1"):
        kernel_model(RuntimeKernel("block_resnet", 7, 8, 8, 3), 1)


def test_copies_share_their_weights():
    kernel = RuntimeKernel("conv", 7, 16, 16, 3)
    one, four = kernel_model(kernel, 1).graph, kernel_model(kernel, 4).graph
    assert len(one.initializer) == len(four.initializer)
    assert [len(one.output), len(four.output)] == [1, 4]


def test_short_kernels_get_copies_and_long_ones_do_not():
    assert copies_of(RuntimeKernel("conv1x1", 1, 8, 8)) == MAX_COPIES
    assert copies_of(RuntimeKernel("conv", 56, 128, 128, 3)) == 1


def test_idle_model_has_as_many_outputs_as_copies():
    assert len(idle_model(5).graph.output) == 5
