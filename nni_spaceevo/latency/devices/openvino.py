"""OpenVINO on this machine's CPU in INT8: one thread, one stream, tensors set beforehand.

Inside a network OpenVINO keeps uint8 tensors channels last, writes a sum from within a convolution,
and computes swish and its like in one generated "Subgraph". It saves no optimised graph that could
be cut and run as it stands, so a kernel is given surroundings in which it runs as in a network:

* Convolutions and linear layers read uint8 NHWC inputs that are dequantized first and transposed
  then. The other way round, as in `kernel_graph.kernel_model`, OpenVINO computes them in float.
  The transposes at both ends become views that cost nothing.
* swish and hswish work element by element and read NHWC as it is; there a transpose would run.
* Pools, squeeze-and-excite, hard sigmoid, and convolutions that a sum is computed within stand
  between narrow 1x1 convolutions, for only those make them channels last, and fused, as they are in
  a network. What the convolutions take alone is subtracted.
* Every copy has an input of its own, for equal nodes on one input are merged.

* Inputs have a zero point, as after hswish or a convolution without activation. After relu there is
  none, what lies outside the image needs no arithmetic, and padded convolutions take less: a few
  per cent less where they are large, half as much for 7x7 on 6x6 pixels. They are measured both
  ways.
* swish and hswish before squeeze-and-excite are measured with it: there they write uint8 for the
  pool and float for the product, which alone they do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
from msgspec import structs
from onnx import TensorProto

from ...errors import DeviceError
from ...hyperspace import BlockConfig, ConvStep, LinearStep
from ..graph import POSITIVE, SIGNED, GraphWriter, Limits, named_source, subnet_model
from ..kernel_graph import context_model, kernel_nodes
from ..lowering import FLOAT, SUM, Lowering, RuntimeKernel
from ..machine import Machine, describe_machine
from .device import VISITS, Device, Repeated, Timed, probes

# `infer` runs in the calling thread, which the profiler keeps on one core; OpenVINO's own pinning
# would choose another.
_OPTIONS = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": "1",
    "NUM_STREAMS": "1",
    "ENABLE_CPU_PINNING": "NO",
}
_PROTOCOL = f"batch 1, 1 thread, pinned to one core, tensors set beforehand; {VISITS}"
_POINTWISE = ("swish", "hswish")
_PADDED = ("conv", "dwconv")
# Kernels that need convolutions around them, and the unit that these are alone; their narrow side
# has few channels, but a whole vector.
_AROUND = {"se": "around", "hsigmoid": "around", "pool": "before"}
_AROUND_SUM = "around_sum"
_NARROW_WIDTH = 16
_NOT_RUN = ("Const", "Input", "Output")
_MOVES = ("Reorder", "Transpose", "Reshape")
# What a conversion between uint8 and float is made of, by the names of nodes before fusion.
_CONVERTING = ("Convert", "Subtract", "Multiply", "QuantizeLinear", "DequantizeLinear")


class TimedRequest(Repeated):
    """A compiled model on fixed random inputs."""

    def __init__(self, model: ov.CompiledModel) -> None:
        request = model.create_infer_request()
        rng = np.random.default_rng(0)
        for port in model.inputs:
            kind, shape = port.element_type.to_dtype(), tuple(port.shape)
            floating = np.issubdtype(kind, np.floating)
            values = rng.normal(size=shape) if floating else rng.integers(0, 256, shape)
            request.set_tensor(port, ov.Tensor(values.astype(kind)))
        for port in model.outputs:
            request.set_tensor(port, ov.Tensor(port.element_type, port.shape))
        super().__init__(partial(request.infer, share_outputs=True))


class OpenVinoDevice(Device):
    """OpenVINO's CPU plugin in INT8."""

    name = "openvino-x86-int8"

    @property
    def runs_here(self) -> bool:
        """They do."""
        return True

    def machine(self) -> Machine:
        """This machine with its OpenVINO."""
        runtime = f"openvino {ov.get_version()}"
        return describe_machine(runtime, _OPTIONS, _OPTIONS, _PROTOCOL)

    def kernel(self, kernel: RuntimeKernel, copies: int) -> Timed:
        """Parallel copies of a kernel with the operators that it has in a network."""
        return TimedRequest(compiled(alone(kernel, copies)))

    def idle(self, copies: int) -> Timed:
        """`copies` inputs that are outputs."""
        w = GraphWriter(np.random.default_rng(0))
        shape = [1, 1, 1, 1]
        inputs = {f"x{i}": shape for i in range(copies)}
        outputs = {w.node("Identity", [name]): shape for name in inputs}
        return TimedRequest(compiled(w.model(inputs, outputs, TensorProto.UINT8)))

    def network(self, blocks: Sequence[BlockConfig], resolution: int) -> Timed:
        """A whole network."""
        return TimedRequest(compiled(subnet_model(blocks, resolution, np.random.default_rng(0))))

    def operators(self, kernel: RuntimeKernel) -> tuple[str, ...]:
        """Operators that are there with the kernel between its neighbours and not without it."""
        extra = executed(compiled(_surrounded(kernel, present=True)))
        rest = Counter(executed(compiled(_surrounded(kernel, present=False))))
        found = []
        for name in extra:
            if rest[name] > 0:
                rest[name] -= 1
            else:
                found.append(name)
        return tuple(found)

    def lowering(self) -> Lowering:
        """As probed, with what depends on the neighbours of a kernel."""
        found = super().lowering()
        own = {name for names in found.own_kernel.values() for name in names}
        se = next(p for p in probes() if p.type == "se")
        joined = [replace(se, activation=name) for name in _POINTWISE if name in own]
        return structs.replace(
            found,
            operators=found.operators | {k.unit: self.operators(k) for k in joined},
            within_se=tuple(k.activation for k in joined),
            positive=_PADDED,
        )

    def contained(self, kernel: RuntimeKernel) -> RuntimeKernel | None:
        """The narrow convolutions around kernels that only run as in a network between some."""
        if kernel.activation == SUM:
            return replace(kernel, type=_AROUND_SUM, kernel_size=1, activation="none")
        kind = _AROUND.get(kernel.type)
        return None if kind is None else RuntimeKernel(kind, kernel.hw, kernel.cin, kernel.cin)


