"""Single runtime kernels as ONNX graphs, in the layout in which ORT runs them after optimisation.

Exporting a kernel with float inputs and outputs, as nn-Meter does, would add the transposes and
(de)quantization that a network does not have around it: up to 4 times the kernel's own time.
Short kernels run as parallel copies in one graph, so that the call's cost is shared.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .lowering import RuntimeKernel

_MICROSOFT = "com.microsoft"
_OPSETS = (("", 17), (_MICROSOFT, 1))
MAX_COPIES = 16
# Copies are added until a run takes about this long, by a rough guess of the kernel's time.
_LONG_ENOUGH_US = 60


def copies_of(kernel: RuntimeKernel) -> int:
    """Number of parallel copies that make a run long enough to time; 1 to `MAX_COPIES`."""
    pixels, depth = (-(-kernel.hw // kernel.stride)) ** 2, kernel.kernel_size**2
    macs = pixels * kernel.cout * depth * (1 if kernel.type == "dwconv" else kernel.cin)
    elements = kernel.hw**2 * kernel.cin
    if kernel.type in ("conv", "conv1x1", "dwconv", "linear"):
        guess_us = 2 + macs / (5e3 if kernel.type == "dwconv" else 1e5) + elements / 2e4
    else:
        guess_us = 2 + elements / 2e3
    return int(np.clip(np.ceil(_LONG_ENOUGH_US / guess_us), 1, MAX_COPIES))


def kernel_model(kernel: RuntimeKernel, copies: int) -> onnx.ModelProto:
    """`copies` parallel copies of a kernel: uint8 NHWC inputs "x" (and "y" of sums), batch 1.

    Parameters
    ----------
    kernel : what to run
    copies : number of copies, each with its own output
    """
    writer = _Writer(kernel)
    outputs = [writer.copy(f"_{i}") for i in range(copies)]
    return writer.model(outputs)


def idle_model(copies: int) -> onnx.ModelProto:
    """A graph that does nothing and has `copies` outputs: the cost of the call itself."""
    writer = _Writer(RuntimeKernel("idle", 1, 1, 1))
    return writer.model([writer.node("Identity", ["x"], f"_{i}") for i in range(copies)])


class _Writer:
    """Collects nodes and weights; every method appends and returns the name of its result."""

    def __init__(self, kernel: RuntimeKernel) -> None:
        self.kernel = kernel
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.scale = self.constant("scale", np.float32(6 / 255))
        self.zero = self.constant("zero", np.uint8(0))
        self.quant = [self.scale, self.zero]

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        """An initializer, shared by the copies."""
        self.weights[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(self, op: str, inputs: list[str], suffix: str, **attributes: object) -> str:
        """Append one node; quantized operators are com.microsoft's."""
        name = f"{op}{len(self.nodes)}{suffix}"
        domain = _MICROSOFT if op.startswith("QLinear") or op == "QGemm" else ""
        node = helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes)
        self.nodes.append(node)
        return name

    def model(self, outputs: list[str]) -> onnx.ModelProto:
        """The finished model."""
        k = self.kernel
        shape = [1, k.cin] if k.type == "linear" else [1, k.hw, k.hw, k.cin]
        names = ["x", "y"] if k.type == "add" else ["x"]
        inputs = [helper.make_tensor_value_info(n, TensorProto.UINT8, shape) for n in names]
        results = [helper.make_tensor_value_info(n, TensorProto.UINT8, None) for n in outputs]
        graph = helper.make_graph(
            self.nodes, "kernel", inputs, results, list(self.weights.values())
        )
        opsets = [helper.make_opsetid(*opset) for opset in _OPSETS]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    # ---- kernels ------------------------------------------------------------------------------

    def copy(self, suffix: str) -> str:
        """One copy of the kernel."""
        k, quant = self.kernel, self.quant
        match k.type:
            case "conv1x1" | "conv" | "dwconv":
                groups = k.cin if k.type == "dwconv" else 1
                return self.convolution("x", "", k.cin, k.cout, suffix, groups)
            case "add":
                return self.node("QLinearAdd", ["x", *quant, "y", *quant, *quant], suffix)
            case "swish":
                gate = self.node("QLinearSigmoid", ["x", *quant, *quant], suffix)
                return self.product("x", gate, suffix)
            case "hswish":
                value = self.node("DequantizeLinear", ["x", *quant], suffix)
                gate = self.hard_sigmoid(value, suffix)
                value = self.node("Mul", [value, gate], suffix)
                return self.node("QuantizeLinear", [value, *quant], suffix)
            case "hsigmoid":
                return self.quantized_hard_sigmoid("x", suffix)
            case "pool":
                return self.pool(suffix)
            case "se":
                return self.squeeze_excite(suffix)
            case "linear":
                weights = self.parameters("", (k.cout, k.cin))
                inputs = ["x", *quant, *weights, *quant]
                return self.node("QGemm", inputs, suffix, transA=0, transB=1, alpha=1.0)
        raise AssertionError(f"no graph for kernel type {k.type!r}")

    def parameters(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """Weights with their scales and zero points per channel, and the bias."""
        cout = shape[0]
        weight = self.rng.integers(-127, 128, shape).astype(np.int8)
        return [
            self.constant(f"weight{name}", weight),
            self.constant(f"weight_scale{name}", np.full(cout, 1e-3, np.float32)),
            self.constant(f"weight_zero{name}", np.zeros(cout, np.int8)),
            self.constant(f"bias{name}", np.zeros(cout, np.int32)),
        ]

    def convolution(
        self, value: str, name: str, cin: int, cout: int, suffix: str, groups: int = 1
    ) -> str:
        """QLinearConv on NHWC with the kernel's size and stride."""
        k = self.kernel.kernel_size
        *weights, bias = self.parameters(name, (cout, cin // groups, k, k))
        return self.node(
            "QLinearConv",
            [value, *self.quant, *weights, *self.quant, bias],
            suffix,
            channels_last=1,
            kernel_shape=[k, k],
            strides=[self.kernel.stride] * 2,
            pads=[k // 2] * 4,
            group=groups,
        )

    def hard_sigmoid(self, value: str, suffix: str) -> str:
        """relu6(x + 3) / 6 in float."""
        return self.node("HardSigmoid", [value], suffix, alpha=1 / 6, beta=0.5)

    def quantized_hard_sigmoid(self, value: str, suffix: str) -> str:
        """Hard sigmoid with its way into float and back."""
        value = self.node("DequantizeLinear", [value, *self.quant], suffix)
        return self.node("QuantizeLinear", [self.hard_sigmoid(value, suffix), *self.quant], suffix)

    def product(self, a: str, b: str, suffix: str) -> str:
        """Quantized product."""
        return self.node("QLinearMul", [a, *self.quant, b, *self.quant, *self.quant], suffix)

    def pool(self, suffix: str) -> str:
        """Global average pool."""
        inputs = ["x", *self.quant, *self.quant]
        return self.node("QLinearGlobalAveragePool", inputs, suffix, channels_last=1)

    def squeeze_excite(self, suffix: str) -> str:
        """Pool, two 1x1 convolutions, hard sigmoid in float, product."""
        k = self.kernel
        gate = self.convolution(self.pool(suffix), "_reduce", k.cin, k.squeezed, suffix)
        gate = self.convolution(gate, "_expand", k.squeezed, k.cin, suffix)
        return self.product("x", self.quantized_hard_sigmoid(gate, suffix), suffix)
