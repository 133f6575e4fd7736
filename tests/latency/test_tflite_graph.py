"""The TFLite writer held against LiteRT: what it loads, starts and computes."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from nni_spaceevo.errors import DeviceError, PredictorError
from nni_spaceevo.hyperspace import BlockConfig, Kernel, chain_kernels, load_hyperspace
from nni_spaceevo.latency import tflite_graph
from nni_spaceevo.latency.lowering import RuntimeKernel, lowering_of
from nni_spaceevo.latency.tflite_graph import (
    TFLITE_OPERATORS,
    idle_flatbuffer,
    kernel_flatbuffer,
    kernel_operators,
    subnet_flatbuffer,
)

litert = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="TFLite models need the extra [litert]: ai-edge-litert"
)

LOWERING = lowering_of(TFLITE_OPERATORS)
DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "hyperspace.yaml"
OPTIONS = [
    pytest.param(option, id=f"{hyperspace.name}-{option.type}")
    for hyperspace in map(load_hyperspace, ("onnxw", "mobilew", str(DIGITS)))
    for option in hyperspace.block_types
]
KERNELS = [
    *(
        RuntimeKernel(*shape, activation=activation)
        for shape in (
            ("conv1x1", 8, 16, 24),
            ("conv1x1", 8, 16, 24, 1, 2),
            ("conv", 8, 16, 24, 3),
            ("conv", 8, 16, 24, 5, 2),
            ("conv", 7, 16, 24, 3, 2),
            ("conv", 8, 1, 16, 3, 2),
            ("dwconv", 8, 24, 24, 5),
            ("dwconv", 8, 24, 24, 3, 2),
            ("dwconv", 7, 24, 24, 7, 2),
            ("add", 8, 16, 16),
        )
        for activation in ("none", "relu", "relu6")
    ),
    RuntimeKernel("linear", 1, 32, 10),
    RuntimeKernel("pool", 5, 32, 32),
    RuntimeKernel("se", 8, 32, 32, squeezed=8),
    *(RuntimeKernel(activation, 8, 16, 16) for activation in ("swish", "hswish", "hsigmoid")),
]


def loaded(model: bytes) -> litert.Interpreter:
    """LiteRT with the model, run once on random inputs."""
    interpreter = litert.Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    for entry in interpreter.get_input_details():
        assert entry["dtype"] == np.int8
        values = rng.integers(-128, 128, entry["shape"], np.int8)
        interpreter.set_tensor(entry["index"], values)
    interpreter.invoke()
    return interpreter


def outputs(interpreter: litert.Interpreter) -> list[np.ndarray]:
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]


def started(interpreter: litert.Interpreter) -> Counter[str]:
    """Operators of the model by name and type of the result, without XNNPACK's delegates."""
    types = {d["index"]: d["dtype"].__name__ for d in interpreter.get_tensor_details()}
    return Counter(
        f"{op['op_name']}:{types[op['outputs'][0]]}"
        for op in interpreter._get_ops_details()
        if op["op_name"] != "DELEGATE"
    )


def expected(kernels: Sequence[Kernel]) -> Counter[str]:
    """Operators of all runtime kernels of a network."""
    return Counter(
        name
        for kernel in kernels
        for part in LOWERING.lower(kernel)
        for name in kernel_operators(part)
    )


def network(kind: str, activation: str, kernel_size: int, expand: float | None, channels: int = 3):
    """Stem, a strided block with a convolution on its shortcut, one with an identity, head."""
    return (
        BlockConfig("conv", channels, 16, 3, None, 2, "relu"),
        BlockConfig(kind, 16, 24, kernel_size, expand, 2, activation),
        BlockConfig(kind, 24, 24, kernel_size, expand, 1, activation),
        BlockConfig("conv", 24, 32, 1, None, 1, activation),
        BlockConfig("pool_conv", 32, 48, 1, None, 1, activation),
        BlockConfig("linear", 48, 10),
    )


# ---- subnets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("option", OPTIONS)
def test_every_block_of_the_hyperspaces_runs_as_its_kernels_say(option):
    for kernel_size in option.kernel_sizes:
        expand = max(option.expands, default=None)
        blocks = network(option.type, option.activation, kernel_size, expand)
        # 20 pixels shrink to 10 and 5, 28 to 14 and 7, 18 to 9 and 5: even and odd strides.
        for resolution in (20, 18):
            interpreter = loaded(subnet_flatbuffer(blocks, resolution, np.random.default_rng(0)))
            assert started(interpreter) == expected(chain_kernels(blocks, resolution))
            (logits,) = outputs(interpreter)
            assert logits.shape == (1, 10)
            assert logits.dtype == np.int8


