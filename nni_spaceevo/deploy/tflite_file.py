"""A trained subnet as a TFLite file, INT8 with the learned ranges or float, without calibration.

The integers are those of the ONNX file: weights as they are, activations less 128, for TFLite's are
int8. Two kinds of tensors have ranges that TFLite demands in place of the learned ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..hyperspace import LinearStep
from ..latency.graph import Precision
from ..latency.tflite_graph import HARD_SIGMOID, LOGISTIC, SIGNED, Limits, TFLiteWriter
from ..network import StaticNetwork
from ..network.folding import folded_floats, folded_integers
from .learned import Blocks, layer_at, range_at, ready
from .runtime import Operators

_INT8_BELOW_UINT8 = 128
_CONVERTS = ("QUANTIZE", "DEQUANTIZE")
_LINEAR_REASON = (
    "logits have no learned range: weights are int8, and LiteRT quantizes each image's feature by "
    "its own range"
)
_FLOAT_REASON = "the file is float32"
# What has another range than the learned one, and why.
_DEMANDED = {
    LOGISTIC: "TFLite's INT8 kernel has results in steps of 1/256",
    HARD_SIGMOID: "written as relu6(x + 3) / 6, whose relu6 has steps of 6/255",
}


@dataclass(frozen=True)
class TFLiteModel:
    """A model that was written.

    Attributes
    ----------
    content : the file
    operators : what LiteRT starts, which is what the file has
    demanded : what has another range than the learned one: how often, and why
    """

    content: bytes
    operators: Operators
    demanded: dict[str, str]


class LearnedTFLiteWriter(TFLiteWriter):
    """Writes the values of a trained network in place of made-up ones.

    Parameters
    ----------
    network : static, statistics and ranges final
    precision : "int8" or "float32"
    """

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        super().__init__(np.random.default_rng(0))
        self.network, self.int8 = network, precision == "int8"
        self.demands: Counter[str] = Counter()

    def limits(self, path: str, usual: Limits) -> Limits | None:
        """The learned range, for int8; none in a float file."""
        if not self.int8:
            return None
        scale, zero = range_at(self.network, path)
        return scale, zero - _INT8_BELOW_UINT8

    def demanded(self, what: str, limits: Limits) -> Limits | None:
        """The range that is demanded, counted; none in a float file."""
        if not self.int8:
            return None
        self.demands[what] += 1
        return limits

    def values(
        self, value: int, shape: tuple[int, ...], path: str = "", shift: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """The learned weights and bias, BatchNorm folded into them."""
        layer, limits = layer_at(self.network, path), self.ranges[value]
        if limits is None:
            weight, bias = folded_floats(layer, shift)
            return weight.numpy(), None, bias.numpy()
        found = folded_integers(layer, limits[0], shift)
        assert found.weight.shape == shape
        return found.weight, found.scales, found.bias

    def linear(self, value: int, step: LinearStep, path: str = "") -> int:
        """Float logits, which have no learned range; weights as they are stored."""
        layer, shape = layer_at(self.network, path), tuple(self.tensors[value].shape)
        limits = self.ranges[value]
        if limits is None:
            parameters = self.parameters(value, (step.cout, step.cin), path)
        else:
            found, (_, bias) = folded_integers(layer, limits[0]), folded_floats(layer)
            parameters = [self.constant(found.weight, found.scales), self.constant(bias.numpy())]
            value = self.operator("DEQUANTIZE", [value], shape, None)
        return self.operator(
            "FULLY_CONNECTED",
            [value, *parameters],
            (1, step.cout),
            None,
            asymmetricQuantizeInputs=self.int8,
        )

    def found_operators(self) -> Operators:
        """Operators so far, by what they give."""
        names = list(self.codes)
        counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        for one in self.operators:
            integer = self.ranges[int(one.outputs[0])] is not None
            counts[integer][names[one.opcodeIndex]] += 1
        conversions = sum(count.pop(name, 0) for count in counts.values() for name in _CONVERTS)
        reason = _LINEAR_REASON if self.int8 else _FLOAT_REASON
        return Operators(
            integer=dict(counts[True]),
            in_float=dict(counts[False]),
            conversions=conversions,
            reasons=dict.fromkeys(counts[False], reason),
        )


@torch.no_grad()
def tflite_model(
    network: StaticNetwork,
    blocks: Blocks,
    resolution: int,
    precision: Precision = "int8",
    *,
    about: Mapping[str, str] | None = None,
) -> TFLiteModel:
    """A trained network as a TFLite model, from a float image (1, r, r, c) to logits (1, classes).

    Parameters
    ----------
    network : on any device, which it leaves for the CPU
    blocks : those of each of its stages, by the stage's name
    resolution : r, height and width of the image in pixels
    precision : "int8" with the learned ranges, "float32" without quantizers
    about : what the file says of itself, as TFLite metadata

    Raises
    ------
    QuantizationError
        INT8, and a quantizer has no range; names it.
    PredictorError
        An activation whose TFLite form is not known.
    DeviceError
        ai-edge-litert is not installed.
    """
    writer = LearnedTFLiteWriter(ready(network, precision), precision)
    shape = (1, resolution, resolution, blocks[0][1][0].cin)
    entry = value = writer.tensor(shape, None)
    if writer.int8:
        value = writer.operator("QUANTIZE", [entry], shape, writer.limits("image", SIGNED))
    for stage, configs in blocks:
        for i, config in enumerate(configs):
            value = writer.block(value, config, f"stages.{stage}.{i}")
    writer.tensors[entry].name, writer.tensors[value].name = "input", "logits"
    return TFLiteModel(
        content=writer.model([entry], [value], about),
        operators=writer.found_operators(),
        demanded={
            what: f"{n} in the file: {_DEMANDED[what]}" for what, n in writer.demands.items()
        },
    )
