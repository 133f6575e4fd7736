"""ONNX Runtime as a device: what it makes of kernels, and that networks consist of its cuts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from nni_spaceevo.errors import DeviceError
from nni_spaceevo.hyperspace import (
    BlockChoice,
    BlockConfig,
    BlockOption,
    Hyperspace,
    chain_kernels,
    load_hyperspace,
)
from nni_spaceevo.latency.devices import get_device
from nni_spaceevo.latency.devices.onnx_runtime import (
    OnnxRuntimeDevice,
    TimedSession,
    opened,
    optimized,
)
from nni_spaceevo.latency.graph import subnet_model
from nni_spaceevo.latency.kernel_graph import context_model, idle_model
from nni_spaceevo.latency.lowering import ACTIVATED, Lowering, RuntimeKernel
from nni_spaceevo.latency.machine import cpu_description

INT8, FP32 = OnnxRuntimeDevice("int8"), OnnxRuntimeDevice("float32")
# What brings the image in and the result out.
BOUNDARY = {
    "int8": Counter(QuantizeLinear=1, Transpose=2, DequantizeLinear=1),
    "float32": Counter(ReorderOutput=1),
}
ONNXW = load_hyperspace("onnxw")
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


@pytest.fixture(scope="module")
def lowerings() -> dict[str, Lowering]:
    return {device.precision: device.lowering() for device in (INT8, FP32)}


def chain(option: BlockOption, width: int) -> list[BlockConfig]:
    """A stem and two blocks of a type, the second with stride."""
    expand = option.expand_choices[0] if option.expand_choices else None
    choice = BlockChoice(option.kernel_sizes[0], width, expand)
    stem = BlockConfig("conv", 3, width, 3, 2, activation="relu")
    return [stem, option.config(width, choice, 1), option.config(width, choice, 2)]


def more_than_lowered(lowering: Lowering, precision: str, option: BlockOption, width: int):
    """Operators of a whole optimised network that are in no kernel, and the other way round."""
    blocks = chain(option, width)
    whole = optimized(subnet_model(blocks, 32, np.random.default_rng(0), precision))
    found = Counter(node.op_type for node in whole.graph.node)
    found.subtract(lowering.runtime_ops(chain_kernels(blocks, 32)) + BOUNDARY[precision])
    return {name: count for name, count in found.items() if count}


each_block_type = pytest.mark.parametrize("option", ONNXW.block_types, ids=lambda o: o.type)


# ---- what it makes of kernels --------------------------------------------------------------------


def test_int8_computes_hard_swish_in_float_and_swish_in_two_operators(lowerings):
    lowering = lowerings["int8"]
    assert lowering.in_float("hswish") == ("HardSigmoid:float32", "Mul:float32")
    assert lowering.operators["swish"] == ("QLinearSigmoid:int8", "QLinearMul:int8")
    assert lowering.in_float("conv") == lowering.in_float("add") == ()
    assert not lowering.unaligned


@pytest.mark.parametrize("kind", ACTIVATED)
def test_int8_folds_clipping_into_what_is_before_it(lowerings, kind):
    lowering = lowerings["int8"]
    assert set(lowering.free[kind]) == {"relu", "relu6"}
    assert set(lowering.own_kernel[kind]) == {"swish", "hswish", "hsigmoid"}


def test_float_computes_sums_and_hard_swish_within_the_convolution(lowerings):
    lowering = lowerings["float32"]
    assert lowering.operators["add"] == ()
    assert lowering.operators["conv+hswish"] == lowering.operators["conv"]
    assert lowering.sums_within == ("conv1x1", "conv")
    assert lowerings["int8"].sums_within == ()


@pytest.mark.parametrize("width", [64, 72])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["conv1x1", "conv"])
def test_a_sum_is_cut_together_with_the_convolution_that_computes_it(kind, stride, width):
    size = 3 if kind == "conv" else 1
    kernel = RuntimeKernel(kind, 14, width, width, size, stride, activation="sum")
    nodes = FP32.cut(kernel, 2).graph.node
    assert [n for n in nodes if n.op_type == "Conv" and len(n.input) == 4 and n.input[3]] or (
        width == 72 and [n for n in nodes if n.op_type == "Add"]
    )
    assert Counter(n.op_type for n in nodes)["Conv"] == 2


def test_float_moves_data_where_channels_do_not_fill_vectors(lowerings):
    # 72 channels, which the probe has, fill vectors of 8 floats but not of 16.
    fill = "avx512f" not in cpu_description()[1]
    moved = lowerings["float32"].unaligned.get("pool", ())
    assert ("ReorderOutput:move" in moved) is not fill


# ---- cuts are what networks consist of -----------------------------------------------------------


@each_block_type
@pytest.mark.parametrize("width", [64, 72])
def test_int8_networks_consist_of_kernels_and_a_boundary(lowerings, option, width):
    assert more_than_lowered(lowerings["int8"], "int8", option, width) == {}


@each_block_type
def test_float_networks_consist_of_kernels_and_a_boundary(lowerings, option):
    extra = more_than_lowered(lowerings["float32"], "float32", option, 64)
    # Its first sum has the block's input and the stem's activation on both sides of it: not fused.
    assert extra == ({"Add": 1} if option.type == "mbv1_dual" else {})


@each_block_type
def test_float_networks_of_odd_widths_have_more_moves_only(lowerings, option):
    extra = more_than_lowered(lowerings["float32"], "float32", option, 72)
    allowed = {"ReorderInput", "ReorderOutput"} | ({"Add"} & {*extra})
    assert set(extra) <= allowed


@pytest.mark.parametrize("device", [INT8, FP32], ids=lambda d: d.name)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.type)
def test_a_cut_is_copies_of_the_operators_between_the_neighbours(device, kernel):
    operators = Counter(name.partition(":")[0] for name in device.operators(kernel))
    if not operators:
        with pytest.raises(DeviceError, match=f"nothing is left of kernel {kernel.key}"):
            device.cut(kernel, 3)
        return
    cut = Counter(node.op_type for node in device.cut(kernel, 3).graph.node)
    assert cut == Counter({name: 3 * count for name, count in operators.items()})
    assert device.kernel(kernel, 3).least_us(1, 2) > 0


def test_int8_cuts_read_and_write_integers_channels_last():
    cut = INT8.cut(RuntimeKernel("conv", 14, 16, 24, 3, 2), 1)
    (read,) = cut.graph.input
    shape = [d.dim_value for d in read.type.tensor_type.shape.dim]
    assert (read.type.tensor_type.elem_type, shape) == (onnx.TensorProto.UINT8, [1, 14, 14, 16])


# ---- running -------------------------------------------------------------------------------------


def test_networks_and_idle_models_run(digits: Hyperspace, rng):
    space = digits.random_space(rng)
    stages = digits.subnet_blocks(space, digits.smallest_subnet(space))
    blocks = [block for _, blocks in stages for block in blocks]
    for device in (INT8, FP32):
        idle_us = device.idle(4).least_us(5, 20)
        assert 0 < idle_us < device.network(blocks, 16).least_us(5, 20)


def test_the_machine_names_runtime_and_options():
    machine = get_device("ort-x86-int8").machine()
    assert machine.runtime.startswith("onnxruntime ")
    assert machine.network_options["graph_optimization_level"] == "ORT_ENABLE_ALL"
    assert machine.threads == 1


def test_a_model_that_the_runtime_refuses_is_said():
    model = idle_model(1)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(DeviceError, match=r"subnet: ONNX Runtime cannot read it .*NoSuchOperator"):
        opened(model)


def test_a_model_with_other_inputs_is_refused():
    model = context_model(RuntimeKernel("pool", 5, 24, 24), "int8").model
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(DeviceError):
        TimedSession(opened(model, optimize=False), "pool")


def test_sums_of_products_do_not_saturate_on_any_cpu() -> None:
    # All products at their largest: two of them are beyond 16 bits, in which CPUs without VNNI add.
    pixels, channels = 4, 32
    scale, zero = np.float32(1), np.uint8(0)
    step = np.float32(255 * 127 * channels / 200)
    constants = {
        "scale": scale,
        "zero": zero,
        "weight": np.full((16, channels, 1, 1), 127, np.int8),
        "scales": np.ones(16, np.float32),
        "zeros": np.zeros(16, np.int8),
        "step": step,
    }
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        onnx.helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["w"], axis=0),
        onnx.helper.make_node("Conv", ["x", "w"], ["sum"]),
        onnx.helper.make_node("QuantizeLinear", ["sum", "step", "zero"], ["s"]),
        onnx.helper.make_node("DequantizeLinear", ["s", "step", "zero"], ["output"]),
    ]
    sizes = {"input": [1, channels, pixels, pixels], "output": [1, 16, pixels, pixels]}
    infos = {
        name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size)
        for name, size in sizes.items()
    }
    weights = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = onnx.helper.make_graph(nodes, "sum", [infos["input"]], [infos["output"]], weights)
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    image = np.full(sizes["input"], 255, np.float32)
    (found,) = opened(model).run(None, {"input": image})
    np.testing.assert_array_equal(found, np.full(sizes["output"], 200 * step))
