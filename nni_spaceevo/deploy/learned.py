"""What a trained subnet has learned, as the writers of its files ask for it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..errors import QuantizationError
from ..hyperspace import BlockConfig
from ..latency.graph import Limits, Precision
from ..network import StaticNetwork
from ..network.layers import ConvLayer, LinearLayer
from ..quant import ActivationQuantizer, uninitialized
from ..quant.lsq import ACTIVATION_RANGE

# The blocks of each stage of a subnet, by the stage's name.
Blocks = Sequence[tuple[str, Sequence[BlockConfig]]]


def ready(network: StaticNetwork, precision: Precision) -> StaticNetwork:
    """The network on the CPU, in evaluation mode.

    Raises
    ------
    QuantizationError
        INT8, and a quantizer has no range; names it.
    """
    if precision == "int8" and (missed := uninitialized(network)):
        raise QuantizationError(
            f"export: quantizer {missed[0]} has no range; expected weights of the LSQ+ phase"
        )
    return network.cpu().eval()


def range_at(network: nn.Module, path: str) -> Limits:
    """Scale and zero point of the activation quantizer at a path, for uint8."""
    quantizer = network.get_submodule(path)
    assert isinstance(quantizer, ActivationQuantizer)
    zero_point = quantizer.zero_point.round().clamp(*ACTIVATION_RANGE)
    return float(quantizer.scale.detach()), int(zero_point)


def layer_at(network: nn.Module, path: str) -> ConvLayer | LinearLayer:
    """The convolution or linear layer at a path."""
    layer = network.get_submodule(path)
    assert isinstance(layer, ConvLayer | LinearLayer)
    return layer
