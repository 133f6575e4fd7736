"""ONNX Runtime on this machine's CPU: one thread, one core, inputs and outputs bound beforehand.

Kernels are cut out of a small network that the installed runtime itself has optimised, and run as
they stand: in its own layout, with its own fusions, and with its own fall-backs to float.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from ...errors import DeviceError, first_line
from ...hyperspace import BlockConfig
from ..graph import Precision, named_source, subnet_model
from ..kernel_graph import Context, context_model, copy_name, idle_model, replicated
from ..lowering import FLOAT, RuntimeKernel
from ..machine import Machine, describe_machine, has_vnni
from .device import VISITS, Device, Repeated, Timed

_OPTIMIZED = {"graph_optimization_level": "ORT_ENABLE_ALL", "intra_op_num_threads": "1"}
_AS_IT_STANDS = {"graph_optimization_level": "ORT_DISABLE_ALL", "intra_op_num_threads": "1"}
# Without VNNI, a CPU adds pairs of products of uint8 and int8 in 16 bits, where they saturate: the
# sums are wrong, and with them the answers. Asked so, ONNX Runtime makes the weights uint8 and adds
# them exactly, and a little slower. A CPU with VNNI is exact anyway, and would only be slowed down.
EXACT_SUMS = "session.x64quantprecision"
_PROTOCOL = f"batch 1, 1 thread, pinned to one core, inputs and outputs bound; {VISITS}"
# Bytes of a cache line, at which ONNX Runtime's own tensors start.
_LINE = 64
_INTEGER_OPS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_MOVES = ("Transpose", "Flatten", "Reshape", "ReorderInput", "ReorderOutput")
_COMPUTES = ("Conv", "QLinearConv", "FusedConv", "Gemm", "QGemm", "FusedGemm")


class TimedSession(Repeated):
    """A session on fixed random inputs, one image at a time; inputs and outputs are bound.

    Parameters
    ----------
    session : all sizes of its inputs but the first are known
    name : of the model, for messages

    Raises
    ------
    DeviceError
        An input is neither float nor uint8, or ONNX Runtime cannot run the model.
    """

    def __init__(self, session: ort.InferenceSession, name: str) -> None:
        binding = session.io_binding()
        rng = np.random.default_rng(0)
        for value in session.get_inputs():
            shape = [1 if i == 0 and isinstance(n, str) else n for i, n in enumerate(value.shape)]
            binding.bind_cpu_input(value.name, _aligned(_random(rng, value.type, shape)))
        names = [value.name for value in session.get_outputs()]
        for output in names:
            binding.bind_output(output)
        try:
            # Learns the outputs' shapes; from then on they are written in place.
            session.run_with_iobinding(binding)
        except Exception as error:  # ORT's errors share no base class.
            raise DeviceError(f"{name}: ONNX Runtime cannot run it ({error})") from error
        for output, value in zip(names, binding.get_outputs(), strict=True):
            binding.bind_ortvalue_output(output, value)
        super().__init__(partial(session.run_with_iobinding, binding))


class OnnxRuntimeDevice(Device):
    """ONNX Runtime's CPU provider in one precision.

    Parameters
    ----------
    precision : "int8" or "float32"
    """

    def __init__(self, precision: Precision) -> None:
        self._precision: Precision = precision
        self.name = f"ort-x86-{'int8' if precision == 'int8' else 'fp32'}"

    @property
    def precision(self) -> Precision:
        """The precision it was made for."""
        return self._precision

    @property
    def runs_here(self) -> bool:
        """They do."""
        return True

    def machine(self) -> Machine:
        """This machine with its ONNX Runtime."""
        runtime = f"onnxruntime {ort.__version__}"
        exact = exact_sums() if self.precision == "int8" else {}
        return describe_machine(runtime, _AS_IT_STANDS | exact, _OPTIMIZED | exact, _PROTOCOL)

    def kernel(self, kernel: RuntimeKernel, copies: int) -> Timed:
        """Parallel copies of a kernel, cut out of an optimised network."""
        return TimedSession(opened(self.cut(kernel, copies), optimize=False), kernel.key)

    def idle(self, copies: int) -> Timed:
        """`copies` Identity nodes."""
        model = idle_model(copies, self.precision)
        return TimedSession(opened(model, optimize=False), "idle")

    def network(self, blocks: Sequence[BlockConfig], resolution: int) -> Timed:
        """A whole network with all graph optimisations."""
        rng = np.random.default_rng(0)
        model = subnet_model(blocks, resolution, rng, self.precision)
        return TimedSession(opened(model), "network")

    def operators(self, kernel: RuntimeKernel) -> tuple[str, ...]:
        """Operators of the optimised graph between the kernel's neighbours."""
        return tuple(map(_label, _middle(self._context(kernel))))

    def cut(self, kernel: RuntimeKernel, copies: int) -> onnx.ModelProto:
        """Copies of a kernel as the runtime runs it between other kernels.

        Raises
        ------
        DeviceError
            The runtime leaves nothing of the kernel; it computes it within the one before.
        """
        context = self._context(kernel)
        nodes = _middle(context)
        if not nodes:
            raise DeviceError(f"{self.name}: nothing is left of kernel {kernel.key} once optimised")
        return _cut_out(context.model, nodes, copies)

    def _context(self, kernel: RuntimeKernel) -> Context:
        context = context_model(kernel, self.precision)
        return Context(optimized(context.model), context.producers)


