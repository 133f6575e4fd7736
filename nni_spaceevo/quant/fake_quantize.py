"""LSQ+'s fake quantization while training: values, and gradients of tensor, scale and zero point.

torch's own operation is not vectorized on a CPU and takes longer than the convolution after it.
Here it is a chain of vectorized ones that goes through a tensor piece by piece, so that what one
writes the next finds in the cache. The values are those of torch's operation, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of a piece, for each thread: a few pieces fit into a core's caches, and calls are few.
_PIECE = 1 << 17
# Activations that go with their quantizers.
FUSED = ("relu", "relu6", "hswish", "hsigmoid")

# A scale and a zero point, (1,) each.
Range = tuple[Tensor, Tensor]


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
        quantized = _FakeQuantizeOnGPU.apply(x, scale, zero_point, bounds, factor)
    else:
        quantized = _FakeQuantize.apply(x, "none", scale, zero_point, None, None, bounds, factor)
    return quantized


def fake_quantize_activated(
    x: Tensor,
    activation: str,
    after: Range,
    before: Range | None,
    bounds: tuple[int, int],
    factor: float,
) -> Tensor:
    """An activation between two quantizers, or before one, in one pass through memory; on a CPU.

    Parameters
    ----------
    x : of any shape, float32
    activation : one of `FUSED`
    after : scale and zero point of the result; where it is never negative the zero point is 0
    before : of what the activation sees; None for those without
    bounds, factor : as of `fake_quantize`

    Returns
    -------
    same shape, and the same values as of one after the other
    """
    learned = (*after, *(before or (None, None)))
    quantized: Tensor = _FakeQuantize.apply(x, activation, *learned, bounds, factor)
    return quantized


def fake_quantize_rows(x: Tensor, scale: Tensor, bounds: tuple[int, int], factor: float) -> Tensor:
    """Quantize symmetrically, with one scale for each of the first dimension.

    Parameters
    ----------
    x : (n, …), float32
    scale : (n,)
    bounds, factor : as of `fake_quantize`
    """
    quantized: Tensor = _FakeQuantizeRows.apply(x, scale, bounds, factor)
    return quantized


class _Grid:
    """Scale and zero point as numbers."""

    def __init__(self, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int]) -> None:
        low, high = bounds
        zero = float(zero_point.round().clamp(low, high))
        self.scale, self._inverse = float(scale), float(1 / scale)
        self._least, self._greatest = low - zero, high - zero
        # Between these nothing is clipped.
        self.ends = (self._least - 0.5) * self.scale, (self._greatest + 0.5) * self.scale

    def put(self, source: Tensor, target: Tensor) -> Tensor:
        """Write `source` on the grid into `target`, which may be the same."""
        torch.mul(source, self._inverse, out=target)
        return target.round_().clamp_(self._least, self._greatest).mul_(self.scale)


class _Sums:
    """What a tensor's pieces add to the gradients of a scale and a zero point."""

    def __init__(self, grid: _Grid, factor: float, learns_zero: bool) -> None:
        self._grid, self._factor, self._learns_zero = grid, factor, learns_zero
        self._of_scale = self._of_zero = 0.0

    def add(self, gradient: Tensor, source: Tensor, quantized: Tensor, through: Tensor) -> None:
        """Of one piece; `through` is the gradient where nothing was clipped, 0 elsewhere."""
        # Of the scale: (quantized - source) / s where nothing was clipped, quantized / s elsewhere.
        # The difference of these products is small; it keeps about four digits, more than a batch
        # knows.
        self._of_scale += float(torch.dot(gradient, quantized)) - float(torch.dot(through, source))
        if self._learns_zero:
            self._of_zero += float((gradient - through).sum())

    def gradients(self, scale: Tensor) -> tuple[Tensor, Tensor | None]:
        """Those of scale and zero point, each (1,), of the kind of `scale`."""
        of_scale = scale.new_full((1,), self._of_scale / self._grid.scale * self._factor)
        if not self._learns_zero:
            return of_scale, None
        return of_scale, scale.new_full((1,), -self._of_zero * self._grid.scale * self._factor)


