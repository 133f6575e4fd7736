"""What a regressor sees of a runtime kernel: physical base terms, and features of the residual.

The base is a sum of costs that a CPU has for sure (padded multiply-accumulates, bytes moved,
weights loaded); the features let the boosting learn what the base misses, such as tails of
vector registers (channels modulo 4 to 64) and cache conflicts at powers of two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .lowering import ACTIVATIONS, SUM, RuntimeKernel

FloatArray = NDArray[np.float64]

# Filters and pixels of a row that a direct convolution in float computes at a time: four vectors of
# 8 (AVX2) or 16 (AVX-512) filters, for so many pixels as its registers can hold.
_FILTERS_AT_ONCE, _PIXELS_AT_ONCE = (32, 64), (3, 6)
# Bytes of a way of the first cache, and ways of its eight that are left for a window's pixels.
_WAY, _WAYS = 4096, 6
_BEYOND = "_beyond_"
_MODULI = (4, 8, 16, 32, 64)
_ACTIVATION_CODES = {name: code for code, name in enumerate(("none", *ACTIVATIONS, SUM))}
FEATURE_NAMES: tuple[str, ...] = (
    *("hw", "hw_out", "cin", "cout", "kernel_size", "stride", "squeezed"),
    *("log_macs", "log_input", "log_output", "log_weights", "pixels_mod4", "pixels_mod16"),
    *(f"{c}_mod{m}" for c in ("cin", "cout") for m in _MODULI),
    *("cin_pow2", "cout_pow2", "activation", "log_base", "positive"),
)


class Columns:
    """The numbers of n kernels as arrays of shape (n,), with what follows from them."""

    def __init__(self, kernels: Sequence[RuntimeKernel]) -> None:
        rows = [
            (
                *(k.hw, k.cin, k.cout, k.kernel_size, k.stride, k.squeezed),
                *(_ACTIVATION_CODES[k.activation], k.type == "dwconv", k.positive),
            )
            for k in kernels
        ]
        table = np.array(rows, np.int64).reshape(len(rows), 9)
        self.hw, self.cin, self.cout, self.kernel_size, self.stride, self.squeezed = table.T[:6]
        self.activation, self.positive = table.T[6], table.T[8]
        self.hw_out = -(-self.hw // self.stride)
        self.pixels = self.hw_out**2
        self.window = self.kernel_size**2 * np.where(table[:, 7] == 1, 1, self.cin)
        self.inner, self.rows_read = self._inner(), self._rows_read()
        self.outside = (self.hw_out * self.kernel_size) ** 2 - self.rows_read**2
        self.input = self.hw**2 * self.cin
        self.output = self.pixels * self.cout
        self.weights = np.where(
            self.squeezed > 0, 2 * self.cin * self.squeezed, self.window * self.cout
        )

    def _inner(self) -> NDArray[np.int64]:
        """Outputs of a row whose windows lie inside the input."""
        pad = self.kernel_size // 2
        first = -(-pad // self.stride)
        last = np.minimum((self.hw - self.kernel_size + pad) // self.stride, self.hw_out - 1)
        return np.maximum(last - first + 1, 0)

    def _rows_read(self) -> NDArray[np.int64]:
        """Rows within the input that all windows of a column of outputs have together."""
        pad, total = self.kernel_size // 2, np.zeros_like(self.hw)
        for tap in range(int(self.kernel_size.max(initial=0))):
            first = np.maximum(-((tap - pad) // self.stride), 0)
            last = np.minimum((self.hw - 1 + pad - tap) // self.stride, self.hw_out - 1)
            total += np.where(tap < self.kernel_size, np.maximum(last - first + 1, 0), 0)
        return total


def _up(values: NDArray[np.int64], multiple: int) -> NDArray[np.int64]:
    return -(-values // multiple) * multiple


def base_names(kind: str) -> tuple[str, ...]:
    """Names of the base terms of a kernel type, in the order of `base_terms`."""
    return tuple(_terms(kind, Columns([])))


def is_knee(name: str) -> bool:
    """Whether a base term is what exceeds some limit of something else that is a term as well."""
    return _BEYOND in name


def base_terms(kind: str, columns: Columns) -> FloatArray:
    """Physical base terms, shape (n, terms): work and bytes in thousands, and a constant."""
    terms = _terms(kind, columns)
    return np.stack([np.asarray(t, np.float64) for t in terms.values()], axis=1) / 1e3


def _terms(kind: str, c: Columns) -> dict[str, NDArray[np.int64]]:
    # The constant is 1 us per unit once the thousand is divided out.
    one = {"constant": np.full_like(c.hw, 1000)}
    if kind in ("conv1x1", "conv"):
        return _of_convolution(kind, c) | one
    if kind == "dwconv":
        return _of_depthwise(c) | one
    if kind == "linear":
        padded = _up(c.cout, 16) * _up(c.cin, 4)
        # Nothing of it but weights: it follows the caches' sizes and bandwidths closely.
        beyond = _beyond("weights", c.weights, (0.5, 1, 1.5, 2, 2.5))
        return {"padded_macs": padded, "input": c.cin, "output": c.cout, **one, **beyond}
    tail = np.where(c.cin % 16 != 0, c.input, 0)
    terms = {"input": c.input, "input_with_tail": tail, "channels": c.cin, **one}
    if kind == "se":
        terms |= {"weights": c.weights, "pixels": c.pixels, "squeezed": c.squeezed}
        terms |= {"activated_input": np.where(c.activation > 0, c.input, 0)}
    elif kind == "pool":
        # XNNPACK and ONNX Runtime both add up seven pixels at a time.
        terms |= {"seven_pixels": -(-c.pixels // 7) * c.cin}
    elif kind in ACTIVATIONS:
        # Those that a runtime computes in float write four bytes for each they read.
        terms |= _beyond("input", c.input, (0.25, 0.5, 1, 1.4, 2))
    return terms


def _of_convolution(kind: str, c: Columns) -> dict[str, NDArray[np.int64]]:
    # Of so many weights (in float, in INT8) a run begins with none in the caches (`measure`).
    cold = {f"weights_from_{m}m": np.where(c.weights >= m * 1e6, c.weights, 0) for m in (1, 4)}
    return {
        # VNNI works on 16 output channels and 4 input bytes at a time.
        "padded_macs": c.pixels * _up(c.cout, 16) * _up(c.window, 4),
        # AVX2 on 8.
        "padded_macs_by_8": c.pixels * _up(c.cout, 8) * _up(c.window, 4),
        "padded_output": c.pixels * _up(c.cout, 16),
        # With a stride, what is read is gathered first.
        "gathered": np.where(c.stride > 1, c.pixels * c.cin, 0),
        "im2col": np.where(kind == "conv", c.pixels * c.window, 0),
        "input": c.input,
        "output": c.output,
        "weights": c.weights,
        "pixels": c.pixels,
        "activated": _activated(c),
        "outside_macs": _outside(c) * c.cin * _up(c.cout, 8),
        # What starts an operator; a sum may be what it adds to others, which is none.
        "started": np.where(c.activation == _ACTIVATION_CODES[SUM], 0, 1000),
        # Weights that outgrow a cache are fetched anew at every run.
        **_beyond("weights", c.weights, (1, 2)),
        **cold,
        **(_direct(c) if kind == "conv" else {}),
    }


def _of_depthwise(c: Columns) -> dict[str, NDArray[np.int64]]:
    # Pixels that are a power of two of bytes apart share few sets of the first cache, 4 kB a way; a
    # window's pixels then push each other out before the next channels are read.
    crowded = c.window > _WAYS * (_WAY // np.gcd(_WAY, c.cin))
    macs = c.pixels * c.cout * c.window
    return {
        "padded_macs": c.pixels * _up(c.cout, 16) * c.window,
        "macs_with_tail": np.where(c.cout % 16 != 0, macs, 0),
        "indirection": c.pixels * c.window,
        # What begins anew with every row: addresses, borders, what is left of a vector.
        "rows": c.hw_out * c.cout,
        "row_taps": c.hw_out * c.cout * c.kernel_size,
        "crowded_macs": np.where(crowded, macs, 0),
        **_direct_depthwise(c),
        **_grouped_depthwise(c),
        "channels": c.cout,
        "input": c.input,
        "output": c.output,
        "pixels": c.pixels,
        "activated": _activated(c),
        "outside_macs": _outside(c) * _up(c.cout, 8),
    }


def _outside(c: Columns) -> NDArray[np.int64]:
    """Products with what lies outside the image, which is not zero where zero is not 0 itself."""
    return np.where(c.positive == 1, 0, c.outside)


def _activated(c: Columns) -> NDArray[np.int64]:
    return np.where(c.activation > 0, c.output, 0)


def _direct(c: Columns) -> dict[str, NDArray[np.int64]]:
    """Multiply-accumulates of a convolution that reads the input itself, as in float.

    As ONNX Runtime does it (MLAS's NCHWc kernels): rows outside the input are left out, outputs
    whose windows cross its left or right border are computed one by one, the others some at a
    time, and what is left of pixels or filters costs more than its share.
    """
    border, taps = c.hw_out - c.inner, c.rows_read * c.kernel_size * c.cin
    terms: dict[str, NDArray[np.int64]] = {}
    for filters in (8, *_FILTERS_AT_ONCE):
        macs = taps * _up(c.cout, filters)
        terms |= {f"inner_macs_by_{filters}": macs * c.inner}
        terms |= {f"border_macs_by_{filters}": macs * border}
    for pixels in _PIXELS_AT_ONCE:
        terms |= {f"inner_macs_of_{pixels}": taps * _up(c.cout, 8) * _up(c.inner, pixels)}
    return terms


def _direct_depthwise(c: Columns) -> dict[str, NDArray[np.int64]]:
    """The same of a depthwise convolution, whose pixels are left over one by one."""
    macs = c.rows_read * c.kernel_size * _up(c.cout, 8)
    return {
        "inner_macs": macs * c.inner,
        "border_macs": macs * (c.hw_out - c.inner),
        "macs_left_over": macs * (c.inner % _PIXELS_AT_ONCE[0]),
    }


def _grouped_depthwise(c: Columns) -> dict[str, NDArray[np.int64]]:
    """What a depthwise convolution costs for each group of vectors that it computes at a time.

    oneDNN (OpenVINO's INT8) takes up to four vectors of 8 channels at a time, as many as divide
    their number: at 53 vectors it computes one by one, and takes 1.5 times as long as at 52.
    """
    vectors = -(-c.cout // 8)
    at_once = np.ones_like(vectors)
    for count in (2, 3, 4):
        at_once = np.where(vectors % count == 0, count, at_once)
    groups = vectors // at_once
    return {"group_rows": c.hw_out * groups, "group_taps": c.pixels * c.window * groups}


def _beyond(
    what: str, values: NDArray[np.int64], knees: Sequence[float]
) -> dict[str, NDArray[np.int64]]:
    """What of it exceeds each of some millions, for what is slower there."""
    return {f"{what}{_BEYOND}{m:g}m": np.maximum(values - int(m * 1e6), 0) for m in knees}


def residual_features(columns: Columns, base_us: FloatArray) -> FloatArray:
    """Features of the residual, shape (n, len(FEATURE_NAMES))."""
    c = columns
    logs = (c.pixels * c.weights, c.input, c.output, c.weights)
    parts = [
        *(c.hw, c.hw_out, c.cin, c.cout, c.kernel_size, c.stride, c.squeezed),
        *(np.log1p(np.asarray(v, np.float64)) for v in logs),
        *(c.pixels % 4, c.pixels % 16),
        *(channels % m for channels in (c.cin, c.cout) for m in _MODULI),
        *(c.cin & -c.cin, c.cout & -c.cout),
        c.activation,
        np.log(base_us),
        c.positive,
    ]
    return np.stack([np.asarray(p, np.float64) for p in parts], axis=1)
