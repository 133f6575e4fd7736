"""BatchNorm folded into the convolution before it, in floats and, exactly, in integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..network.layers import ConvLayer, LinearLayer
from ..quant import WeightQuantizer
from ..quant.lsq import WEIGHT_RANGE

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
    # Where BatchNorm all but switches a channel off, its bias needs a coarser scale.
    coarser = wanted.maximum(bias.abs() / (input_scale * _LARGEST_BIAS)).clamp_min(_LEAST_SCALE)
    integers = (integers * _rows(wanted / coarser, integers)).round()
    return IntegerWeights(
        integers.numpy().astype(np.int8),
        coarser.numpy().astype(np.float32),
        (bias / (input_scale * coarser)).round().numpy().astype(np.int32),
    )


def _weight_of(layer: ConvLayer | LinearLayer) -> tuple[Tensor, WeightQuantizer]:
    inner = layer.conv if isinstance(layer, ConvLayer) else layer.linear
    return inner.weight, layer.weight_quantizer


def _affine(layer: ConvLayer | LinearLayer, channels: int) -> tuple[Tensor, Tensor]:
    """What each channel is multiplied with, and what is added then, in float64."""
    inner = layer.conv if isinstance(layer, ConvLayer) else layer.linear
    zeros = torch.zeros(channels, dtype=torch.float64)
    bias = zeros if inner.bias is None else inner.bias.double()
    norm: nn.BatchNorm2d | None = getattr(layer, "norm", None)
    if norm is None:
        return zeros + 1, bias
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return factor, norm.bias.double() + factor * (bias - norm.running_mean.double())


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """Values (cout,) that multiply the rows of (cout, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))
