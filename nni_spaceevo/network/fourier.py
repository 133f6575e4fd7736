"""Large dense kernels by way of frequencies, for training on a CPU.

Where a map is small and a kernel large, most of a convolution's arithmetic is saved by multiplying
spectra (Mathieu, Henaff and LeCun, "Fast Training of Convolutional Networks through FFTs", ICLR
2014): 7x7 on 10x10 pixels takes a fifth of the products. The spectra are products with matrices of
cosines and sines, not fast transforms: at a dozen points a side a matrix product is quicker, and
its result lies frequency by frequency, as the product of the spectra wants it. Results differ from
`torch.nn.functional.conv2d`'s by rounding alone, and are the same at every call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Below these the direct convolution is as quick: where it has fast ways of its own (3x3), where
# fewer products do not make up for more memory, where a dozen operations cost more than one.
_LEAST_KERNEL, _LEAST_GAIN, _LEAST_PRODUCTS = 5, 2.75, 2**27
# Of spectra of kernels at a time: 16 MB.
_NUMBERS = 2**22


def saves_time(x: Tensor, weight: Tensor, stride: int, groups: int) -> bool:
    """Whether `fourier_conv2d` is quicker than `conv2d` with `k // 2` pixels of padding.

    Device and shapes alone decide, so that the answer is the same at every call.

    Parameters
    ----------
    x : (n, cin, h, w)
    weight : (cout, cin / groups, k, k), k odd
    stride, groups : of the convolution
    """
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or stride > 1 or groups > 1:
        return False
    direct, fourier = products(x.shape, weight.shape)
    large = weight.shape[-1] >= _LEAST_KERNEL and direct >= _LEAST_PRODUCTS
    return large and direct > _LEAST_GAIN * fourier


def products(images: Sequence[int], weight: Sequence[int]) -> tuple[int, int]:
    """How many products of two numbers `conv2d` takes, and `fourier_conv2d`.

    Parameters
    ----------
    images : n, cin, h, w
    weight : cout, cin, k, k
    """
    (n, cin, h, w), (cout, _, kernel, _) = images, weight
    high, half = h + kernel // 2, (w + kernel // 2) // 2 + 1
    # Complex numbers are two real ones, and the product of two takes four.
    of_images = 2 * half * h * (w + 2 * high) * n * (cin + cout)
    of_kernels = 2 * high * half * kernel**2 * cin * cout
    fourier = of_images + of_kernels + 4 * high * half * n * cin * cout
    return n * h * w * kernel**2 * cin * cout, fourier


def fourier_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """`conv2d(x, weight, padding=k // 2)`, up to rounding.

    Parameters
    ----------
    x : (n, cin, h, w)
    weight : (cout, cin, k, k), k odd

    Returns
    -------
    (n, cout, h, w), channels last in memory
    """
    result: Tensor = _FourierConv.apply(x, weight)
    return result


@dataclass(frozen=True)
class _Transforms:
    """Matrices from pixels to frequencies (v, u), of which u counts waves along columns.

    Attributes
    ----------
    along_rows : (2 v, w), a row of cosines and one of sines for each frequency; of those that
        have conjugates of one another, for images are real, only one is there
    back_along_rows : the same, each times its share of an image
    along_columns : (2 u, 2 h), of complex numbers
    taps : (v u, 2, k k), of a kernel in both directions at once
    """

    along_rows: Tensor
    back_along_rows: Tensor
    along_columns: Tensor
    taps: Tensor

    def of_images(self, x: Tensor, along_rows: Tensor) -> Tensor:
        """Spectra of images (n, c, h, w): (v u, 2 n, c), all real parts before the others."""
        n, c, h, w = x.shape
        pixels = x.permute(3, 2, 0, 1).reshape(w, h * n * c)
        rows = (along_rows @ pixels).view(-1, 2 * h, n * c)
        return (self.along_columns @ rows).view(-1, 2 * n, c)

    def to_images(self, spectra: Tensor, along_rows: Tensor, out: Tensor) -> Tensor:
        """`of_images` transposed, written to `out`."""
        _, n, c = spectra.shape
        n, h, w = n // 2, self.along_columns.shape[1] // 2, along_rows.shape[1]
        rows = self.along_columns.mT @ spectra.view(-1, len(self.along_columns), n * c)
        pixels = along_rows.mT @ rows.view(len(along_rows), h * n * c)
        return out.copy_(pixels.view(w, h, n, c).permute(2, 3, 1, 0))

    def of_kernels(self, taps: Tensor, some: slice) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts of some frequencies of kernels' spectra, (f, cout, cin) each.

        Parameters
        ----------
        taps : (k k, cout, cin)
        some : frequencies
        """
        rows = self.taps[some].flatten(0, 1)
        spectra = (rows @ taps.flatten(1)).view(-1, 2, *taps.shape[1:])
        return spectra[:, 0], spectra[:, 1]

    def parts(self, cout: int, cin: int) -> list[slice]:
        """Frequencies a few at a time: spectra of (cout, cin) kernels are many times as large."""
        few = max(1, _NUMBERS // (2 * cout * cin))
        return [slice(i, i + few) for i in range(0, len(self.taps), few)]


@lru_cache(maxsize=64)
def _transforms(height: int, width: int, kernel: int, dtype: torch.dtype) -> _Transforms:
    reach = kernel // 2
    # What taps reach beyond an edge must be zeros, not the opposite edge.
    high, wide = height + reach, width + reach
    half = wide // 2 + 1
    # The others are conjugates of these.
    shares = [(1 if -v % wide == v else 2) / (high * wide) for v in range(half)]

    def angles(frequencies: int, period: int, places: range) -> Tensor:
        """(frequencies, places)."""
        turns = torch.arange(frequencies, dtype=torch.float64) / period
        return 2 * math.pi * turns[:, None] * torch.tensor(places)

    def parts(a: Tensor) -> Tensor:
        """Of exp(-i a), (..., 2, places)."""
        return torch.stack([a.cos(), -a.sin()], -2)

    along_rows = parts(angles(half, wide, range(width)))
    a = angles(high, high, range(height))
    along_columns = torch.cat([parts(a), parts(a + math.pi / 2).neg()], -1)
    around = range(-reach, reach + 1)
    both = angles(high, high, around)[:, :, None] + angles(half, wide, around)[:, None, None, :]
    matrices = (
        along_rows.flatten(0, 1),
        (along_rows * torch.tensor(shares, dtype=torch.float64)[:, None, None]).flatten(0, 1),
        along_columns.flatten(0, 1),
        parts(both.flatten(2)).flatten(0, 1),
    )
    return _Transforms(*(m.to(dtype) for m in matrices))


class _FourierConv(torch.autograd.Function):
    """The convolution and its gradients.

    A complex number of an image is a row, its two parts as they are and, turned by a quarter, in
    `_turned`: for taps are added to places, a kernel's spectrum is conjugated, and
    (r + i m) (a - i b) is (r, m) a + (m, -r) b. Spectra are not kept for the backward pass: a
    kernel's is several times as large as the kernel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """(n, cin, h, w) and (cout, cin, k, k) to (n, cout, h, w)."""
        ctx.save_for_backward(x, weight)
        (cout, cin), found = weight.shape[:2], _transforms_of(x, weight)
        y = _empty(x, len(x), cout, *x.shape[2:])
        images = found.of_images(x, found.along_rows)
        taps = _taps(weight)
        spectra = x.new_empty(*images.shape[:2], cout)
        for some in found.parts(cout, cin):
            real, imaginary = found.of_kernels(taps, some)
            torch.bmm(images[some], real.mT, out=spectra[some])
            spectra[some].baddbmm_(_turned(images[some]), imaginary.mT)
        return found.to_images(spectra, found.back_along_rows, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of images and of kernels."""
        (x, weight), (y,) = ctx.saved_tensors, gradients
        (cout, cin, kernel, _), found = weight.shape, _transforms_of(x, weight)
        of_x = _empty(x, *x.shape) if ctx.needs_input_grad[0] else None
        of_weight = _empty(x, *weight.shape) if ctx.needs_input_grad[1] else None
        spectra = found.of_images(y, found.back_along_rows)
        if of_x is not None:
            taps = _taps(weight)
            images = x.new_empty(*spectra.shape[:2], cin)
            for some in found.parts(cout, cin):
                real, imaginary = found.of_kernels(taps, some)
                torch.bmm(spectra[some], real, out=images[some])
                images[some].sub_(_turned(spectra[some] @ imaginary))
            found.to_images(images, found.along_rows, of_x)
        if of_weight is not None:
            images = found.of_images(x, found.along_rows)
            taps = x.new_zeros(kernel * kernel, cout * cin)
            for some in found.parts(cout, cin):
                kernels = x.new_empty(len(images[some]), 2, cout, cin)
                for part, rows in enumerate((images[some], _turned(images[some]))):
                    torch.bmm(spectra[some].mT, rows, out=kernels[:, part])
                taps.addmm_(found.taps[some].flatten(0, 1).mT, kernels.view(-1, cout * cin))
            of_weight.copy_(taps.view(kernel, kernel, cout, cin).permute(2, 3, 0, 1))
        return of_x, of_weight


def _transforms_of(x: Tensor, weight: Tensor) -> _Transforms:
    return _transforms(x.shape[2], x.shape[3], weight.shape[-1], x.dtype)


def _empty(like: Tensor, *shape: int) -> Tensor:
    """To be taken before what is freed again, or holes in memory are left."""
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _taps(weight: Tensor) -> Tensor:
    """(cout, cin, k, k) as (k k, cout, cin)."""
    return weight.permute(2, 3, 0, 1).flatten(0, 1).contiguous()


def _turned(spectra: Tensor) -> Tensor:
    """Times -i: (r, m) to (m, -r)."""
    real, imaginary = spectra.chunk(2, dim=1)
    return torch.cat([imaginary, -real], dim=1)
