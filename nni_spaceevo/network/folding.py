"""BatchNorm folded into the convolution before it, in floats and, exactly, in integers.

Devices add a bias as a whole number of units, input scale times weight scale. `settle_biases` gives
a network in torch such biases, so that its INT8 file computes what it computes.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..quant import ActivationQuantizer, WeightQuantizer
from ..quant.lsq import WEIGHT_RANGE
from .layers import ConvLayer, LinearLayer

# Integers of a bias stay well within int32.
_LARGEST_BIAS = 2**30
# Of a channel that is switched off altogether.
_LEAST_SCALE = 1e-20


@dataclass(frozen=True)
class IntegerWeights:
    """Parameters of a layer whose input is uint8.

    Attributes
    ----------
    weight : int8, (cout, ...)
    scales : float32, (cout,), of the weights
    bias : int32, (cout,), in units of input scale times weight scale
    """

    weight: NDArray[np.int8]
    scales: NDArray[np.float32]
    bias: NDArray[np.int32]


@torch.no_grad()
def folded_floats(layer: ConvLayer | LinearLayer, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Weights and bias of a static layer as one convolution or matrix product.

    Parameters
    ----------
    layer : static
    shift : added to the bias, for what comes after the layer

    Returns
    -------
    float32 (cout, ...) and (cout,)
    """
    weight, _ = _weight_of(layer)
    factor, bias = _affine(layer, len(weight))
    return (weight.double() * _rows(factor, weight)).float(), (bias + shift).float()


@torch.no_grad()
def folded_integers(
    layer: ConvLayer | LinearLayer, input_scale: float, shift: float = 0.0
) -> IntegerWeights:
    """The same with int8 weights: those of training, whose scales take up BatchNorm's.

    Integers stay as they are where BatchNorm keeps the sign of a channel, and change theirs where
    it turns it (Krishnamoorthi, arXiv 1806.08342, section 3.2.2). So this is exact but for the
    bias, which is rounded to a whole number of `input_scale` times the weight's scale.

    Parameters
    ----------
    layer : static, its quantizers initialized
    input_scale : of the uint8 input
    shift : added to the bias, for what comes after the layer
    """
    weight, quantizer = _weight_of(layer)
    scales = quantizer.scale.expand(len(weight)).double()
    integers = (weight.double() / _rows(scales, weight)).round().clamp(*WEIGHT_RANGE)
    factor, bias = _affine(layer, len(weight))
    bias = bias + shift
    signs = torch.where(factor < 0, -1.0, 1.0)
    integers, wanted = integers * _rows(signs, integers), scales * factor.abs()
    coarser = _scales(wanted, bias, input_scale)
    integers = (integers * _rows(wanted / coarser, integers)).round()
    return IntegerWeights(
        integers.numpy().astype(np.int8),
        coarser.numpy().astype(np.float32),
        (bias / (input_scale * coarser)).round().numpy().astype(np.int32),
    )


@torch.no_grad()
def settle_biases(network: nn.Module, images: Tensor) -> None:
    """Round the biases of an INT8 network, in place, to those that its file has.

    What `folded_integers` then folds is exact in all (TFLite's hard sigmoid and logits apart, whose
    biases are rounded with a 3 added, or not at all). The half unit of each bias looks small, but
    it would move one activation in some hundreds to its neighbour, in every layer anew.

    Parameters
    ----------
    network : static, its statistics and ranges final; left in evaluation mode. Without quantizers
        nothing is changed
    images : (n, channels, r, r), on its device, what it takes; they only show which layer sees what
    """
    scales: dict[int, float] = {}
    seen: list[Tensor] = []  # Kept, so that no other tensor gets the same `id`.
    inputs: dict[ConvLayer | LinearLayer, float] = {}

    def quantized(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, ActivationQuantizer)
        if module.enabled:
            scales[id(output)] = float(module.scale.detach())
            seen.append(output)

    def takes(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(module, ConvLayer | LinearLayer)
        if id(arguments[0]) in scales:
            inputs[module] = scales[id(arguments[0])]

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, ActivationQuantizer):
                hooks.callback(module.register_forward_hook(quantized).remove)
            if isinstance(module, ConvLayer | LinearLayer):
                hooks.callback(module.register_forward_pre_hook(takes).remove)
        network.eval()(images)
    for layer, scale in inputs.items():
        _settle(layer, scale)


def _settle(layer: ConvLayer | LinearLayer, input_scale: float) -> None:
    weight, quantizer = _weight_of(layer)
    factor, bias = _affine(layer, len(weight))
    stored = _norm_of(layer) or (layer.conv if isinstance(layer, ConvLayer) else layer.linear)
    if stored.bias is not None:
        wanted = quantizer.scale.expand(len(weight)).double() * factor.abs()
        unit = input_scale * _scales(wanted, bias, input_scale)
        stored.bias.data.add_((bias / unit).round().mul(unit).sub(bias))


def _scales(wanted: Tensor, bias: Tensor, input_scale: float) -> Tensor:
    """Scales of a layer's weights, coarser than `wanted` where a bias would not fit into int32.

    So it is where BatchNorm all but switches a channel off.
    """
    return wanted.maximum(bias.abs() / (input_scale * _LARGEST_BIAS)).clamp_min(_LEAST_SCALE)


def _norm_of(layer: ConvLayer | LinearLayer) -> nn.BatchNorm2d | None:
    return getattr(layer, "norm", None)


def _weight_of(layer: ConvLayer | LinearLayer) -> tuple[Tensor, WeightQuantizer]:
    inner = layer.conv if isinstance(layer, ConvLayer) else layer.linear
    return inner.weight, layer.weight_quantizer


def _affine(layer: ConvLayer | LinearLayer, channels: int) -> tuple[Tensor, Tensor]:
    """What each channel is multiplied with, and what is added then, in float64."""
    inner = layer.conv if isinstance(layer, ConvLayer) else layer.linear
    zeros = inner.weight.new_zeros(channels, dtype=torch.float64)
    bias = zeros if inner.bias is None else inner.bias.double()
    norm = _norm_of(layer)
    if norm is None:
        return zeros + 1, bias
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return factor, norm.bias.double() + factor * (bias - norm.running_mean.double())


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """Values (cout,) that multiply the rows of (cout, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))