def test_everything_is_int8_but_biases_axes_and_paddings():
    blocks = network("mbv3_res", "hswish", 5, 4.0)
    interpreter = loaded(subnet_flatbuffer(blocks, 20, np.random.default_rng(0)))
    for op in interpreter._get_ops_details():
        assert op["op_name"] not in ("QUANTIZE", "DEQUANTIZE")
    types = {d["dtype"] for d in interpreter.get_tensor_details()}
    assert types == {np.int8, np.int32}


def test_weights_have_a_scale_per_output_channel_and_biases_the_product_of_scales():
    interpreter = loaded(kernel_flatbuffer(RuntimeKernel("dwconv", 8, 24, 24, 3), 1))
    entry, weight, bias = parameters_of(interpreter, "DEPTHWISE_CONV_2D")
    assert weight["quantization_parameters"]["quantized_dimension"] == 3
    scales = weight["quantization_parameters"]["scales"]
    assert scales.shape == (24,)
    assert not weight["quantization_parameters"]["zero_points"].any()
    product = scales * entry["quantization_parameters"]["scales"]
    np.testing.assert_allclose(bias["quantization_parameters"]["scales"], product, rtol=1e-6)


def test_images_of_one_channel_enter_by_a_depthwise_convolution():
    blocks = network("resnet", "relu", 3, 1.0, channels=1)
    interpreter = loaded(subnet_flatbuffer(blocks, 16, np.random.default_rng(0)))
    assert started(interpreter) == expected(chain_kernels(blocks, 16))
    assert started(interpreter)["DEPTHWISE_CONV_2D:int8"] == 1


def test_without_a_linear_layer_the_output_is_a_feature_map():
    blocks = network("mbv2_res", "relu6", 3, 3.0)[:3]
    (features,) = outputs(loaded(subnet_flatbuffer(blocks, 20, np.random.default_rng(0))))
    assert features.shape == (1, 5, 5, 24)


def test_weights_come_from_the_generator_alone():
    blocks = network("resnet_se", "relu", 3, 1.0)
    first, second = (subnet_flatbuffer(blocks, 20, np.random.default_rng(5)) for _ in range(2))
    assert first == second
    assert subnet_flatbuffer(blocks, 20, np.random.default_rng(6)) != first


# ---- kernels ----------------------------------------------------------------------------------


def test_every_kind_of_kernel_is_tried():
    assert {kernel.type for kernel in KERNELS} == set(LOWERING.operators)


@pytest.mark.parametrize("copies", [1, 3, 16])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.key.replace("/", "-"))
def test_copies_of_a_kernel_run_side_by_side(kernel, copies):
    interpreter = loaded(kernel_flatbuffer(kernel, copies))
    once = Counter(kernel_operators(kernel))
    assert started(interpreter) == Counter({name: n * copies for name, n in once.items()})
    entries = [tuple(d["shape"]) for d in interpreter.get_input_details()]
    shape = (1, kernel.hw, kernel.hw, kernel.cin)
    assert entries == [shape] * (2 if kernel.type == "add" else 1)
    results = outputs(interpreter)
    assert len({d["index"] for d in interpreter.get_output_details()}) == copies
    flat = kernel.type == "linear"
    wanted = (1, kernel.cout) if flat else (1, kernel.hw_out, kernel.hw_out, kernel.cout)
    assert {result.shape for result in results} == {wanted}
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    assert len(np.unique(results[0])) > 2


def test_copies_share_their_weights():
    kernel = RuntimeKernel("conv", 8, 64, 64, 3)
    one, many = (len(kernel_flatbuffer(kernel, copies)) for copies in (1, 16))
    assert many - one < 64 * 64 * 9


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.key.replace("/", "-"))
def test_a_kernel_is_written_the_same_every_time(kernel):
    assert kernel_flatbuffer(kernel, 2) == kernel_flatbuffer(kernel, 2)


@pytest.mark.parametrize(
    ("hw", "kernel_size", "stride", "padded"),
    [(8, 3, 1, False), (8, 3, 2, True), (7, 3, 2, False), (8, 1, 2, False), (2, 7, 2, True)],
)
def test_a_pad_stands_where_torch_pads_more_than_same_padding(hw, kernel_size, stride, padded):
    kernel = RuntimeKernel("conv", hw, 8, 8, kernel_size, stride)
    assert started(loaded(kernel_flatbuffer(kernel, 1)))["PAD:int8"] == padded


def test_the_idle_model_has_as_many_outputs_as_asked_for():
    for copies in (1, 16):
        results = outputs(loaded(idle_flatbuffer(copies)))
        assert [result.shape for result in results] == [(1, 1, 1, 1)] * copies