def compiled(model: onnx.ModelProto | Path, threads: int = 1) -> ov.CompiledModel:
    """A model compiled for the CPU, for one image at a time where it would take any number.

    Parameters
    ----------
    model : a model or its file
    threads : to compute on

    Raises
    ------
    DeviceError
        OpenVINO cannot read it, or does not know an operator; names the model.
    """
    core = ov.Core()
    name, source = named_source(model)
    try:
        found = core.read_model(source)
        for port in found.inputs:
            shape = port.partial_shape
            if shape.rank.is_static and shape.rank.get_length() and shape[0].is_dynamic:
                found.reshape({port: ov.PartialShape([1, *list(shape)[1:]])})
        return core.compile_model(found, "CPU", options_of(threads))
    except RuntimeError as error:
        # Where in OpenVINO it happened tells nobody anything.
        lines = [
            s for s in str(error).splitlines() if not s.startswith(("Exception from", "Check"))
        ]
        reason = " ".join(" ".join(lines).split())
        raise DeviceError(f"{name}: OpenVINO cannot read it ({reason})") from error


def options_of(threads: int = 1) -> dict[str, str]:
    """How OpenVINO is asked to run a model, on so many threads."""
    return _OPTIONS | {"INFERENCE_NUM_THREADS": str(threads)}


def alone(kernel: RuntimeKernel, copies: int) -> onnx.ModelProto:
    """Parallel copies of a kernel, uint8 NHWC inputs and outputs, each copy with its own.

    Parameters
    ----------
    kernel : what to run; "around", "around_sum" and "before" are convolutions without a kernel
    copies : number of copies

    Raises
    ------
    PredictorError
        A kind that has no single kernel.
    """
    w = GraphWriter(np.random.default_rng(0))
    inputs: dict[str, list[int]] = {}
    outputs: dict[str, list[int]] = {}
    for i in range(copies):
        name, width, out = f"x{i}", kernel.cin, kernel.cout
        limits = POSITIVE if kernel.positive else SIGNED
        if kernel.type == _AROUND_SUM or kernel.activation == SUM:
            width = out = _NARROW_WIDTH
            result, *unread = _between_summands(w, _entry(w, name), kernel)
            outputs |= {other: [1, kernel.hw, kernel.hw, kernel.cin] for other in unread}
        elif kernel.type in _POINTWISE:
            result = _without_last(w, kernel_nodes(w, [w.dequantized(name, SIGNED)], kernel))
        elif kernel.type in (*_AROUND, *_AROUND.values()):
            width = _NARROW_WIDTH
            out = kernel.cin if kernel.type in ("pool", "before") else _NARROW_WIDTH
            result = _last_channels_last(w, _between_convolutions(w, _entry(w, name), kernel))
        elif kernel.type == "linear":
            result = _without_last(w, kernel_nodes(w, [_entry(w, name)], kernel))
        else:
            result = _last_channels_last(w, kernel_nodes(w, [_entry(w, name, limits)], kernel))
        inputs[name] = [1, kernel.hw, kernel.hw, width]
        outputs[result] = [1, kernel.hw_out, kernel.hw_out, out]
        if kernel.type == "linear":
            outputs[result] = [1, out]
    return w.model(inputs, outputs, TensorProto.UINT8)


