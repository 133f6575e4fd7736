"""A trained subnet as an ONNX file, INT8 with the learned ranges or float, without calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from ..files import write_atomically
from ..hyperspace import output_hw
from ..latency.graph import SIGNED, GraphWriter, Limits, Precision
from ..network import StaticNetwork
from ..network.folding import folded_floats, folded_integers
from .learned import Blocks, layer_at, range_at, ready

BATCH = "batch"


class LearnedGraphWriter(GraphWriter):
    """Writes the values of a trained network in place of made-up ones.

    Parameters
    ----------
    network : static, statistics and ranges final
    precision : "int8" or "float32"
    """

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        super().__init__(np.random.default_rng(0), precision)
        self.network = network

    def limits(self, path: str, usual: Limits) -> Limits | None:
        """The learned range; None for logits, which are not quantized."""
        if not path:
            return usual
        return None if path.endswith(".logits") else range_at(self.network, path)

    def parameters(self, value: str, shape: tuple[int, ...], path: str = "") -> list[str]:
        """The learned weights and bias, BatchNorm folded into them."""
        layer = layer_at(self.network, path)
        if not self.int8:
            return [self.constant(part.numpy()) for part in folded_floats(layer)]
        found = folded_integers(layer, self.ranges[value][0])
        assert found.weight.shape == shape
        return self.integers(value, found.weight, found.scales, found.bias)


@torch.no_grad()
def onnx_model(
    network: StaticNetwork,
    blocks: Blocks,
    resolution: int,
    precision: Precision = "int8",
    *,
    dynamic_batch: bool = False,
    about: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """A trained network as an ONNX model, from float images (n, c, r, r) to float logits.

    Parameters
    ----------
    network : in evaluation mode, on any device, which it leaves for the CPU
    blocks : those of each of its stages, by the stage's name
    resolution : r, height and width of the images in pixels
    precision : "int8" for QDQ form with the learned ranges, "float32" without quantizers
    dynamic_batch : any number of images at a time, instead of one
    about : what the file says of itself, as ONNX metadata

    Raises
    ------
    QuantizationError
        INT8, and a quantizer has no range; names it.
    """
    writer = LearnedGraphWriter(ready(network, precision), precision)
    value, hw = writer.quantized("input", SIGNED, "image"), resolution
    for stage, configs in blocks:
        for i, config in enumerate(configs):
            value = writer.block(value, config, hw, f"stages.{stage}.{i}")
            hw = output_hw(config, hw)
    n: int | str = BATCH if dynamic_batch else 1
    first, last = blocks[0][1][0], blocks[-1][1][-1]
    shapes = {"input": [n, first.cin, resolution, resolution]}, {value: [n, last.cout]}
    model = writer.model(*shapes)
    _rename(model, value, "logits")
    onnx.helper.set_model_props(model, about or {})
    onnx.checker.check_model(model)
    return model


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, whole or not at all; raises `FileAccessError`."""
    write_atomically(path, model.SerializeToString())


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Give the output of a model a name that tells what it is."""
    for node in model.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
    model.graph.output[0].name = new
