"""Subnets as ONNX graphs, INT8 in QDQ form or float; with random weights, what is timed end to end.

BatchNorm is folded into biased convolutions; in INT8, activations are uint8 and weights int8 per
channel. `GraphWriter` decides operators and shapes, and makes up all values; `nni_spaceevo.deploy`
puts learned ones in their place. So what is timed is what is deployed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..hyperspace import (
    BlockConfig,
    ConvStep,
    Kernel,
    LinearStep,
    PoolStep,
    SqueezeExciteStep,
    chain_kernels,
    output_hw,
    recipe_of,
)

OPSET = 17
Precision = Literal["int8", "float32"]
# Scale and zero point of uint8 values.
Limits = tuple[float, int]
_DRAWN_AT_MOST = 4099
# A plausible range for activations of normalised layers: -4 to 4, or 0 to 6 where never negative.
SIGNED: Limits = (8 / 255, 128)
POSITIVE: Limits = (6 / 255, 0)
UNIT: Limits = (1 / 255, 0)
RANGES = {"relu": POSITIVE, "relu6": POSITIVE, "hsigmoid": UNIT}


def subnet_model(
    blocks: Sequence[BlockConfig],
    resolution: int,
    rng: np.random.Generator,
    precision: Precision = "int8",
) -> onnx.ModelProto:
    """Write a chain of blocks as a model with float NCHW input and float output, batch 1.

    Parameters
    ----------
    blocks : static blocks in order, the first on the image
    resolution : height and width of the image in pixels
    rng : source of the weights
    precision : "int8" writes QuantizeLinear / DequantizeLinear pairs, "float32" none
    """
    writer = GraphWriter(rng, precision)
    value, hw = writer.quantized("input", SIGNED), resolution
    for config in blocks:
        value = writer.block(value, config, hw)
        hw = output_hw(config, hw)
    shape = [1, blocks[0].cin, resolution, resolution]
    last = blocks[-1]
    output = [1, last.cout] if last.type == "linear" else [1, last.cout, hw, hw]
    return writer.model({"input": shape}, {value: output})


def named_source(model: onnx.ModelProto | Path) -> tuple[str, str | bytes]:
    """A model's name for messages and what runtimes open it by: of a file, its path twice."""
    if isinstance(model, Path):
        return str(model), str(model)
    return model.graph.name, model.SerializeToString()


def convolution_count(blocks: Sequence[BlockConfig], resolution: int) -> int:
    """Number of convolution nodes that `subnet_model` writes for the blocks."""
    kernels: tuple[Kernel, ...] = chain_kernels(blocks, resolution)
    return sum(len(k.convolutions()) for k in kernels)