# ---- operators --------------------------------------------------------------------------------


def test_operators_are_those_of_the_official_converter():
    """As seen in benchmarks/litert_writer.json."""
    assert LOWERING.operators == {
        "conv1x1": ("CONV_2D:int8",),
        "conv": ("CONV_2D:int8",),
        "dwconv": ("DEPTHWISE_CONV_2D:int8",),
        "add": ("ADD:int8",),
        "pool": ("MEAN:int8",),
        "linear": ("FULLY_CONNECTED:int8",),
        "se": ("MEAN:int8", "CONV_2D:int8", "CONV_2D:int8", "MUL:int8", "MUL:int8"),
        "swish": ("LOGISTIC:int8", "MUL:int8"),
        "hswish": ("HARD_SWISH:int8",),
        "hsigmoid": ("MUL:int8",),
    }
    assert LOWERING.free["conv"] == LOWERING.free["add"] == ("relu", "relu6")
    assert LOWERING.own_kernel["dwconv"] == ("swish", "hswish", "hsigmoid")
    assert LOWERING.own_kernel["add"] == ("swish", "hswish")


@pytest.mark.parametrize(
    ("kernel", "unit"),
    [
        (RuntimeKernel("mbv2_res", 8, 16, 16, 3), "mbv2_res"),
        (RuntimeKernel("conv", 8, 16, 16, 3, activation="swish"), "conv+swish"),
        (RuntimeKernel("pool", 8, 16, 16, activation="relu"), "pool+relu"),
        (RuntimeKernel("add", 8, 16, 16, activation="hsigmoid"), "add+hsigmoid"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_kernel_that_tflite_does_not_have_is_refused(kernel, unit):
    with pytest.raises(PredictorError, match=re.escape(f"kernel '{unit}'")):
        kernel_flatbuffer(kernel, 1)


def test_a_hard_sigmoid_on_a_sum_is_refused():
    blocks = network("resnet", "hsigmoid", 3, 1.0)
    with pytest.raises(PredictorError, match=re.escape("kernel 'add+hsigmoid'")):
        subnet_flatbuffer(blocks, 20, np.random.default_rng(0))


def test_a_missing_runtime_is_named(monkeypatch):
    tflite_graph._schema.cache_clear()
    monkeypatch.setitem(sys.modules, "ai_edge_litert.schema_py_generated", None)
    with pytest.raises(DeviceError, match=re.escape("pip install 'nni_spaceevo[litert]'")):
        idle_flatbuffer(1)


# ---- values -----------------------------------------------------------------------------------


def parameters_of(interpreter: litert.Interpreter, name: str) -> list[dict]:
    """Details of input, weight and bias of the only operator of that name."""
    details = {d["index"]: d for d in interpreter.get_tensor_details()}
    (op,) = [op for op in interpreter._get_ops_details() if op["op_name"] == name]
    return [details[i] for i in op["inputs"]]


def reference(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """Integer convolution in NHWC, `k // 2` pixels of zeros around; weight (cout, k, k, cin)."""
    k = weight.shape[1]
    padded = np.pad(x.astype(np.int64), ((0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    return np.einsum("nhwcij,oijc->nhwo", windows, weight.astype(np.int64)) + bias


@pytest.mark.parametrize("activation", ["none", "relu6"])
@pytest.mark.parametrize(("hw", "stride"), [(8, 1), (8, 2), (7, 2)])
@pytest.mark.parametrize("kind", ["conv", "dwconv"])
def test_a_convolution_computes_what_the_integers_say(kind, hw, stride, activation):
    cout = 8 if kind == "dwconv" else 12
    kernel = RuntimeKernel(kind, hw, 8, cout, 3, stride, activation=activation)
    interpreter = loaded(kernel_flatbuffer(kernel, 1))
    name = "DEPTHWISE_CONV_2D" if kind == "dwconv" else "CONV_2D"
    _, weight, bias = parameters_of(interpreter, name)
    weights, biases = (interpreter.get_tensor(d["index"]) for d in (weight, bias))
    if kind == "dwconv":  # As a dense convolution: zeros off the diagonal.
        weights = weights[0].transpose(2, 0, 1)[..., None] * np.eye(8, dtype=int)[:, None, None]
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    sums = reference(interpreter.get_tensor(entry["index"]), weights, biases, stride)
    scale, zero = result["quantization"]
    real = sums * bias["quantization_parameters"]["scales"]
    wanted = np.clip(np.round(real / scale) + zero, -128, 127)
    np.testing.assert_allclose(interpreter.get_tensor(result["index"]), wanted, atol=1)