class _FakeQuantize(torch.autograd.Function):
    """See `fake_quantize` and `fake_quantize_activated`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        activation: str,
        scale: Tensor,
        zero_point: Tensor,
        scale_before: Tensor | None,
        zero_before: Tensor | None,
        bounds: tuple[int, int],
        factor: float,
    ) -> Tensor:
        after, before = _Grid(scale, zero_point, bounds), None
        if scale_before is not None and zero_before is not None:
            before = _Grid(scale_before, zero_before, bounds)
        x = _dense(x)
        y = torch.empty_like(x)
        for source, target in _pieces(x, y):
            after.put(_activated(activation, before, source, target), target)
        ctx.save_for_backward(x, y, scale)
        ctx.activation, ctx.after, ctx.before, ctx.factor = activation, after, before, factor
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale = ctx.saved_tensors
        after, before, learns = ctx.after, ctx.before, ctx.needs_input_grad
        ends = after.ends
        if ctx.activation == "relu":
            ends = max(ends[0], 0.0), ends[1]
        sums = _Sums(after, ctx.factor, learns[3])
        before_sums = None if before is None else _Sums(before, ctx.factor, learns[5])
        through = torch.empty_like(x)
        for g, source, quantized, target in _pieces(_like(gradients[0], x), x, y, through):
            # Computed once more: in pieces that takes less time than to keep it.
            inner = source if before is None else before.put(source, torch.empty_like(source))
            outer = _activated(ctx.activation, None, inner, None)
            _passed(g, outer, ends, target)
            sums.add(g, outer, quantized, target)
            if ctx.activation == "relu6":
                _passed(target, source, (0.0, 6.0), target)
            elif before is not None and before_sums is not None:
                back = _DERIVATIVES[ctx.activation](target, inner)
                _passed(back, source, before.ends, target)
                before_sums.add(back, source, inner, target)
        of_before = before_sums.gradients(scale) if before_sums else (None, None)
        return through, None, *sums.gradients(scale), *of_before, None, None


_DERIVATIVES = {
    "hswish": torch.ops.aten.hardswish_backward,
    "hsigmoid": torch.ops.aten.hardsigmoid_backward,
}


def _activated(
    activation: str, before: _Grid | None, source: Tensor, target: Tensor | None
) -> Tensor:
    """What the last grid is given: `source` on the grid before, activated; into `target` if any.

    A ReLU is nothing here: it ends where the grid does, at 0.
    """
    if before is not None and target is not None:
        source = before.put(source, target)
    if activation == "relu6":
        return torch.clamp(source, 0, 6, out=target)
    if activation == "hswish":
        return F.hardswish(source, inplace=target is not None)
    if activation == "hsigmoid":
        return F.hardsigmoid(source, inplace=target is not None)
    return source


def _passed(gradient: Tensor, x: Tensor, ends: tuple[float, float], target: Tensor) -> None:
    """Write the gradient where `x` lies between two ends, and 0 elsewhere."""
    torch.ops.aten.hardtanh_backward(gradient, x, *ends, grad_input=target)


class _FakeQuantizeOnGPU(torch.autograd.Function):
    """See `fake_quantize`. A GPU's operation is one pass already.

    Scale and zero point stay tensors: as numbers, which torch's learnable operation makes of them,
    the processor would have to wait for the GPU at every quantizer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bounds: tuple[int, int],
        factor: float,
    ) -> Tensor:
        x = _dense(x)
        zero = zero_point.round().clamp(*bounds).int()
        enabled = torch.ones(1, dtype=torch.int64, device=x.device)
        quantize = torch.ops.aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams
        y, inside = quantize(x, scale, zero, enabled, *bounds)
        ctx.save_for_backward(x, y, inside, scale)
        ctx.factor = factor
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, inside, scale = ctx.saved_tensors
        gradient = _like(gradients[0], x)
        through = gradient * inside
        g, source, quantized, passed = (_flat(t) for t in (gradient, x, y, through))
        # As of `_Sums`.
        of_scale = (torch.dot(g, quantized) - torch.dot(passed, source)) / scale * ctx.factor
        of_zero = None
        if ctx.needs_input_grad[2]:
            of_zero = (through.sum() - gradient.sum()) * scale * ctx.factor
        return through, of_scale, of_zero, None, None


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


def _flat(x: Tensor) -> Tensor:
    """A dense `x` as it lies in memory, (elements,)."""
    return x.as_strided((x.numel(),), (1,))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of tensors of one shape and order in memory, each flat."""
    flat = (_flat(t) for t in tensors)
    size = _PIECE * torch.get_num_threads()
    return zip(*(t.split(size) for t in flat), strict=True)
