"""Subnets and single kernels as TFLite models, full-integer INT8 with random weights.

A model has the operators, shapes and data types that the official route gives a trained subnet
(litert-torch, then ai-edge-quantizer with its recipe static_wi8_ai8), so its time is the trained
subnet's time; values play no part in it. It is written within a second, where that route takes
torch and half a minute or more. `benchmarks/litert_writer.py` holds the two against each other.

Activations are int8, one scale a tensor; weights int8, one scale an output channel; biases int32;
inputs and outputs are int8 in NHWC, batch 1. Nothing falls back to float: there is no DEQUANTIZE
or QUANTIZE in these models.

=====================  ============================================================================
relu, relu6            fused into CONV_2D, DEPTHWISE_CONV_2D or ADD
swish                  LOGISTIC and MUL
hswish                 HARD_SWISH, in int8 but not in XNNPACK: TFLite's own kernel runs it, 40
                       times slower than swish, and the network is cut into two XNNPACK
                       partitions around it
hsigmoid               after a convolution: relu6 fused, the 3 in the bias, MUL by the constant 1/6
                       (which the converter folds into a convolution that comes next)
squeeze-and-excite     MEAN, CONV_2D (relu), CONV_2D (relu6), MUL by 1/6, MUL
global pool            MEAN over height and width
linear                 FULLY_CONNECTED on the pooled feature, without a RESHAPE
conv on one channel    DEPTHWISE_CONV_2D with as many outputs a channel as the layer has
=====================  ============================================================================

`TFLiteWriter` decides operators, shapes and layouts, and makes up all values; `nni_spaceevo.deploy`
puts learned ones in their place, or floats.

Torch pads k // 2 pixels on all sides, and so do trained subnets. TFLite's SAME padding is the same
but for strided convolutions on even sizes, where it pads less above and left; there the official
converter writes a PAD operator before an unpadded convolution, and so does this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import DeviceError, PredictorError
from ..hyperspace import (
    BlockConfig,
    ConvStep,
    LinearStep,
    PoolStep,
    SqueezeExciteStep,
    Step,
    recipe_of,
)
from .lowering import RuntimeKernel

_CONVOLUTIONS = {"conv1x1": "CONV_2D", "conv": "CONV_2D", "dwconv": "DEPTHWISE_CONV_2D"}
_OWN_OPERATORS = {"swish": ("LOGISTIC", "MUL"), "hswish": ("HARD_SWISH",), "hsigmoid": ("MUL",)}
_FUSED = {"none": "NONE", "relu": "RELU", "relu6": "RELU6"}
# A hard sigmoid on a sum takes one more ADD, for the 3; no published block has it.
_AFTER_SUM = ("relu", "relu6", "swish", "hswish")
_AFTER_CONVOLUTION = (*_AFTER_SUM, "hsigmoid")


def _operators() -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {}
    following = dict.fromkeys(_CONVOLUTIONS, _AFTER_CONVOLUTION) | {"add": _AFTER_SUM}
    for kind, activations in following.items():
        names[kind] = (_CONVOLUTIONS.get(kind, "ADD"),)
        for activation in activations:
            names[f"{kind}+{activation}"] = names[kind] + _OWN_OPERATORS.get(activation, ())
    names |= {"pool": ("MEAN",), "linear": ("FULLY_CONNECTED",)}
    names["se"] = ("MEAN", "CONV_2D", "CONV_2D", "MUL", "MUL")
    names |= _OWN_OPERATORS
    return {kind: tuple(f"{name}:int8" for name in found) for kind, found in names.items()}


# Operators of every kernel type, of every type with an activation ("conv+swish"), and of the
# activations that run on their own, as `Lowering.operators` names them: "Name:precision". What
# depends on a kernel's size comes on top: see `kernel_operators`.
TFLITE_OPERATORS: dict[str, tuple[str, ...]] = _operators()

# Scale and zero point: -4 to 4 as in normalised layers, 0 to 6 where never negative, 0 to 1.
Limits = tuple[float, int]
SIGNED: Limits = (8 / 255, 0)
_POSITIVE: Limits = (6 / 255, -128)
# TFLite demands exactly this of LOGISTIC's output.
_UNIT: Limits = (1 / 256, -128)
# Of weights as torch has them, by how many dimensions they have: what TFLite has there.
_DENSE_ORDER = {2: (0, 1), 4: (0, 2, 3, 1)}
_DEPTHWISE_ORDER = {4: (1, 2, 3, 0)}
# What a hard sigmoid adds before it clips.
_HSIGMOID_SHIFT = 3.0

# The table of options of each operator; LOGISTIC has none.
_OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "ADD": "AddOptions",
    "MUL": "MulOptions",
    "PAD": "PadOptions",
    "MEAN": "ReducerOptions",
    "HARD_SWISH": "HardSwishOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
}
_SCHEMA_VERSION, _IDENTIFIER = 3, b"TFL3"
# What demands a range.
LOGISTIC, HARD_SIGMOID = "LOGISTIC", "hard sigmoid"


def subnet_flatbuffer(
    blocks: Sequence[BlockConfig], resolution: int, rng: np.random.Generator
) -> bytes:
    """Write a chain of blocks as an INT8 TFLite model.

    Parameters
    ----------
    blocks : static blocks in order, the first on the image
    resolution : height and width of the image in pixels
    rng : source of the weights

    Returns
    -------
    bytes
        A model from int8 (1, resolution, resolution, channels) to int8 (1, classes), or to
        (1, h, w, channels) where the last block is not a linear one.

    Raises
    ------
    PredictorError
        An activation whose TFLite form is not known.
    DeviceError
        ai-edge-litert is not installed.
    """
    writer = TFLiteWriter(rng)
    entry = value = writer.tensor((1, resolution, resolution, blocks[0].cin), SIGNED)
    for config in blocks:
        value = writer.block(value, config)
    return writer.model([entry], [value])


def kernel_flatbuffer(kernel: RuntimeKernel, copies: int) -> bytes:
    """Write parallel copies of one kernel, which share their inputs and weights.

    Parameters
    ----------
    kernel : what to run
    copies : number of copies, each with its own output

    Returns
    -------
    bytes
        A model with one int8 input (1, hw, hw, cin), two for a sum, and `copies` int8 outputs
        (1, hw_out, hw_out, cout), of a linear layer (1, cout).

    Raises
    ------
    PredictorError
        A type, or an activation within it, that is no TFLite kernel.
    DeviceError
        ai-edge-litert is not installed.
    """
    writer = TFLiteWriter(np.random.default_rng(0))
    shape = (1, kernel.hw, kernel.hw, kernel.cin)
    entries = [writer.tensor(shape, SIGNED) for _ in range(2 if kernel.type == "add" else 1)]
    result = writer.kernel(entries, kernel)
    return writer.model(entries, [result, *writer.replicated(result, copies - 1)])


def idle_flatbuffer(copies: int) -> bytes:
    """Write a model that does next to nothing and has `copies` outputs: the cost of the call.

    Parameters
    ----------
    copies : number of int8 outputs (1, 1, 1, 1)
    """
    writer = TFLiteWriter(np.random.default_rng(0))
    entry = writer.tensor((1, 1, 1, 1), SIGNED)
    result = writer.operator("ADD", [entry, entry], (1, 1, 1, 1), SIGNED)
    return writer.model([entry], [result, *writer.replicated(result, copies - 1)])


def kernel_operators(kernel: RuntimeKernel) -> tuple[str, ...]:
    """Operators of one kernel as `TFLITE_OPERATORS` names them, with those its size asks for.

    Raises
    ------
    PredictorError
        A kind of kernel without a TFLite form.
    """
    if kernel.unit not in TFLITE_OPERATORS:
        raise _unknown(kernel.unit)
    names = TFLITE_OPERATORS[kernel.unit]
    if kernel.type not in _CONVOLUTIONS:
        return names
    if kernel.cin == 1:
        names = (f"{_CONVOLUTIONS['dwconv']}:int8", *names[1:])
    padded = _needs_pad(kernel.hw, kernel.kernel_size, kernel.stride)
    return ("PAD:int8", *names) if padded else names


def flatbuffer_metadata(model: bytes) -> dict[str, str]:
    """What a TFLite model says of itself; see `TFLiteWriter.model`."""
    parsed = _schema().ModelT.InitFromPackedBuf(model)
    found = {one.name.decode(): parsed.buffers[one.buffer].data for one in parsed.metadata or []}
    return {
        name: bytes(data).decode(errors="replace")
        for name, data in found.items()
        if data is not None
    }


def _unknown(unit: str) -> PredictorError:
    known = ", ".join(TFLITE_OPERATORS)
    return PredictorError(f"kernel {unit!r}: no TFLite operators for it; known: {known}")


def _needs_pad(hw: int, kernel_size: int, stride: int) -> bool:
    """Whether SAME padding differs from `kernel_size // 2` pixels on all sides."""
    same = (-(-hw // stride) - 1) * stride + kernel_size - hw
    return max(same, 0) != 2 * (kernel_size // 2)


@cache
def _schema() -> ModuleType:
    """The classes of TFLite's flatbuffer schema."""
    try:
        return import_module("ai_edge_litert.schema_py_generated")
    except ImportError as error:
        raise DeviceError(
            "writing TFLite models needs ai-edge-litert: pip install 'nni_spaceevo[litert]'"
        ) from error


