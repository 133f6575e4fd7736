"""Subnets as ONNX graphs with random weights, INT8 in QDQ form or float: what is timed end to end.

The graph has the shapes and operators that a trained subnet would have once exported (BatchNorm
folded into biased convolutions; in INT8 uint8 activations and int8 weights per channel), so its
time is the trained subnet's time; values play no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
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
_DRAWN_AT_MOST = 4099
# A plausible range for activations of normalised layers: -4 to 4, or 0 to 6 where never negative.
SIGNED = (8 / 255, 128)
POSITIVE = (6 / 255, 0)
UNIT = (1 / 255, 0)
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


def convolution_count(blocks: Sequence[BlockConfig], resolution: int) -> int:
    """Number of convolution nodes that `subnet_model` writes for the blocks."""
    kernels: tuple[Kernel, ...] = chain_kernels(blocks, resolution)
    return sum(len(k.convolutions()) for k in kernels)


class GraphWriter:
    """Collects nodes and weights; every method appends and returns the name of its result.

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
        self.scales: dict[str, float] = {}

    def model(
        self,
        inputs: dict[str, list[int]],
        outputs: dict[str, list[int]],
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

    def quantized(self, value: str, limits: tuple[float, int]) -> str:
        """A uint8 QuantizeLinear / DequantizeLinear pair; nothing in float."""
        if not self.int8:
            return value
        scale = self.constant(np.float32(limits[0]))
        zero = self.constant(np.uint8(limits[1]))
        integers = self.node("QuantizeLinear", [value, scale, zero])
        return self.dequantized(integers, limits, (scale, zero))

    def dequantized(
        self, integers: str, limits: tuple[float, int], quant: tuple[str, str] | None = None
    ) -> str:
        """Float values of uint8 ones; `quant` are constants of `limits` if there are already."""
        if quant is None:
            quant = self.constant(np.float32(limits[0])), self.constant(np.uint8(limits[1]))
        result = self.node("DequantizeLinear", [integers, *quant])
        self.scales[result] = limits[0]
        return result

    def parameters(self, value: str, shape: tuple[int, ...]) -> list[str]:
        """Weights and bias; in INT8 dequantized from int8 per output channel and from int32.

        ORT makes a QLinearConv only where the bias has input scale x weight scale exactly.
        """
        cout, fan_in = shape[0], int(np.prod(shape[1:]))
        if not self.int8:
            weights = self.random(shape, np.float32) / np.float32(127 * np.sqrt(fan_in))
            return [self.constant(weights), self.constant(self.random((cout,), np.float32))]
        scales = np.full(cout, 2 / 127 / np.sqrt(fan_in), np.float32)
        weight = self.random(shape, np.int8)
        offsets = self.rng.integers(-1000, 1000, cout).astype(np.int32)
        columns = (
            (weight, scales, np.zeros(cout, np.int8)),
            (offsets, scales * np.float32(self.scales[value]), np.zeros(cout, np.int32)),
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

    def block(self, value: str, config: BlockConfig, hw: int) -> str:
        """One block: main path, shortcut, sum."""
        recipe = recipe_of(config)
        block_input, entry_hw = value, hw
        for step in recipe.main:
            match step:
                case ConvStep():
                    value, hw = self.convolution(value, step), -(-hw // step.stride)
                case SqueezeExciteStep():
                    value = self.squeeze_excite(value, step)
                case PoolStep():
                    value, hw = self.quantized(self.node("GlobalAveragePool", [value]), SIGNED), 1
                case LinearStep():
                    value = self.linear(value, step)
        if not recipe.residual:
            return value
        shortcut = block_input
        if recipe.shortcut is not None:
            shortcut = self.convolution(block_input, recipe.shortcut)
        assert hw == -(-entry_hw // config.stride)
        return self.activated(self.node("Add", [value, shortcut]), recipe.activation)

    def convolution(self, value: str, step: ConvStep) -> str:
        """Convolution with bias and its activation."""
        k = step.kernel_size
        shape = (step.cout, 1 if step.depthwise else step.cin, k, k)
        node = self.node(
            "Conv",
            [value, *self.parameters(value, shape)],
            kernel_shape=[k, k],
            strides=[step.stride] * 2,
            pads=[k // 2] * 4,
            group=step.cin if step.depthwise else 1,
        )
        return self.activated(node, step.activation)

    def activated(self, value: str, activation: str) -> str:
        """The quantized result of an operator and its activation."""
        if activation not in ("none", "relu", "relu6"):
            value = self.quantized(value, SIGNED)
        value = self.activation(value, activation)
        return self.quantized(value, RANGES.get(activation, SIGNED))

    def activation(self, value: str, activation: str) -> str:
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
                gate = self.quantized(self.node("Sigmoid", [value]), UNIT)
                return self.node("Mul", [value, gate])
        return value

    def hard_sigmoid(self, value: str) -> str:
        """relu6(x + 3) / 6."""
        return self.node("HardSigmoid", [value], alpha=1 / 6, beta=0.5)

    def squeeze_excite(self, value: str, step: SqueezeExciteStep) -> str:
        """Global pool, two 1x1 convolutions, product."""
        gate = self.quantized(self.node("GlobalAveragePool", [value]), SIGNED)
        gate = self.convolution(
            gate, ConvStep("reduce", step.channels, step.squeezed, activation="relu")
        )
        gate = self.convolution(
            gate, ConvStep("expand", step.squeezed, step.channels, activation="hsigmoid")
        )
        return self.quantized(self.node("Mul", [value, gate]), SIGNED)

    def linear(self, value: str, step: LinearStep) -> str:
        """Fully connected layer on a 1x1 feature."""
        return self.gemm(self.quantized(self.node("Flatten", [value]), SIGNED), step)

    def gemm(self, flat: str, step: LinearStep) -> str:
        """Fully connected layer on a flat feature."""
        parameters = self.parameters(flat, (step.cout, step.cin))
        return self.quantized(self.node("Gemm", [flat, *parameters], transB=1), SIGNED)