class GraphWriter:
    """Collects nodes and weights; every method appends and returns the name of its result.

    A subclass that has learned values overrides `limits` and `parameters`. The paths that they are
    given are those of the modules of a `nni_spaceevo.network.StaticNetwork`.

    Parameters
    ----------
    rng : source of the weights
    precision : as for `subnet_model`
    """

    def __init__(self, rng: np.random.Generator, precision: Precision = "int8") -> None:
        self.rng = rng
        self.int8 = precision == "int8"
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        # Of what has been dequantized.
        self.ranges: dict[str, Limits] = {}

    def limits(self, path: str, usual: Limits) -> Limits | None:
        """The range of the activation quantizer at a path; None leaves the tensor in float."""
        return usual

    def model(
        self,
        inputs: Mapping[str, Sequence[int | str]],
        outputs: Mapping[str, Sequence[int | str]],
        element: int = TensorProto.FLOAT,
    ) -> onnx.ModelProto:
        """The finished model; shapes by name, all of one element type."""
        infos = [
            [helper.make_tensor_value_info(name, element, shape) for name, shape in values.items()]
            for values in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "subnet", *infos, self.weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
        )

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        """Append one node."""
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: np.ndarray | np.generic) -> str:
        """Append one initializer."""
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def quantized(self, value: str, usual: Limits, path: str = "") -> str:
        """A uint8 QuantizeLinear / DequantizeLinear pair; nothing in float."""
        limits = self.limits(path, usual) if self.int8 else None
        if limits is None:
            return value
        scale = self.constant(np.float32(limits[0]))
        zero = self.constant(np.uint8(limits[1]))
        integers = self.node("QuantizeLinear", [value, scale, zero])
        return self.dequantized(integers, limits, (scale, zero))

    def dequantized(
        self, integers: str, limits: Limits, quant: tuple[str, str] | None = None
    ) -> str:
        """Float values of uint8 ones; `quant` are constants of `limits` if there are already."""
        if quant is None:
            quant = self.constant(np.float32(limits[0])), self.constant(np.uint8(limits[1]))
        result = self.node("DequantizeLinear", [integers, *quant])
        self.ranges[result] = limits
        return result

    def parameters(self, value: str, shape: tuple[int, ...], path: str = "") -> list[str]:
        """Weights and bias of the layer at a path, whose input is `value`."""
        cout, fan_in = shape[0], int(np.prod(shape[1:]))
        if not self.int8:
            weights = self.random(shape, np.float32) / np.float32(127 * np.sqrt(fan_in))
            return [self.constant(weights), self.constant(self.random((cout,), np.float32))]
        scales = np.full(cout, 2 / 127 / np.sqrt(fan_in), np.float32)
        weight = self.random(shape, np.int8)
        offsets = self.rng.integers(-1000, 1000, cout).astype(np.int32)
        return self.integers(value, weight, scales, offsets)

    def integers(
        self, value: str, weight: np.ndarray, scales: np.ndarray, bias: np.ndarray
    ) -> list[str]:
        """Weights and bias dequantized from int8 per output channel and from int32.

        ORT makes a QLinearConv only where the bias has input scale x weight scale exactly.

        Parameters
        ----------
        value : what the layer is applied to
        weight, scales, bias : int8 (cout, ...), float32 (cout,), int32 (cout,)
        """
        columns = (
            (weight, scales, np.zeros(len(weight), np.int8)),
            (bias, scales * np.float32(self.ranges[value][0]), np.zeros(len(bias), np.int32)),
        )
        return [
            self.node("DequantizeLinear", [self.constant(part) for part in column], axis=0)
            for column in columns
        ]

    def random(self, shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
        """Whole numbers of -127 to 127; beyond some thousands the same ones over again."""
        # Drawing each of a hundred million weights would take longer than measuring the network.
        count = min(int(np.prod(shape)), _DRAWN_AT_MOST)
        return np.resize(self.rng.integers(-127, 128, count).astype(kind), shape)

    # ---- blocks and steps ---------------------------------------------------------------------

    def block(self, value: str, config: BlockConfig, hw: int, path: str = "") -> str:
        """One block: main path, shortcut, sum."""
        recipe = recipe_of(config)
        block_input, entry_hw = value, hw
        for step in recipe.main:
            layer = f"{path}.layers.{step.name}"
            match step:
                case ConvStep():
                    value, hw = self.convolution(value, step, layer), -(-hw // step.stride)
                case SqueezeExciteStep():
                    value = self.squeeze_excite(value, step, layer)
                case PoolStep():
                    value, hw = self.pool(value, layer), 1
                case LinearStep():
                    value = self.linear(value, step, layer)
        if not recipe.residual:
            return value
        shortcut = block_input
        if recipe.shortcut is not None:
            layer = f"{path}.layers.{recipe.shortcut.name}"
            shortcut = self.convolution(block_input, recipe.shortcut, layer)
        assert hw == -(-entry_hw // config.stride)
        total = self.node("Add", [value, shortcut])
        return self.activated(total, recipe.activation, f"{path}.join")

    def convolution(self, value: str, step: ConvStep, path: str = "") -> str:
        """Convolution with bias and its activation."""
        k = step.kernel_size
        shape = (step.cout, 1 if step.depthwise else step.cin, k, k)
        node = self.node(
            "Conv",
            [value, *self.parameters(value, shape, path)],
            kernel_shape=[k, k],
            strides=[step.stride] * 2,
            pads=[k // 2] * 4,
            group=step.cin if step.depthwise else 1,
        )
        return self.activated(node, step.activation, f"{path}.activations.{step.activation}")

    def activated(self, value: str, activation: str, path: str = "") -> str:
        """The quantized result of an operator and its activation."""
        if activation not in ("none", "relu", "relu6"):
            value = self.quantized(value, SIGNED, f"{path}.before")
        value = self.activation(value, activation, path)
        return self.quantized(value, RANGES.get(activation, SIGNED), f"{path}.after")

    def activation(self, value: str, activation: str, path: str = "") -> str:
        """An activation, not yet quantized."""
        match activation:
            case "relu":
                return self.node("Relu", [value])
            case "relu6":
                bounds = [self.constant(np.float32(0)), self.constant(np.float32(6))]
                return self.node("Clip", [value, *bounds])
            case "hsigmoid":
                return self.hard_sigmoid(value)
            case "hswish":
                return self.node("HardSwish", [value])
            case "swish":
                gate = self.quantized(self.node("Sigmoid", [value]), UNIT, f"{path}.gate")
                return self.node("Mul", [value, gate])
        return value

    def hard_sigmoid(self, value: str) -> str:
        """relu6(x + 3) / 6."""
        return self.node("HardSigmoid", [value], alpha=1 / 6, beta=0.5)

    def squeeze_excite(self, value: str, step: SqueezeExciteStep, path: str = "") -> str:
        """Global pool, two 1x1 convolutions, product."""
        gate = self.pool(value, path)
        for name, conv in zip(("reduce", "expand"), step.convs, strict=True):
            gate = self.convolution(gate, conv, f"{path}.{name}")
        return self.quantized(self.node("Mul", [value, gate]), SIGNED, f"{path}.product")

    def pool(self, value: str, path: str = "") -> str:
        """Global average pool."""
        return self.quantized(self.node("GlobalAveragePool", [value]), SIGNED, f"{path}.pooled")

    def linear(self, value: str, step: LinearStep, path: str = "") -> str:
        """Fully connected layer on a 1x1 feature."""
        flat = self.node("Flatten", [value])
        return self.gemm(self.quantized(flat, self.ranges.get(value, SIGNED)), step, path)

    def gemm(self, flat: str, step: LinearStep, path: str = "") -> str:
        """Fully connected layer on a flat feature."""
        parameters = self.parameters(flat, (step.cout, step.cin), path)
        result = self.node("Gemm", [flat, *parameters], transB=1)
        return self.quantized(result, SIGNED, f"{path}.logits")
