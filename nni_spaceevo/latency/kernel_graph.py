"""Single kernels as ONNX graphs: inside a small network, and alone.

A runtime optimises a kernel by what is around it (layouts, fusions, quantization), so a kernel
exported alone with float inputs and outputs, as nn-Meter does it, takes up to 4 times its own time.
`context_model` puts it between convolutions, for runtimes whose optimised graph can be read;
`kernel_model` gives it uint8 NHWC inputs and outputs, which most INT8 runtimes use inside, and
parallel copies, so that a call's cost is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto

from ..errors import PredictorError
from ..hyperspace import ConvStep, LinearStep, SqueezeExciteStep
from .graph import RANGES, SIGNED, GraphWriter, Precision
from .lowering import ACTIVATED, ACTIVATIONS, PLAIN, SUM, RuntimeKernel

MAX_COPIES = 16
# Copies are added until a run takes about this long, by a rough guess of the kernel's time.
_LONG_ENOUGH_US = 60
# Output channels of the convolution after the kernel: few, but a whole vector.
_CONSUMER_WIDTH = 16
# A kernel on an image (a stem) has no convolution before it in a network either.
_IMAGE_CHANNELS = 4


def copies_of(kernel: RuntimeKernel) -> int:
    """Number of parallel copies that make a run long enough to time; 1 to `MAX_COPIES`."""
    pixels, depth = kernel.hw_out**2, kernel.kernel_size**2
    macs = pixels * kernel.cout * depth * (1 if kernel.type == "dwconv" else kernel.cin)
    elements = kernel.hw**2 * kernel.cin
    if kernel.type in ("conv", "conv1x1", "dwconv", "linear"):
        guess_us = 2 + macs / (5e3 if kernel.type == "dwconv" else 1e5) + elements / 2e4
    else:
        guess_us = 2 + elements / 2e3
    return int(np.clip(np.ceil(_LONG_ENOUGH_US / guess_us), 1, MAX_COPIES))


@dataclass(frozen=True)
class Context:
    """A kernel inside a small network.

    Attributes
    ----------
    model : image, producers, kernel, one consumer
    producers : convolutions before the kernel: 2 if it sums, 0 on an image, else 1
    """

    model: onnx.ModelProto
    producers: int


def context_model(kernel: RuntimeKernel, precision: Precision, present: bool = True) -> Context:
    """A kernel between 1x1 convolutions, float NCHW input and float output, batch 1.

    Parameters
    ----------
    kernel : what to run
    precision : "int8" or "float32"
    present : False leaves the kernel itself out, which shows what the surroundings consist of
    """
    w = GraphWriter(np.random.default_rng(0), precision)
    value = w.quantized("input", SIGNED)
    producers = 2 if kernel.type == "add" else int(kernel.cin >= _IMAGE_CHANNELS)
    values = [value]
    for _ in range(producers):
        values.append(w.convolution(values[-1], ConvStep("before", kernel.cin, kernel.cin)))
    if kernel.activation == SUM:
        # The other summand comes from the same convolution with other weights: whichever of the
        # two the runtime sums in, it is this kernel.
        values.insert(-1, kernel_nodes(w, values[-1:], replace(kernel, activation="none")))
        producers += 1
    sums = kernel.type == "add" or kernel.activation == SUM
    inputs, width = values[-2:] if sums else values[-1:], kernel.cin
    value = inputs[-1]
    if present:
        value, width = kernel_nodes(w, inputs, kernel), kernel.cout
    if kernel.type == "linear":
        consume = w.gemm if present else w.linear
        value = consume(value, LinearStep("after", width, _CONSUMER_WIDTH))
        shape = [1, _CONSUMER_WIDTH]
    else:
        value = w.convolution(value, ConvStep("after", width, _CONSUMER_WIDTH))
        hw = kernel.hw_out if present else kernel.hw
        shape = [1, _CONSUMER_WIDTH, hw, hw]
    return Context(
        w.model({"input": [1, kernel.cin, kernel.hw, kernel.hw]}, {value: shape}), producers
    )


def kernel_model(
    kernel: RuntimeKernel, copies: int, precision: Precision = "int8"
) -> onnx.ModelProto:
    """`copies` parallel copies of a kernel: NHWC inputs "x" (and "y" of sums), batch 1.

    Inputs and outputs are uint8 in INT8, else float; each copy has its own output.

    Parameters
    ----------
    kernel : what to run
    copies : number of copies
    precision : "int8" or "float32"
    """
    w = GraphWriter(np.random.default_rng(0), precision)
    flat = kernel.type == "linear"
    names = ["x", "y"] if kernel.type == "add" else ["x"]
    hw = 1 if flat else kernel.hw
    inputs = [_entry(w, name) for name in names]
    shared = len(w.nodes)
    value = kernel_nodes(w, inputs, kernel)
    value = w.nodes.pop().input[0] if w.int8 else value
    if not flat:
        value = w.node("Transpose", [value], perm=[0, 2, 3, 1])
    w.nodes, copied = w.nodes[:shared], w.nodes[shared:]
    w.nodes += replicated(copied, copies)
    shape = [1, kernel.cout] if flat else [1, *[kernel.hw_out] * 2, kernel.cout]
    outputs = {copy_name(value, i): shape for i in range(copies)}
    element = TensorProto.UINT8 if w.int8 else TensorProto.FLOAT
    return w.model({name: [1, hw, hw, kernel.cin] for name in names}, outputs, element)


def idle_model(copies: int, precision: Precision = "int8") -> onnx.ModelProto:
    """A graph that does nothing and has `copies` outputs: the cost of the call itself."""
    w = GraphWriter(np.random.default_rng(0), precision)
    outputs = {w.node("Identity", ["x"]): [1, 1, 1, 1] for _ in range(copies)}
    element = TensorProto.UINT8 if w.int8 else TensorProto.FLOAT
    return w.model({"x": [1, 1, 1, 1]}, outputs, element)


def copy_name(name: str, number: int) -> str:
    """Name of a tensor in one of the copies."""
    return f"{name}@{number}"


def replicated(nodes: Sequence[onnx.NodeProto], copies: int) -> list[onnx.NodeProto]:
    """Parallel copies of nodes; what they read from outside, such as weights, they share."""
    inner = {name for node in nodes for name in node.output}
    result = []
    for i in range(copies):
        for number, node in enumerate(nodes):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            # Nodes that a runtime has inserted may have no name, or all the same.
            copy.name = copy_name(f"{node.name}_{number}", i)
            copy.input[:] = [copy_name(n, i) if n in inner else n for n in node.input]
            copy.output[:] = [copy_name(n, i) if n else n for n in node.output]
            result.append(copy)
    return result


def _entry(w: GraphWriter, name: str) -> str:
    """An NHWC input as the NCHW tensor that ONNX's operators take."""
    value = w.node("Transpose", [name], perm=[0, 3, 1, 2])
    return w.dequantized(value, SIGNED) if w.int8 else value


