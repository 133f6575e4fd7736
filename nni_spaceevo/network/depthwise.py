"""Depthwise convolutions with wide kernels, the gradients of whose weights come by columns.

Where a processor has AVX2 but not AVX-512, oneDNN has a kernel of its own for these gradients only
up to three columns; wider ones it computes as if eight channels were dense, which takes several
times as long. So it is asked for the three columns in the middle together and for the others one by
one, of images that are moved to the side. Results differ from `torch.nn.functional.conv2d`'s by
rounding alone, and are the same at every call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.backends import cpu

_AT_ONCE = 3
# Of few numbers a gradient takes less than several calls do.
_LEAST_NUMBERS = 2**18
# Copied at a time, so that copies stay in the cache: 4 MB.
_NUMBERS = 2**20


def saves_time(x: Tensor, weight: Tensor, stride: int, groups: int) -> bool:
    """Whether `depthwise_conv2d` trains quicker than `conv2d` with `k // 2` pixels of padding.

    The processor and the shapes alone decide, so that the answer is the same at every call.

    Parameters
    ----------
    x : (n, cin, h, w)
    weight : (cout, cin / groups, k, k), k odd
    stride, groups : of the convolution
    """
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    depthwise = 1 < groups == len(weight) == x.shape[1]
    large = weight.shape[-1] > _AT_ONCE and x.numel() >= _LEAST_NUMBERS
    return depthwise and large and stride == 1 and cpu.get_cpu_capability() == "AVX2"


def depthwise_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """`torch.nn.functional.conv2d` with `k // 2` pixels of padding and a group a channel.

    Parameters
    ----------
    x : (n, c, h, w)
    weight : (c, 1, k, k), k odd

    Returns
    -------
    (n, c, h, w), with channels last in memory if those of `x` are
    """
    result: Tensor = _DepthwiseConv.apply(x, weight)
    return result


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        kernel, of_x, of_weight = weight.shape[-1], None, None
        # Weights first: what is copied for them leaves no hole in memory below what stays.
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(gradient, x, kernel)
        if ctx.needs_input_grad[0]:
            of_x = _torchs(gradient, x, weight, kernel // 2, weight=False)
        return of_x, of_weight


def _weight_gradient(gradient: Tensor, x: Tensor, kernel: int) -> Tensor:
    """Gradient (c, 1, k, k) of the weights, of `gradient` and `x`, both (n, c, h, w)."""
    c, half = x.shape[1], kernel // 2
    total = x.new_zeros(c, 1, kernel, kernel)
    first = half - _AT_ONCE // 2
    columns = [(first, _AT_ONCE), *((i, 1) for i in range(kernel) if not 0 <= i - first < _AT_ONCE)]
    for gradients, images in _parts(gradient, x, half):
        for i, width in columns:
            moved = images.moved(i + width // 2 - half)
            like = x.new_empty(c, 1, kernel, width)
            total[..., i : i + width] += _torchs(
                gradients.moved(0), moved, like, width // 2, weight=True
            )
    return total


class _Images:
    """Images in rows that end with zeros, so that they can be moved to the side.

    Moved is where in memory a tensor begins: what leaves a row comes into its neighbour among the
    zeros. Some stand before the first row and after the last too.

    Parameters
    ----------
    like : so many images of this size, (n, c, h, w)
    zeros : at the end of each row
    """

    def __init__(self, like: Tensor, zeros: int) -> None:
        n, c, h, w = like.shape
        self._zeros, self._shape = zeros, (n, h, w + zeros, c)
        self._pixels = like.new_zeros(n * h * (w + zeros) + 2 * zeros, c)
        self._seen = self.moved(0)[..., :w]

    def put(self, x: Tensor) -> Self:
        """Hold other images, as many of the same size or fewer."""
        self._seen[: len(x)] = x
        self._shape = (len(x), *self._shape[1:])
        return self

    def moved(self, by: int) -> Tensor:
        """Pixels are those that are `by` to the right, |by| <= zeros; (n, c, h, w + zeros)."""
        pixels = self._pixels[self._zeros + by :][: math.prod(self._shape[:3])]
        return pixels.view(self._shape).permute(0, 3, 1, 2)


def _parts(gradient: Tensor, x: Tensor, zeros: int) -> Iterator[tuple[_Images, _Images]]:
    """A few gradients and images at a time."""
    count = max(1, _NUMBERS * len(x) // x.numel())
    gradients, images = _Images(gradient[:count], zeros), _Images(x[:count], zeros)
    for of_result, some in zip(gradient.split(count), x.split(count), strict=True):
        yield gradients.put(of_result), images.put(some)


def _torchs(gradient: Tensor, x: Tensor, like: Tensor, side: int, *, weight: bool) -> Tensor:
    """Torch's gradient of `x` or of the weight, which is `like`.

    Parameters
    ----------
    side : pixels of padding to the left and the right
    weight : whether its gradient is asked for
    """
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        gradient,
        x,
        like,
        None,
        stride=(1, 1),
        padding=(like.shape[-2] // 2, side),
        dilation=(1, 1),
        transposed=False,
        output_padding=(0, 0),
        groups=len(like),
        output_mask=(not weight, weight, False),
    )
    return found[weight]