def _between_convolutions(w: GraphWriter, value: str, kernel: RuntimeKernel) -> str:
    """Convolutions that widen and narrow again, with a kernel between them or without."""
    kind = _AROUND.get(kernel.type, kernel.type)
    value = w.convolution(value, ConvStep("widen", _NARROW_WIDTH, kernel.cin))
    if kernel.type in _AROUND:
        value = kernel_nodes(w, [value], kernel)
    if kind == "before":
        return value
    return w.convolution(value, ConvStep("narrow", kernel.cin, _NARROW_WIDTH))


def _between_summands(w: GraphWriter, value: str, kernel: RuntimeKernel) -> list[str]:
    """Convolutions for what a kernel reads and for the other summand, with it or without.

    Returns
    -------
    what the convolution after it writes; without the kernel also what it would read
    """
    value_read = w.convolution(value, ConvStep("widen", _NARROW_WIDTH, kernel.cin))
    unread = [] if kernel.activation == SUM else [_last_channels_last(w, value_read)]
    # The sum is written over this summand, which nothing else reads.
    shortcut = ConvStep("shortcut", _NARROW_WIDTH, kernel.cout, stride=kernel.stride)
    result = w.convolution(value, shortcut)
    if not unread:
        result = kernel_nodes(w, [result, value_read], kernel)
    result = w.convolution(result, ConvStep("narrow", kernel.cout, _NARROW_WIDTH))
    return [_last_channels_last(w, result), *unread]


def _entry(w: GraphWriter, name: str, limits: Limits = SIGNED) -> str:
    """A uint8 NHWC input as the float NCHW tensor that ONNX's operators take."""
    value = w.dequantized(name, limits)
    result = w.node("Transpose", [value], perm=[0, 3, 1, 2])
    w.ranges[result] = w.ranges[value]
    return result


def _without_last(w: GraphWriter, value: str) -> str:
    """The integers that `value`, the result of the last node, is dequantized from."""
    assert w.nodes[-1].output[0] == value
    return str(w.nodes.pop().input[0])


def _last_channels_last(w: GraphWriter, value: str) -> str:
    return w.node("Transpose", [_without_last(w, value)], perm=[0, 2, 3, 1])


def executed(model: ov.CompiledModel) -> list[str]:
    """Operators of a compiled model in the order in which they run, as "Name:what".

    "What" is int8, float32, convert (between the two) or move. A Subgraph is generated code; it
    reads and writes uint8 where its neighbours do, but computes in float.
    """
    found = []
    for node in model.get_runtime_model().get_ordered_ops():
        info = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        sources = [port.get_source_output().get_node() for port in node.inputs()]
        constant = all(_layer(source) == "Const" for source in sources)
        if info["layerType"] not in _NOT_RUN and not constant:
            found.append(_label(info))
    return found


def _layer(node: ov.Node) -> str:
    return str(node.get_rt_info()["layerType"].astype(str))


def _label(info: dict[str, str]) -> str:
    kind = info["layerType"]
    if kind in _MOVES:
        return f"{kind}:move"
    if kind == "Subgraph":
        names = info["originalLayersNames"].split(",")
        converts = all(name.split("_")[0] in _CONVERTING for name in names)
        return f"{kind}:{'convert' if converts else FLOAT}"
    integers = info["runtimePrecision"] in ("u8", "i8")
    return f"{kind}:{'int8' if integers else FLOAT}"


def _surrounded(kernel: RuntimeKernel, present: bool) -> onnx.ModelProto:
    """A network around a kernel, with it or without."""
    if kernel.type == "add":
        return _sum_of_a_block(kernel, present)
    if kernel.type == "linear":
        return _last_layer(kernel, present)
    return context_model(kernel, "int8", present).model


def _sum_of_a_block(kernel: RuntimeKernel, present: bool) -> onnx.ModelProto:
    """A residual block.

    Its main path has two convolutions: the sum is written over the shortcut, so it is only fused
    into a convolution that does not read the shortcut itself.
    """
    w = GraphWriter(np.random.default_rng(0))
    shape = [1, kernel.cin, kernel.hw, kernel.hw]
    step = ConvStep("step", kernel.cin, kernel.cin)
    shortcut = w.convolution(w.quantized("input", SIGNED), step)
    value = w.convolution(w.convolution(shortcut, step), step)
    if present:
        value = kernel_nodes(w, [value, shortcut], kernel)
    return w.model({"input": shape}, {w.convolution(value, step): shape})


def _last_layer(kernel: RuntimeKernel, present: bool) -> onnx.ModelProto:
    """A convolution, and a linear layer as networks end with; two would become one Subgraph."""
    w = GraphWriter(np.random.default_rng(0))
    shape = [1, kernel.cin, 1, 1]
    value = w.convolution(w.quantized("input", SIGNED), ConvStep("before", kernel.cin, kernel.cin))
    if not present:
        return w.model({"input": shape}, {value: shape})
    value = w.linear(value, LinearStep("kernel", kernel.cin, kernel.cout))
    return w.model({"input": shape}, {value: [1, kernel.cout]})
