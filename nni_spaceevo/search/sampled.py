"""The published estimator of the Q-T score: draw subnets of a space and look at the best of them.

It is biased: of few samples the best lie less far out than those of many. On the published LUTs the
best 50 of 100,000 lose .2 % more than the best two thousandth of all subnets, which is what their
mean tends to when both numbers grow; with 50 of ever more samples it tends to the best subnet.
Repetitions scatter by .1 to .3 %, so an evolution also selects lucky draws.
"""

from __future__ import annotations

import numpy as np

from ..hyperspace import SpaceCode
from ..lut import QuantizedLUT
from .score import BATCH, QTConfig, SpaceScore, penalized


class SampledScorer:
    """Scores spaces of one LUT; the same seed and code give the same score, in any order.

    Parameters
    ----------
    lut : losses and latencies
    config : constraints and all numbers of the estimator
    """

    def __init__(self, lut: QuantizedLUT, config: QTConfig) -> None:
        self.lut, self.config = lut, config

    def __call__(self, code: SpaceCode) -> SpaceScore:
        """Score a space."""
        rng = np.random.default_rng([self.config.seed, *code.blocks, *code.windows])
        loss, latency = sample_subnets(self.lut, code, self.config.samples, rng)
        constraints = self.config.constraints_ms
        rows = [score_samples(loss, latency, T, self.config) for T in constraints]
        scores, shares, top_losses = zip(*rows, strict=True)
        return SpaceScore(code, scores, shares, top_losses, *self.lut.latency_range(code))


def sample_subnets(
    lut: QuantizedLUT, code: SpaceCode, samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw subnets of a space: a resolution per batch of 500, a row per stage.

    Returns
    -------
    loss, latency_ms : arrays of shape (samples,), samples rounded up to whole batches
    """
    resolutions = lut.hyperspace.distill_resolutions
    batches = -(-samples // BATCH)
    chosen = rng.integers(len(resolutions), size=batches)
    losses, latencies = [], []
    for i, resolution in enumerate(resolutions):
        n = BATCH * int(np.count_nonzero(chosen == i))
        loss, latency = np.zeros(n), np.full(n, lut.other_ms(resolution))
        for cell in zip(range(len(code.blocks)), code.blocks, code.windows, strict=True):
            cell_loss, cell_latency = lut.cell(*cell, resolution)
            rows = rng.integers(len(cell_loss), size=n)
            loss += cell_loss[rows]
            latency += cell_latency[rows]
        losses.append(loss)
        latencies.append(latency)
    return np.concatenate(losses), np.concatenate(latencies)


def score_samples(
    loss: np.ndarray, latency_ms: np.ndarray, constraint_ms: float, config: QTConfig
) -> tuple[float, float, float]:
    """Q-T score of sampled subnets, arrays of shape (n,), for one constraint.

    Returns
    -------
    score, share, top_loss : 0, 0 and inf where no subnet is within the constraint
    """
    within = loss[latency_ms <= constraint_ms]
    if not len(within):
        return 0.0, 0.0, float("inf")
    best = (
        np.partition(within, config.top - 1)[: config.top] if len(within) > config.top else within
    )
    share, top_loss = len(within) / len(loss), float(best.mean())
    return penalized(share, top_loss, config), share, top_loss