def kernel_nodes(w: GraphWriter, inputs: Sequence[str], kernel: RuntimeKernel) -> str:
    """Write one runtime kernel with the activation that is computed within it.

    Raises
    ------
    PredictorError
        A whole block or another kind that has no single kernel.
    """
    k, value = kernel, inputs[0]
    match k.type:
        case "conv1x1" | "conv" | "dwconv":
            if k.activation == SUM:
                value = kernel_nodes(w, inputs[-1:], replace(k, activation="none"))
                return w.activated(w.node("Add", [value, inputs[0]]), "none")
            depthwise = k.type == "dwconv"
            step = ConvStep(
                "kernel", k.cin, k.cout, k.kernel_size, k.stride, depthwise, True, k.activation
            )
            return w.convolution(value, step)
        case "add":
            return w.activated(w.node("Add", list(inputs)), k.activation)
        case "pool":
            return w.quantized(w.node("GlobalAveragePool", [value]), SIGNED)
        case "se":
            if k.activation != "none":
                value = kernel_nodes(w, inputs, RuntimeKernel(k.activation, k.hw, k.cin, k.cin))
            return w.squeeze_excite(value, SqueezeExciteStep("kernel", k.cin, k.squeezed))
        case "linear":
            return w.linear(value, LinearStep("kernel", k.cin, k.cout))
        case activation if activation in ACTIVATIONS:
            return w.quantized(w.activation(value, activation), RANGES.get(activation, SIGNED))
    raise PredictorError(
        f"kernel {k.type!r} cannot be run alone; known: "
        + ", ".join((*ACTIVATED, *PLAIN, *ACTIVATIONS))
    )
