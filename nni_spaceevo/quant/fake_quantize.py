"""LSQ+'s fake quantization while training: values, and gradients of tensor, scale and zero point.

torch's own operation is not vectorized on a CPU and takes longer than the convolution after it.
Here it is a chain of vectorized ones that goes through a tensor piece by piece, so that what one
writes the next finds in the cache. The values are those of torch's operation, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Elements of a piece, for each thread: a few pieces fit into a core's own cache.
_PIECE = 1 << 15


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int], factor: float
) -> Tensor:
    """Quantize a tensor with one scale and one zero point.

    Parameters
    ----------
    x : of any shape, float32
    scale, zero_point : (1,); the zero point is rounded and clamped, its gradient passes that
    bounds : least and greatest integer
    factor : of the gradients of scale and zero point, LSQ's gradient scale

    Returns
    -------
    `x` on the grid, same shape
    """
    quantized: Tensor
    if x.is_cuda:
        if not x.numel():
            # A process without images. Its gradients are 0, for which torch has the scale itself.
            return x * scale + zero_point
        # A GPU's kernel is one pass already; pieces and numbers would have to wait for each other.
        quantized = torch._fake_quantize_learnable_per_tensor_affine(
            x, scale, zero_point, *bounds, factor
        )
    else:
        quantized = _FakeQuantize.apply(x, scale, zero_point, bounds, factor)
    return quantized


def fake_quantize_rows(x: Tensor, scale: Tensor, bounds: tuple[int, int], factor: float) -> Tensor:
    """Quantize symmetrically, with one scale for each of the first dimension.

    Parameters
    ----------
    x : (n, …), float32
    scale : (n,)
    bounds, factor : as of `fake_quantize`
    """
    quantized: Tensor
    if x.is_cuda:
        zeros = torch.zeros_like(scale)
        quantized = torch._fake_quantize_learnable_per_channel_affine(
            x, scale, zeros, 0, *bounds, factor
        )
    else:
        quantized = _FakeQuantizeRows.apply(x, scale, bounds, factor)
    return quantized


class _FakeQuantize(torch.autograd.Function):
    """See `fake_quantize`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bounds: tuple[int, int],
        factor: float,
    ) -> Tensor:
        low, high = bounds
        s, inverse = float(scale), float(1 / scale)
        zero = float(zero_point.round().clamp(low, high))
        x = _dense(x)
        y = torch.empty_like(x)
        for source, target in _pieces(x, y):
            torch.mul(source, inverse, out=target)
            target.round_().clamp_(low - zero, high - zero).mul_(s)
        ctx.save_for_backward(x, y, scale)
        ctx.ends = ((low - zero - 0.5) * s, (high - zero + 0.5) * s)
        ctx.scale, ctx.factor = s, factor
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Of the scale: (y - x) / s where nothing was clipped, y / s elsewhere.
        x, y, scale = ctx.saved_tensors
        learns_zero = ctx.needs_input_grad[2]
        through = torch.empty_like(x)
        of_scale = of_zero = 0.0
        for g, source, quantized, target in _pieces(_like(gradients[0], x), x, y, through):
            torch.ops.aten.hardtanh_backward(g, source, *ctx.ends, grad_input=target)
            clipped = g - target
            # Not as two products of g: they are large, and their difference is small.
            of_scale += float(torch.dot(target, quantized - source) + torch.dot(clipped, quantized))
            if learns_zero:
                of_zero += float(clipped.sum())
        to_scale = scale.new_full((1,), of_scale / ctx.scale * ctx.factor)
        to_zero = scale.new_full((1,), -of_zero * ctx.scale * ctx.factor)
        return through, to_scale, to_zero if learns_zero else None, None, None


class _FakeQuantizeRows(torch.autograd.Function):
    """See `fake_quantize_rows`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, bounds: tuple[int, int], factor: float
    ) -> Tensor:
        s = scale.view(-1, *[1] * (x.dim() - 1))
        y = (x * (1 / s)).round_().clamp_(*bounds).mul_(s)
        ctx.save_for_backward(x, y, s)
        ctx.bounds, ctx.factor = bounds, factor
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, s = ctx.saved_tensors
        (gradient,), (low, high) = gradients, ctx.bounds
        inside = (x > (low - 0.5) * s) & (x < (high + 0.5) * s)
        of_scale = (gradient * torch.where(inside, y - x, y)).flatten(1).sum(1)
        return gradient * inside, of_scale / s.flatten() * ctx.factor, None, None


def _dense(x: Tensor) -> Tensor:
    """`x` in memory without gaps, in whichever order its dimensions are."""
    is_dense = x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )
    return x if is_dense else x.contiguous()


def _like(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the memory order of `other`, which is dense."""
    return x if x.stride() == other.stride() else torch.empty_like(other).copy_(x)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of tensors of one shape and order in memory, each flat."""
    flat = (t.as_strided((t.numel(),), (1,)) for t in tensors)
    size = _PIECE * torch.get_num_threads()
    return zip(*(t.split(size) for t in flat), strict=True)