@cache
def exact_sums() -> dict[str, str]:
    """The session options with which this CPU adds products of INT8 without error."""
    return {} if has_vnni() else {EXACT_SUMS: "1"}


def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as the installed runtime has optimised it for this machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        opened(model, save_to=path)
        return onnx.load(path)


def opened(
    model: onnx.ModelProto | Path,
    *,
    optimize: bool = True,
    threads: int = 1,
    save_to: Path | None = None,
) -> ort.InferenceSession:
    """A session on the CPU.

    Parameters
    ----------
    model : a model or its file
    optimize : run it as a network (all graph optimisations) or as it stands
    threads : to compute on
    save_to : where to write the model as the runtime runs it

    Raises
    ------
    DeviceError
        The file is not there or damaged, or the model nothing that ONNX Runtime runs; names it.
    """
    options = ort.SessionOptions()
    level = (_OPTIMIZED if optimize else _AS_IT_STANDS)["graph_optimization_level"]
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Warnings about unusual but intended graphs would bury the progress bar.
    options.log_severity_level = 3
    for option, value in exact_sums().items():
        options.add_session_config_entry(option, value)
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    name, source = named_source(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's errors share no base class.
        raise DeviceError(f"{name}: ONNX Runtime cannot read it ({first_line(error)})") from error


def _random(rng: np.random.Generator, kind: str, shape: list[int]) -> np.ndarray:
    if kind == "tensor(float)":
        return rng.normal(size=shape).astype(np.float32)
    if kind == "tensor(uint8)":
        return rng.integers(0, 256, shape).astype(np.uint8)
    raise DeviceError(f"model input of type {kind}: expected tensor(float) or tensor(uint8)")


def _aligned(values: np.ndarray) -> np.ndarray:
    """The same values where ONNX Runtime would put them itself: at the start of a cache line.

    numpy's arrays start anywhere. Vectors that are read across lines cost depthwise convolutions in
    float a fifth more or not, as the array happens to lie; within a network they never do.
    """
    room = np.empty(values.nbytes + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    result = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    result[...] = values
    return result


def _label(node: onnx.NodeProto) -> str:
    """An operator with what it computes in."""
    name = node.op_type
    if name.startswith(_INTEGER_OPS):
        return f"{name}:int8"
    if name in _CONVERSIONS:
        return f"{name}:convert"
    return f"{name}:{'move' if name in _MOVES else FLOAT}"


# ---- cutting -------------------------------------------------------------------------------------


def _middle(context: Context) -> list[onnx.NodeProto]:
    """Nodes between the producers and the consumer of an optimised context, in order."""
    nodes = list(context.model.graph.node)
    computing = [node for node in nodes if node.op_type in _COMPUTES]
    producers = computing[: context.producers]
    before = _ancestors(nodes, producers) if producers else _entry_nodes(nodes)
    between = _ancestors(nodes, computing[-1:]) - before - {computing[-1].output[0]}
    return [node for node in nodes if node.output[0] in between]


def _ancestors(nodes: Sequence[onnx.NodeProto], roots: Sequence[onnx.NodeProto]) -> set[str]:
    """First outputs of the roots and of all nodes that they depend on."""
    maker = {name: node for node in nodes for name in node.output}
    found, waiting = set(), list(roots)
    while waiting:
        node = waiting.pop()
        if node.output[0] not in found:
            found.add(node.output[0])
            waiting += [maker[name] for name in node.input if name in maker]
    return found


def _entry_nodes(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """What brings the image into the runtime's precision and layout."""
    found = {"input"}
    for node in nodes:
        if node.op_type in ("QuantizeLinear", "Transpose") and node.input[0] in found:
            found.add(node.output[0])
    return found


def _cut_out(model: onnx.ModelProto, nodes: list[onnx.NodeProto], copies: int) -> onnx.ModelProto:
    """A model of copies of some of a model's nodes, fed with what they read in it."""
    weights = {w.name: w for w in model.graph.initializer}
    inner = {name for node in nodes for name in node.output}
    read = [n for node in nodes for n in node.input if n and n not in inner]
    inputs = [n for n in dict.fromkeys(read) if n not in weights]
    result = nodes[-1].output[0]
    infos = _tensor_infos(model, [*inputs, result])
    result_type = infos[result].type.tensor_type.elem_type
    graph = helper.make_graph(
        replicated(nodes, copies),
        "kernel",
        [infos[name] for name in inputs],
        [
            helper.make_tensor_value_info(copy_name(result, i), result_type, None)
            for i in range(copies)
        ],
        [weights[n] for n in dict.fromkeys(read) if n in weights],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _tensor_infos(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, onnx.ValueInfoProto]:
    """Types and shapes of tensors of a model, learned by running it."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    for name in names:
        if name not in known:
            probe.graph.output.add().name = name
    session = opened(probe, optimize=False)
    rng = np.random.default_rng(0)
    feed = {v.name: _random(rng, v.type, v.shape) for v in session.get_inputs()}
    asked = [name for name in names if name not in feed]
    values = feed | dict(zip(asked, session.run(asked, feed), strict=True))
    return {
        name: helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(values[name].dtype), values[name].shape
        )
        for name in names
    }
