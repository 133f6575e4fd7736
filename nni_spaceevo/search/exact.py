"""The Q-T score without sampling: loss and latency of all subnets of a space at once.

The stages of a subnet are drawn independently, so the joint distribution of loss and latency over a
space is, at each resolution, the convolution of its stages' distributions. These lie on a common
grid, and the convolution is a product of their Fourier transforms, which are computed once for each
cell of the LUT. A space with few subnets is enumerated.

The published estimator averages the best `top` of `samples` drawn subnets; here it is the best
share `top / samples` of all of them. With few samples the former depends on luck, and for a space
of which hardly anything lies within the constraint also on whether a subnet was drawn at all: the
score carries the probability of that, 1 - exp(-samples * share), as a factor.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..hyperspace import SpaceCode
from ..lut import QuantizedLUT
from .score import QTConfig, SpaceScore, penalized

FloatArray = NDArray[np.float64]

# Grid points of latency and of loss.
_LATENCY_BINS, _LOSS_BINS = 192, 256
# Latencies beyond the grid wrap around; this exponential damping makes them 1e-8 of themselves.
_DAMPING = 18.0
# Spaces of at most so many subnets are enumerated.
_FEW = 1 << 18


class ExactScorer:
    """Scores spaces of one LUT; the same code always gets the same score.

    Parameters
    ----------
    lut : losses and latencies
    config : constraints, t, a, and the share `top / samples`; `seed` plays no role
    """

    def __init__(self, lut: QuantizedLUT, config: QTConfig) -> None:
        self.lut, self.config = lut, config
        self._tail = config.top / config.samples
        self._resolutions = lut.hyperspace.distill_resolutions
        # Each stage has a point before its least and one after its largest value.
        stages = len(lut.hyperspace.searchable)
        loss_step = _loss_span(lut) / (_LOSS_BINS - 1 - 2 * stages)
        self._grids = [
            _Grid(lut, r, max(config.constraints_ms), loss_step) for r in self._resolutions
        ]

    def __call__(self, code: SpaceCode) -> SpaceScore:
        """Score a space."""
        cells = list(zip(range(len(code.blocks)), code.blocks, code.windows, strict=True))
        subnets = sum(
            math.prod(len(self.lut.cell(*c, r)[0]) for c in cells) for r in self._resolutions
        )
        masses = self._enumerated(cells) if subnets <= _FEW else self._convolved(cells)
        rows = [self._score(*mass) for mass in masses]
        scores, shares, top_losses = zip(*rows, strict=True)
        return SpaceScore(code, scores, shares, top_losses, *self.lut.latency_range(code))

    def _score(self, loss: FloatArray, mass: FloatArray) -> tuple[float, float, float]:
        """Score, share and mean loss of the best, from the losses within a constraint."""
        share = float(mass.sum())
        if share <= 0:
            return 0.0, 0.0, math.inf
        order = np.argsort(loss, kind="stable")
        loss, mass = loss[order], mass[order]
        before = np.cumsum(mass) - mass
        taken = np.clip(min(self._tail, share) - before, 0, mass)
        top_loss = float(taken @ loss / taken.sum())
        found = -math.expm1(-self.config.samples * share)
        return found * penalized(share, top_loss, self.config), share, top_loss

    def _enumerated(self, cells: list[tuple[int, int, int]]) -> list[tuple[FloatArray, FloatArray]]:
        losses, latencies, masses = [], [], []
        for resolution in self._resolutions:
            loss, latency = np.zeros(1), np.full(1, self.lut.other_ms(resolution))
            for cell in cells:
                cell_loss, cell_latency = self.lut.cell(*cell, resolution)
                loss = np.add.outer(loss, cell_loss.astype(np.float64)).ravel()
                latency = np.add.outer(latency, cell_latency.astype(np.float64)).ravel()
            losses.append(loss)
            latencies.append(latency)
            masses.append(np.full(len(loss), 1 / (len(loss) * len(self._resolutions))))
        loss, latency, mass = map(np.concatenate, (losses, latencies, masses))
        within = [latency <= T for T in self.config.constraints_ms]
        return [(loss[w], mass[w]) for w in within]

    def _convolved(self, cells: list[tuple[int, int, int]]) -> list[tuple[FloatArray, FloatArray]]:
        by_resolution = [grid.within(cells, self.config.constraints_ms) for grid in self._grids]
        found = []
        for parts in zip(*by_resolution, strict=True):
            loss = np.concatenate([loss for loss, _ in parts])
            mass = np.concatenate([mass for _, mass in parts]) / len(self._grids)
            found.append((loss, mass))
        return found


class _Grid:
    """Losses and latencies of all cells of one resolution on a grid, Fourier transformed.

    A cell's grid starts at its own least loss and latency, so that it holds nothing but what can
    lie within the largest constraint.

    Parameters
    ----------
    lut, resolution : whose cells
    most_ms : the largest constraint
    loss_step : distance of the grid's losses
    """

    def __init__(
        self, lut: QuantizedLUT, resolution: int, most_ms: float, loss_step: float
    ) -> None:
        self._lut, self._resolution, self._loss_step = lut, resolution, loss_step
        self._other_ms = lut.other_ms(resolution)
        room_ms = most_ms - self._other_ms - _fastest_ms(lut, resolution)
        stages = len(lut.hyperspace.searchable)
        self._step_ms = max(room_ms, 1e-9) / (_LATENCY_BINS - 1 - 2 * stages)
        self._latency_bins: FloatArray = np.arange(_LATENCY_BINS, dtype=np.float64)
        self._losses: FloatArray = loss_step * np.arange(_LOSS_BINS, dtype=np.float64)
        self._growth = np.exp(self._latency_bins * (_DAMPING / _LATENCY_BINS))
        self._cells: dict[tuple[int, int, int], tuple[float, float, NDArray[np.complex128]]] = {}

    def within(
        self, cells: list[tuple[int, int, int]], constraints_ms: tuple[float, ...]
    ) -> list[tuple[FloatArray, FloatArray]]:
        """Losses of the grid and the mass of subnets there, for each constraint."""
        parts = [self._cell(cell) for cell in cells]
        least_loss = sum(loss for loss, _, _ in parts)
        least_ms = self._other_ms + sum(ms for _, ms, _ in parts)
        product = None
        found: list[tuple[FloatArray, FloatArray]] = []
        for T in constraints_ms:
            if least_ms > T:
                found.append((np.zeros(0), np.zeros(0)))
                continue
            if product is None:
                product = parts[0][2] * parts[1][2] if len(parts) > 1 else parts[0][2]
                for _, _, transform in parts[2:]:
                    product *= transform
            # The part of each grid point's surroundings that lies within T; the first point of
            # every stage is before its least value.
            steps = (T - least_ms) / self._step_ms + len(cells)
            share = np.clip(steps - self._latency_bins + 0.5, 0, 1)
            # Summing over latencies is a scalar product with a transformed step. Not by `@`, whose
            # threads wait for each other where another process has the cores.
            step = np.fft.ifft(share * self._growth)
            mass = np.fft.irfft(np.vecdot(step.conj(), product), _LOSS_BINS)
            loss = self._losses + (least_loss - len(cells) * self._loss_step)
            found.append((loss, np.maximum(mass, 0)))
        return found

    def _cell(self, cell: tuple[int, int, int]) -> tuple[float, float, NDArray[np.complex128]]:
        if cell not in self._cells:
            loss, latency = (v.astype(np.float64) for v in self._lut.cell(*cell, self._resolution))
            least_loss, least_ms = float(loss.min()), float(latency.min())
            at_loss = (loss - least_loss) / self._loss_step
            at_latency = (latency - least_ms) / self._step_ms
            reachable = at_latency < _LATENCY_BINS - 3
            histogram = _spread(at_latency[reachable], at_loss[reachable]) / len(loss)
            transform = np.fft.rfft2(histogram / self._growth[:, None]).T.copy()
            self._cells[cell] = least_loss, least_ms, transform
        return self._cells[cell]


def _spread(rows: FloatArray, columns: FloatArray) -> FloatArray:
    """Count points on the grid, each spread over nine neighbours.

    The weights are those of quadratic interpolation: they keep mean and variance, so that the sum
    over stages has the right ones too, and may be negative.
    """
    r, c = np.rint(rows).astype(np.int64), np.rint(columns).astype(np.int64)
    total = np.zeros(_LATENCY_BINS * _LOSS_BINS)
    for i, share_r in enumerate(_quadratic(rows - r)):
        for j, share_c in enumerate(_quadratic(columns - c)):
            at = (r + i) * _LOSS_BINS + c + j
            total += np.bincount(at, share_r * share_c, len(total))
    return total.reshape(_LATENCY_BINS, _LOSS_BINS)


def _quadratic(d: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Weights of the grid points before, at and after a place d from the middle one."""
    return (d * d - d) / 2, 1 - d * d, (d * d + d) / 2


def _cells_of(lut: QuantizedLUT, stage: int) -> list[tuple[int, int, int]]:
    windows = range(len(lut.hyperspace.searchable[stage].windows))
    return [(stage, b, w) for b in range(len(lut.hyperspace.block_types)) for w in windows]


def _loss_span(lut: QuantizedLUT) -> float:
    """Most that the losses of a space's subnets of one resolution can differ."""
    total = 0.0
    for stage in range(len(lut.hyperspace.searchable)):
        total += max(
            float(np.ptp(lut.cell(*cell, resolution)[0]))
            for cell in _cells_of(lut, stage)
            for resolution in lut.hyperspace.distill_resolutions
        )
    return max(total, 1e-9)


def _fastest_ms(lut: QuantizedLUT, resolution: int) -> float:
    """Latency of the searchable stages of the fastest subnet of all spaces."""
    return sum(
        min(float(lut.cell(*cell, resolution)[1].min()) for cell in _cells_of(lut, stage))
        for stage in range(len(lut.hyperspace.searchable))
    )
