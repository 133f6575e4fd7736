"""The package's layers as one would write them first, for what the package is compared with.

They copy each weight's slice, fake-quantize by a chain of tensor operations, and leave every
convolution to torch. Values and gradients are the package's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from nni_spaceevo.hyperspace import ConvStep
from nni_spaceevo.network import depthwise, fourier, layers
from nni_spaceevo.network.layers import ConvLayer
from nni_spaceevo.quant import ActivationQuantizer, WeightQuantizer
from nni_spaceevo.quant.lsq import ACTIVATION_RANGE, WEIGHT_RANGE


class Round(torch.autograd.Function):
    """Rounding with the gradient of the identity: the straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Rounded values."""
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient as it is."""
        return gradients[0]


class Clip(torch.autograd.Function):
    """Clipping that passes the gradient wherever it changes nothing; `clamp` stops it at the ends.

    Integers often lie at the ends.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: int, high: int) -> Tensor:
        """Clipped values."""
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient where nothing was clipped."""
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        return gradients[0] * ((x >= low) & (x <= high)), None, None


def with_gradient(x: Tensor, factor: float) -> Tensor:
    """The same, its gradient times a factor."""
    scaled = x * factor
    return x.detach() + (scaled - scaled.detach())


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int], factor: float
) -> Tensor:
    """LSQ+ by a chain of tensor operations; `scale` and `zero_point` broadcast to `x`."""
    scale = with_gradient(scale, factor)
    offset = Round.apply(with_gradient(zero_point, factor))
    # As the fused operation computes it: where a value is halfway, a division may round otherwise.
    integers = Clip.apply(Round.apply(x * (1 / scale)) + offset, *bounds)
    quantized: Tensor = (integers - offset) * scale
    return quantized


def plain_activation(self: ActivationQuantizer, x: Tensor) -> Tensor:
    """`ActivationQuantizer.forward` while training."""
    if not self.enabled:
        return x
    x = x.float()
    factor = 1 / math.sqrt(x.numel() * ACTIVATION_RANGE[1])
    return fake_quantize(x, self.scale, self.zero_point, ACTIVATION_RANGE, factor)


def plain_weight(self: WeightQuantizer, weight: Tensor, largest: Tensor) -> Tensor:
    """`WeightQuantizer.forward` while training, one scale an output channel."""
    if not self.enabled:
        return weight
    factor = 1 / math.sqrt(weight[0].numel() * WEIGHT_RANGE[1])
    scale = self.scale[: len(weight)].view(-1, *[1] * (weight.dim() - 1))
    return fake_quantize(weight, scale, torch.zeros_like(scale), WEIGHT_RANGE, factor)


_slice = ConvLayer._weight


def plain_slice(self: ConvLayer, step: ConvStep) -> Tensor:
    """`ConvLayer._weight` as a copy, in the order in memory of the whole weight."""
    weight, usual = self.conv.weight, torch.contiguous_format
    # Weights of 1x1 and depthwise convolutions are in both orders at once but for their strides,
    # from which a convolution takes the order.
    is_usual = weight.stride() == torch.empty_like(weight, memory_format=usual).stride()
    return _slice(self, step).contiguous(memory_format=usual if is_usual else torch.channels_last)


@contextmanager
def plain_layers() -> Iterator[None]:
    """Layers compute plainly within."""
    with ExitStack() as stack:
        for kind, name, function in (
            (ActivationQuantizer, "forward", plain_activation),
            (WeightQuantizer, "forward", plain_weight),
            (ConvLayer, "_weight", plain_slice),
            (layers, "quantized_activation", lambda *_: None),
            (fourier, "saves_time", lambda *_: False),
            (depthwise, "saves_time", lambda *_: False),
        ):
            stack.enter_context(mock.patch.object(kind, name, function))
        yield
