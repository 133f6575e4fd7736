"""The subnet writer, and the lowering, held against what ONNX Runtime makes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from nni_spaceevo.hyperspace import BLOCK_TYPES, BlockConfig, chain_kernels
from nni_spaceevo.latency.devices import get_device
from nni_spaceevo.latency.graph import convolution_count, subnet_model

STEM = BlockConfig("conv", 3, 16, 3, None, 2, "relu")
HEAD = (
    BlockConfig("conv", 24, 32, 1, None, 1, "hswish"),
    BlockConfig("pool_conv", 32, 48, 1, None, 1, "hswish"),
    BlockConfig("linear", 48, 10),
)
DETECTED = get_device("ort-x86-int8").lowering()
BODIES = [name for name in BLOCK_TYPES if name not in ("conv", "pool_conv", "linear")]
ACTIVATIONS = ("relu", "relu6", "swish", "hswish")


def network(kind: str, activation: str) -> tuple[BlockConfig, ...]:
    """Stem, two blocks (with and without a convolution on the shortcut), head."""
    expand = 2.0 if BLOCK_TYPES[kind].expands else None
    first = BlockConfig(kind, 16, 24, 5, expand, 2, activation)
    second = BlockConfig(kind, 24, 24, 3, expand, 1, activation)
    return (STEM, first, second, *HEAD)


def optimized(model: onnx.ModelProto, folder: Path) -> tuple[onnx.GraphProto, np.ndarray]:
    """ORT's own optimised graph, and the output for zeros."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    shape = session.get_inputs()[0].shape
    (output,) = session.run(None, {"input": np.zeros(shape, np.float32)})
    return onnx.load(options.optimized_model_filepath).graph, output


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", BODIES)
def test_lowering_is_what_the_runtime_runs(kind, activation, tmp_path):
    blocks = network(kind, activation)
    model = subnet_model(blocks, 32, np.random.default_rng(0))
    onnx.checker.check_model(model, full_check=True)
    graph, output = optimized(model, tmp_path)
    expected = DETECTED.runtime_ops(chain_kernels(blocks, 32))
    # The network's constant: into uint8, out of it, and the layout's way in and out.
    expected.update({"QuantizeLinear": 1, "DequantizeLinear": 1, "Transpose": 1})
    assert Counter(node.op_type for node in graph.node) == expected
    assert output.shape == (1, 10)
    assert np.isfinite(output).all()


@pytest.mark.parametrize("kind", BODIES)
def test_all_convolutions_run_in_int8_on_nhwc(kind, tmp_path):
    graph, _ = optimized(
        subnet_model(network(kind, "relu"), 32, np.random.default_rng(0)), tmp_path
    )
    convolutions = [n for n in graph.node if "Conv" in n.op_type]
    assert len(convolutions) == convolution_count(network(kind, "relu"), 32)
    for node in convolutions:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert node.op_type == "QLinearConv"
        assert attributes["channels_last"] == 1


@pytest.mark.parametrize("kind", BODIES)
def test_one_convolution_node_per_kernel_with_its_shape(kind):
    blocks = network(kind, "relu")
    model = subnet_model(blocks, 32, np.random.default_rng(0))
    weights = {w.name: tuple(w.dims) for w in model.graph.initializer}
    source = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    written = Counter(weights[source[n.input[1]]] for n in model.graph.node if n.op_type == "Conv")
    expected = Counter(
        (c.cout, 1 if c.op == "dwconv" else c.cin, c.kernel_size, c.kernel_size)
        for k in chain_kernels(blocks, 32)
        for c in k.convolutions()
    )
    assert written == expected


def test_weights_come_from_the_generator_alone():
    blocks = network("resnet", "relu")
    first, second = (
        subnet_model(blocks, 24, np.random.default_rng(5)).SerializeToString() for _ in range(2)
    )
    assert first == second
    assert subnet_model(blocks, 24, np.random.default_rng(6)).SerializeToString() != first


def test_odd_sizes_keep_their_rounding(tmp_path):
    blocks = (STEM, BlockConfig("resnet", 16, 24, 3, 1.0, 2, "relu"))
    _, output = optimized(subnet_model(blocks, 27, np.random.default_rng(0)), tmp_path)
    assert output.shape == (1, 24, 7, 7)
