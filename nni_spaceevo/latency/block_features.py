"""What a regressor sees of a whole block: the summed costs of its kernels, and its own numbers.

A device that was measured by blocks has one regressor a block type. Its physical base sums over the
block's abstract kernels what each of them costs for sure, so it follows any declared recipe; the
features of the residual are those of the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..hyperspace import BlockConfig, block_kernels
from .features import FloatArray
from .lowering import BLOCK, RuntimeKernel

IntArray = NDArray[np.int64]

# Larger than any feature map and a power of two: `_FAR // hw` is the stride passed so far.
_FAR = 1 << 16
_OPS = ("conv", "dwconv", "se", "add", "pool", "linear")
# ReLU and ReLU6 are part of requantizing; these are computed.
_COMPUTED = ("hswish", "swish", "hsigmoid")

BLOCK_TERMS: tuple[str, ...] = (
    *("padded_macs_1x1", "padded_macs_kxk", "im2col", "im2col_with_tail", "padded_output"),
    *("depthwise_macs", "depthwise_with_tail", "indirection", "input", "output"),
    *("weights_1x1", "weights_kxk", "se_input", "se_weights", "pooled"),
    *("added", "activated", "pixels", "kernels", "constant"),
)
BLOCK_FEATURE_NAMES: tuple[str, ...] = (
    *("hw", "hw_out", "cin", "cout", "kernel_size", "expand", "stride", "hidden", "kernels"),
    *("log_macs_1x1", "log_macs_kxk", "log_macs_depthwise", "log_input", "log_output"),
    *("log_macs", "log_weights", "pixels_mod4", "pixels_mod16"),
    *(f"hidden_mod{m}" for m in (8, 16, 32, 64)),
    *(f"{c}_mod{m}" for c in ("cin", "cout") for m in (16, 32, 64)),
    *("hidden_pow2", "cin_pow2", "cout_pow2", "identity", "hidden_over_cin", "cout_over_cin"),
    "log_base",
)


@lru_cache(maxsize=1 << 18)
def _layout(config: BlockConfig) -> tuple[tuple[int, ...], ...]:
    """Numbers of a block's kernels, whatever its input's size; see `BlockColumns`."""
    return tuple(
        (
            _OPS.index(k.op),
            _FAR // k.hw,
            k.cin,
            k.cout,
            k.kernel_size,
            k.stride,
            k.squeezed,
            k.activation in _COMPUTED,
        )
        for k in block_kernels(config, _FAR)
    )


def _config(block: RuntimeKernel) -> BlockConfig:
    return BlockConfig(
        block.type.removeprefix(BLOCK),
        block.cin,
        block.cout,
        block.kernel_size,
        block.expand or None,
        block.stride,
        block.activation,
    )


class BlockColumns:
    """The numbers of n blocks as arrays of shape (n,), and of their m kernels of shape (m,).

    Attributes
    ----------
    hw, cin, cout, kernel_size, stride, expand : of the blocks
    hw_out, pixels : height and width, and their product, of the blocks' outputs
    hidden : output channels of each block's first kernel
    kernels : how many kernels each block has
    """

    def __init__(self, blocks: Sequence[RuntimeKernel]) -> None:
        rows = [(b.hw, b.cin, b.cout, b.kernel_size, b.stride) for b in blocks]
        table = np.array(rows, np.int64).reshape(len(rows), 5)
        self.hw, self.cin, self.cout, self.kernel_size, self.stride = table.T
        self.expand = np.array([b.expand for b in blocks], np.float64)
        self.hw_out = -(-self.hw // self.stride)
        self.pixels = self.hw_out**2
        layouts = [_layout(_config(b)) for b in blocks]
        self.kernels = np.array([len(layout) for layout in layouts], np.int64)
        self._owner = np.repeat(np.arange(len(blocks)), self.kernels)
        self._kernels = np.array([row for layout in layouts for row in layout], np.int64)
        self._kernels = self._kernels.reshape(len(self._owner), 8)
        firsts = np.cumsum(self.kernels) - self.kernels
        self.hidden = self._kernels[firsts, 3]
        self.costs = self._sum_costs()

    def _sum_costs(self) -> dict[str, FloatArray]:
        """`BLOCK_TERMS` but the last, summed over the kernels of each block, and plain work."""
        op, before, cin, cout, k, stride, squeezed, computed = self._kernels.T
        conv, depthwise, se, add, pool, linear = (op == i for i in range(len(_OPS)))
        hw = -(-self.hw[self._owner] // before)
        pixels = np.where(pool, 1, -(-hw // stride)) ** 2
        # A fully connected layer is a 1x1 convolution of one pixel.
        dense = conv | linear
        pointwise, spatial = dense & (k == 1), conv & (k > 1)
        window, inputs = k * k * np.where(dense, cin, 1), hw**2 * cin
        # INT8 dot products work on 16 output channels and 4 input bytes at a time.
        padded = pixels * _up(cout, 16) * _up(window, 4)
        costs = {
            "padded_macs_1x1": (pointwise, padded),
            "padded_macs_kxk": (spatial, padded),
            "im2col": (spatial, pixels * window),
            "im2col_with_tail": (spatial & (cin % 16 != 0), pixels * window),
            "padded_output": (dense, pixels * _up(cout, 16)),
            "depthwise_macs": (depthwise, pixels * _up(cout, 16) * window),
            "depthwise_with_tail": (depthwise & (cout % 16 != 0), pixels * cout * window),
            "indirection": (depthwise, pixels * window),
            "input": (True, inputs),
            "output": (True, pixels * cout),
            "weights_1x1": (pointwise, cin * cout),
            "weights_kxk": (spatial, window * cout),
            "se_input": (se, inputs),
            "se_weights": (se, 2 * cin * squeezed),
            "pooled": (pool, inputs),
            "added": (add, pixels * cout),
            "activated": (computed == 1, pixels * cout),
            "pixels": (dense, pixels),
            "kernels": (True, np.full_like(op, 1000)),
            "macs": (dense | depthwise, pixels * window * cout),
        }
        return {name: self._sum(np.where(where, cost, 0)) for name, (where, cost) in costs.items()}

    def _sum(self, of_kernels: IntArray) -> FloatArray:
        """Sum over the kernels of each block, shape (n,)."""
        return np.asarray(np.bincount(self._owner, of_kernels, len(self.hw)), np.float64)


def _up(values: IntArray, multiple: int) -> IntArray:
    return -(-values // multiple) * multiple


def block_terms(columns: BlockColumns) -> FloatArray:
    """Physical base terms, shape (n, len(BLOCK_TERMS)): work and bytes in thousands, a constant."""
    # The constant and each kernel are 1 us per unit once the thousand is divided out.
    costs = columns.costs | {"constant": np.full(len(columns.hw), 1000.0)}
    return np.stack([costs[name] for name in BLOCK_TERMS], axis=1) / 1e3


def block_features(columns: BlockColumns, base_us: FloatArray) -> FloatArray:
    """Features of the residual, shape (n, len(BLOCK_FEATURE_NAMES)).

    Parameters
    ----------
    columns : n blocks
    base_us : their physical base in microseconds, shape (n,)
    """
    c, costs = columns, columns.costs
    logs = [costs[f"padded_macs_{size}"] for size in ("1x1", "kxk")]
    logs += [costs["depthwise_macs"], costs["input"], costs["output"], costs["macs"]]
    logs.append(costs["weights_1x1"] + costs["weights_kxk"])
    parts = [
        *(c.hw, c.hw_out, c.cin, c.cout, c.kernel_size, c.expand, c.stride, c.hidden, c.kernels),
        *(np.log1p(values) for values in logs),
        *(c.pixels % 4, c.pixels % 16),
        *(c.hidden % m for m in (8, 16, 32, 64)),
        *(channels % m for channels in (c.cin, c.cout) for m in (16, 32, 64)),
        *(channels & -channels for channels in (c.hidden, c.cin, c.cout)),
        (c.cin == c.cout) & (c.stride == 1),
        *(c.hidden / c.cin, c.cout / c.cin),
        np.log(base_us),
    ]
    return np.stack([np.asarray(p, np.float64) for p in parts], axis=1)
