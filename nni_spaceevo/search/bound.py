"""An upper bound on the exact Q-T score of every space of a hyperspace.

Let A be the best subnets of a space within T, a share P(A) of all. For any prices lambda >= 0 of a
millisecond and theta > 0,

    E[loss | A] >= E[loss + lambda (latency - T) | A]
                >= -(log E exp(-theta (loss + lambda (latency - T))) - log P(A)) / theta,

first because A lies within T, then by the variational formula of Donsker and Varadhan. The stages
of a subnet are independent, so the expectation is a product over stages, and its largest value over
all spaces takes the largest factor at every stage: no space needs to be looked at. The prices that
make the bound least are found numerically; any prices give a bound that holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ..hyperspace import SpaceCode
from ..lut import QuantizedLUT
from .score import QTConfig, penalized

FloatArray = NDArray[np.float64]

# Shares below `top / samples` are bounded on intervals of a logarithmic grid, down to one that
# `samples` draws all but never find.
_SHARES, _LEAST_SHARE = 60, 1e-4


@dataclass(frozen=True)
class ScoreBound:
    """No space scores more.

    Attributes
    ----------
    score : bound on the exact Q-T score, summed over the constraints
    scores : of each constraint
    codes : the space that each constraint's bound is made of, often a good one itself
    """

    score: float
    scores: tuple[float, ...]
    codes: tuple[SpaceCode, ...]


def score_bound(lut: QuantizedLUT, config: QTConfig) -> ScoreBound:
    """Bound the exact score of all spaces, each constraint by itself."""
    stages = _Stages(lut)
    scores, codes = [], []
    for T in config.constraints_ms:
        bound, prices = _tightest(stages, T, config)
        scores.append(bound)
        codes.append(stages.best_space(*prices))
    return ScoreBound(sum(scores), tuple(scores), tuple(codes))


def _tightest(
    stages: _Stages, constraint_ms: float, config: QTConfig
) -> tuple[float, tuple[float, float]]:
    def bound(logs: FloatArray) -> float:
        theta, price = np.exp(np.clip(logs, -20, 20))
        moment = stages.log_moment(theta, price, constraint_ms)
        return _bound(moment, float(theta), stages.least_loss, config)

    # Typical prices: a tail of a few standard deviations, and a millisecond worth some loss.
    scale_loss, scale_ms = stages.scales()
    best: tuple[float, FloatArray] = (math.inf, np.zeros(2))
    for theta in (2.0, 8.0):
        for price in (0.1, 1.0):
            start = np.log([theta / scale_loss, price * scale_loss / scale_ms])
            found = minimize(bound, start, method="Nelder-Mead", options={"xatol": 1e-3})
            best = min(best, (float(found.fun), found.x), key=lambda item: item[0])
    theta, price = np.exp(np.clip(best[1], -20, 20))
    return best[0], (float(theta), float(price))


def _bound(log_moment: float, theta: float, least_loss: float, config: QTConfig) -> float:
    """Largest score that is possible for a given logarithm of the expectation."""

    def most(best: float, share: float) -> float:
        """Score of at most a share `share` within T, of which the best are a share `best`."""
        loss = max(least_loss, (math.log(best) - log_moment) / theta) if best else least_loss
        found = -math.expm1(-config.samples * share)
        return found * penalized(share, loss, config)

    tail = config.top / config.samples
    # With less than the tail within T, all of that is averaged: intervals by their better ends.
    shares = [0.0, *np.geomspace(_LEAST_SHARE / config.samples, tail, _SHARES).tolist()]
    return max(most(tail, 1.0), *(most(low, high) for low, high in pairwise(shares)))


class _Stages:
    """Cells of a LUT by stage and resolution."""

    def __init__(self, lut: QuantizedLUT) -> None:
        self._lut = lut
        hyperspace = lut.hyperspace
        self._choices = [
            [(b, w) for b in range(len(hyperspace.block_types)) for w in range(len(s.windows))]
            for s in hyperspace.searchable
        ]
        self._resolutions = hyperspace.distill_resolutions
        # One array of loss and one of latency for (stage, resolution): all choices in a row.
        self._rows = {
            (s, r): self._together([lut.cell(s, b, w, r) for b, w in choices])
            for s, choices in enumerate(self._choices)
            for r in self._resolutions
        }

    @cached_property
    def least_loss(self) -> float:
        """Loss of the best subnet of all, whatever its latency."""
        by_resolution = (
            sum(float(self._rows[s, r][0].min()) for s in range(len(self._choices)))
            for r in self._resolutions
        )
        return max(min(by_resolution), 1e-12)

    @staticmethod
    def _together(
        cells: list[tuple[np.ndarray, np.ndarray]],
    ) -> tuple[FloatArray, FloatArray, NDArray[np.int64], FloatArray]:
        starts = np.cumsum([0, *(len(loss) for loss, _ in cells)])
        loss = np.concatenate([loss for loss, _ in cells]).astype(np.float64)
        latency = np.concatenate([ms for _, ms in cells]).astype(np.float64)
        return loss, latency, starts[:-1], np.diff(starts).astype(np.float64)

    def scales(self) -> tuple[float, float]:
        """Standard deviations of loss and latency of random subnets."""
        losses = [np.var(loss) for loss, _, _, _ in self._rows.values()]
        latencies = [np.var(ms) for _, ms, _, _ in self._rows.values()]
        per_space = len(self._choices) / len(losses)
        return (
            math.sqrt(per_space * sum(losses)) + 1e-9,
            math.sqrt(per_space * sum(latencies)) + 1e-9,
        )

    def _log_factors(self, stage: int, resolution: int, theta: float, price: float) -> FloatArray:
        """Logarithm of each choice's factor, shape (choices,)."""
        loss, latency, starts, counts = self._rows[stage, resolution]
        exponents = -theta * (loss + price * latency)
        # Relative to the largest, which would overflow or vanish otherwise.
        most = exponents.max()
        sums = np.add.reduceat(np.exp(np.maximum(exponents - most, -700)), starts)
        return np.asarray(most + np.log(sums / counts))

    def log_moment(self, theta: float, price: float, constraint_ms: float) -> float:
        """Logarithm of the expectation, the best choice taken at every stage and resolution."""
        logs = [
            -theta * price * (self._lut.other_ms(r) - constraint_ms)
            + sum(
                float(self._log_factors(s, r, theta, price).max())
                for s in range(len(self._choices))
            )
            for r in self._resolutions
        ]
        return float(np.logaddexp.reduce(logs)) - math.log(len(logs))

    def best_space(self, theta: float, price: float) -> SpaceCode:
        """The space of the largest factors, resolutions taken together."""
        found = []
        for stage, choices in enumerate(self._choices):
            factors = [self._log_factors(stage, r, theta, price) for r in self._resolutions]
            found.append(choices[int(np.argmax(np.logaddexp.reduce(factors)))])
        blocks, windows = zip(*found, strict=True)
        return SpaceCode(self._lut.hyperspace.name, blocks, windows)