class TFLiteWriter:
    """Collects tensors and operators; methods return the number of the tensor that they append.

    A subclass that has learned values overrides `limits`, `demanded`, `values` and `linear`. The
    paths that they are given are those of the modules of a `nni_spaceevo.network.StaticNetwork`.

    Parameters
    ----------
    rng : source of the weights

    Raises
    ------
    DeviceError
        ai-edge-litert is not installed.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.schema = _schema()
        self.rng = rng
        # By convention buffer 0 is the empty one, of tensors without constant data.
        self.buffers: list[Any] = [self.schema.BufferT()]
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: dict[str, int] = {}
        self.constants: dict[tuple[str, bytes], int] = {}
        # Of the tensors that are computed; None of floats.
        self.ranges: dict[int, Limits | None] = {}

    def limits(self, path: str, usual: Limits) -> Limits | None:
        """The range of the activation quantizer at a path; None leaves the tensor in float."""
        return usual

    def demanded(self, what: str, limits: Limits) -> Limits | None:
        """The range that TFLite, or how `what` is written for it, demands; None in float."""
        return limits

    # ---- tensors and operators ----------------------------------------------------------------

    def tensor(self, shape: Sequence[int], limits: Limits | None) -> int:
        """A tensor that is computed: int8, or float where it has no limits."""
        kind, quantization = self.schema.TensorType.FLOAT32, None
        if limits is not None:
            kind = self.schema.TensorType.INT8
            quantization = self.schema.QuantizationParametersT(
                scale=np.array([limits[0]], np.float32), zeroPoint=np.array([limits[1]], np.int64)
            )
        result = self._append(shape, kind, 0, quantization)
        self.ranges[result] = limits
        return result

    def _append(self, shape: Sequence[int], kind: int, buffer: int, quantization: Any) -> int:
        number = len(self.tensors)
        self.tensors.append(
            self.schema.TensorT(
                shape=np.array(shape, np.int32),
                type=kind,
                buffer=buffer,
                name=f"tensor_{number}",
                quantization=quantization,
            )
        )
        return number

    def constant(
        self, values: np.ndarray, scales: np.ndarray | None = None, zero: int = 0, axis: int = 0
    ) -> int:
        """A constant of int8, int32 or float32, quantized where it has scales."""
        self.buffers.append(self.schema.BufferT(data=values.reshape(-1).view(np.uint8)))
        quantization = None
        if scales is not None:
            quantization = self.schema.QuantizationParametersT(
                scale=scales.astype(np.float32),
                zeroPoint=np.full(len(scales), zero, np.int64),
                quantizedDimension=axis,
            )
        kind = getattr(self.schema.TensorType, values.dtype.name.upper())
        return self._append(values.shape, kind, len(self.buffers) - 1, quantization)

    def integers(self, values: Sequence[Any]) -> int:
        """An int32 constant such as axes or paddings; equal ones are written once."""
        array = np.array(values, np.int32)
        key = (str(array.shape), array.tobytes())
        if key not in self.constants:
            self.constants[key] = self.constant(array)
        return self.constants[key]

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        limits: Limits | None,
        **options: object,
    ) -> int:
        """Append one operator; returns its result, a new tensor of `shape`."""
        result, table = self.tensor(shape, limits), _OPTIONS.get(name)
        operator = self.schema.OperatorT(
            opcodeIndex=self.codes.setdefault(name, len(self.codes)),
            inputs=np.array(inputs, np.int32),
            outputs=np.array([result], np.int32),
        )
        if table is not None:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, table)
            operator.builtinOptions = getattr(self.schema, f"{table}T")(**options)
        self.operators.append(operator)
        return result

    def replicated(self, result: int, copies: int) -> list[int]:
        """Append copies of all operators so far; returns what stands for `result` in each."""
        written, found = list(self.operators), []
        for _ in range(copies):
            twins: dict[int, int] = {}
            for one in written:
                (output,) = one.outputs
                like = self.tensors[output]
                twins[output] = self._append(like.shape, like.type, 0, like.quantization)
                self.operators.append(
                    self.schema.OperatorT(
                        opcodeIndex=one.opcodeIndex,
                        inputs=np.array([twins.get(i, i) for i in one.inputs], np.int32),
                        outputs=np.array([twins[output]], np.int32),
                        builtinOptionsType=one.builtinOptionsType,
                        builtinOptions=one.builtinOptions,
                    )
                )
            found.append(twins[result])
        return found

    def model(
        self, entries: list[int], results: list[int], about: Mapping[str, str] | None = None
    ) -> bytes:
        """The finished model.

        Parameters
        ----------
        entries, results : its inputs and outputs
        about : what it says of itself, as metadata
        """
        metadata = []
        for name, text in (about or {}).items():
            self.buffers.append(self.schema.BufferT(data=np.frombuffer(text.encode(), np.uint8)))
            metadata.append(self.schema.MetadataT(name=name, buffer=len(self.buffers) - 1))
        graph = self.schema.SubGraphT(
            tensors=self.tensors,
            inputs=np.array(entries, np.int32),
            outputs=np.array(results, np.int32),
            operators=self.operators,
            name="main",
        )
        codes = [getattr(self.schema.BuiltinOperator, name) for name in self.codes]
        model = self.schema.ModelT(
            version=_SCHEMA_VERSION,
            # Old readers know only the first, one-byte field.
            operatorCodes=[
                self.schema.OperatorCodeT(deprecatedBuiltinCode=min(c, 127), builtinCode=c)
                for c in codes
            ],
            subgraphs=[graph],
            buffers=self.buffers,
            metadata=metadata,
        )
        builder = import_module("flatbuffers").Builder(sum(map(_size, self.buffers)) + 2**14)
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())

    def hw(self, value: int) -> int:
        """Height and width of an NHWC tensor in pixels."""
        return int(self.tensors[value].shape[1])

    def channels(self, value: int) -> int:
        """Channels of an NHWC tensor."""
        return int(self.tensors[value].shape[-1])

    # ---- blocks, steps and kernels ------------------------------------------------------------

    def block(self, value: int, config: BlockConfig, path: str = "") -> int:
        """One block: main path, shortcut, sum."""
        recipe = recipe_of(config)
        shortcut = value
        for step in recipe.main:
            value = self.step(value, step, f"{path}.layers.{step.name}")
        if not recipe.residual:
            return value
        if recipe.shortcut is not None:
            layer = f"{path}.layers.{recipe.shortcut.name}"
            shortcut = self.convolution(shortcut, recipe.shortcut, layer)
        return self.sum([value, shortcut], recipe.activation, f"{path}.join")

    def step(self, value: int, step: Step, path: str = "") -> int:
        """One step of a main path."""
        match step:
            case ConvStep():
                return self.convolution(value, step, path)
            case SqueezeExciteStep():
                return self.squeeze_excite(value, step, path)
            case PoolStep():
                return self.pool(value, path)
            case LinearStep():
                return self.linear(value, step, path)

    def kernel(self, values: list[int], kernel: RuntimeKernel) -> int:
        """One runtime kernel with the activation that TFLite fuses into it."""
        k, value = kernel, values[0]
        if k.unit not in TFLITE_OPERATORS or k.activation not in _FUSED:
            raise _unknown(k.unit)
        match k.type:
            case "add":
                return self.sum(values, k.activation)
            case "pool":
                return self.pool(value)
            case "se":
                return self.squeeze_excite(value, SqueezeExciteStep("se", k.cin, k.squeezed))
            case "linear":
                return self.linear(value, LinearStep("linear", k.cin, k.cout))
            case "swish" | "hswish" | "hsigmoid":
                return self.activated(value, k.type)
        shape = (k.cin, k.cout, k.kernel_size, k.stride, k.type == "dwconv")
        return self.convolution(value, ConvStep("conv", *shape, activation=k.activation))

    def values(
        self, value: int, shape: tuple[int, ...], path: str = "", shift: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Weights and bias of the layer at a path, in torch's order of dimensions.

        Parameters
        ----------
        value : what the layer is applied to
        shape : of the weights, (cout, ...)
        path : the layer
        shift : what the bias has on top of the layer's own; made-up ones are shifted anyhow

        Returns
        -------
        int8 of `shape`, scales (cout,), and int32 (cout,) in units of input scale times scale; or
        floats, None and floats
        """
        cout, fan_in = shape[0], int(np.prod(shape[1:]))
        scales = np.full(cout, 2 / 127 / np.sqrt(fan_in))
        weight = self.rng.integers(-127, 128, shape, np.int8)
        return weight, scales, self.rng.integers(-1000, 1000, cout, np.int32)

    def parameters(
        self,
        value: int,
        shape: tuple[int, ...],
        path: str = "",
        *,
        depthwise: bool = False,
        shift: float = 0.0,
    ) -> list[int]:
        """Weights in TFLite's order, with a scale per output channel, and the bias."""
        weight, scales, bias = self.values(value, shape, path, shift)
        order = (_DEPTHWISE_ORDER if depthwise else _DENSE_ORDER)[len(shape)]
        weight = weight.transpose(order)
        if scales is None:
            return [self.constant(weight), self.constant(bias)]
        limits = self.ranges[value]
        assert limits is not None
        # TFLite refuses a bias whose scale is not input scale x weight scale.
        bias_scales = scales * limits[0]
        return [
            self.constant(weight, scales, axis=order.index(0)),
            self.constant(bias, bias_scales),
        ]

    def convolution(self, value: int, step: ConvStep, path: str = "") -> int:
        """Convolution with bias and its activation."""
        k, stride, hw = step.kernel_size, step.stride, self.hw(value)
        # The converter writes VALID where there is nothing to pad.
        padding = "SAME" if k > 1 else "VALID"
        if _needs_pad(hw, k, stride):
            value, padding = self.pad(value, k // 2), "VALID"
        options: dict[str, object] = {
            "padding": getattr(self.schema.Padding, padding),
            "strideH": stride,
            "strideW": stride,
        }
        # On one channel every convolution is depthwise, and the converter writes it so.
        depthwise = step.depthwise or step.cin == 1
        if depthwise:
            options["depthMultiplier"] = step.cout // step.cin
        parameters = self.parameters(
            value,
            (step.cout, 1 if depthwise else step.cin, k, k),
            path,
            depthwise=depthwise,
            shift=_HSIGMOID_SHIFT if step.activation == "hsigmoid" else 0.0,
        )
        return self.fused(
            "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
            [value, *parameters],
            (1, *[-(-hw // stride)] * 2, step.cout),
            step.activation,
            options,
            f"{path}.activations.{step.activation}",
        )

    def pad(self, value: int, pixels: int) -> int:
        """Zeros on all four sides."""
        hw = self.hw(value) + 2 * pixels
        widths = self.integers([[0, 0], [pixels, pixels], [pixels, pixels], [0, 0]])
        shape = (1, hw, hw, self.channels(value))
        return self.operator("PAD", [value, widths], shape, self.ranges[value])

    def sum(self, values: list[int], activation: str, path: str = "") -> int:
        """Sum and its activation."""
        if activation not in ("none", *_AFTER_SUM):
            raise _unknown(f"add+{activation}")
        shape = tuple(self.tensors[values[0]].shape)
        return self.fused("ADD", values, shape, activation, {}, path)

    def fused(
        self,
        name: str,
        inputs: list[int],
        shape: Sequence[int],
        activation: str,
        options: dict[str, object],
        path: str = "",
    ) -> int:
        """An operator, the activation that it takes in, and the operators of one that it cannot."""
        inner = "relu6" if activation == "hsigmoid" else activation
        options["fusedActivationFunction"] = getattr(
            self.schema.ActivationFunctionType, _FUSED.get(inner, "NONE")
        )
        if inner != activation:
            limits = self.demanded(HARD_SIGMOID, _POSITIVE)
        else:
            usual = _POSITIVE if inner in ("relu", "relu6") else SIGNED
            limits = self.limits(f"{path}.{'after' if inner in _FUSED else 'before'}", usual)
        return self.activated(
            self.operator(name, inputs, shape, limits, **options), activation, path
        )

    def activated(self, value: int, activation: str, path: str = "") -> int:
        """The operators of an activation that is not fused."""
        shape, after = tuple(self.tensors[value].shape), f"{path}.after"
        match activation:
            case "swish":
                gate = self.operator("LOGISTIC", [value], shape, self.demanded(LOGISTIC, _UNIT))
                return self.operator("MUL", [value, gate], shape, self.limits(after, SIGNED))
            case "hswish":
                return self.operator("HARD_SWISH", [value], shape, self.limits(after, SIGNED))
            case "hsigmoid":
                limits = self.limits(after, _UNIT)
                return self.operator("MUL", [value, self.sixth(value)], shape, limits)
        return value

    def sixth(self, value: int) -> int:
        """1/6, to multiply a tensor with."""
        if self.ranges[value] is None:
            return self.constant(np.array(1 / 6, np.float32))
        return self.constant(np.array(127, np.int8), np.array([1 / 6 / 255]), zero=-128)

    def pool(self, value: int, path: str = "") -> int:
        """Global average pool to (1, 1, 1, channels)."""
        shape, limits = (1, 1, 1, self.channels(value)), self.limits(f"{path}.pooled", SIGNED)
        return self.operator("MEAN", [value, self.integers([1, 2])], shape, limits, keepDims=True)

    def squeeze_excite(self, value: int, step: SqueezeExciteStep, path: str = "") -> int:
        """Global pool, two 1x1 convolutions, product."""
        gate = self.pool(value, path)
        for convolution in step.convs:
            gate = self.convolution(gate, convolution, f"{path}.{convolution.name}")
        limits = self.limits(f"{path}.product", SIGNED)
        return self.operator("MUL", [value, gate], tuple(self.tensors[value].shape), limits)

    def linear(self, value: int, step: LinearStep, path: str = "") -> int:
        """Fully connected layer on (1, 1, 1, cin) to (1, cout)."""
        parameters = self.parameters(value, (step.cout, step.cin), path)
        return self.operator("FULLY_CONNECTED", [value, *parameters], (1, step.cout), SIGNED)


def _size(buffer: Any) -> int:
    return 0 if buffer.data is None else len(buffer.data)
