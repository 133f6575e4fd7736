"""The Q-T score of a search space (SpaceEvo, section 4.2, equations 2 and 3).

For a latency constraint T the score rewards a space whose best subnets within T lose little
against the teacher, and of which at least a share t lies within T:

    score = 1 / (max(1, (t / p) ** a) * top_loss)

p is the share of sampled subnets with latency <= T, top_loss the mean loss of the best of them. For
several constraints the scores are added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError, ConstraintError
from ..files import Record
from ..hyperspace import SpaceCode
from ..lut import QuantizedLUT

# Subnets that share a drawn resolution, as in the published code.
BATCH = 500
# As in the published code: p never becomes zero.
SHARE_EPSILON = 1e-5


class QTConfig(Record, frozen=True):
    """How a space is scored.

    Attributes
    ----------
    constraints_ms : latency constraints T in milliseconds
    samples : subnets drawn per space
    top : how many of the best subnets within T are averaged
    t, a : share of subnets that should lie within T, and how strongly less is punished
    seed : of the sampling; a space's score depends on seed and code alone
    """

    constraints_ms: tuple[float, ...]
    samples: int = 100_000
    top: int = 50
    t: float = 0.08
    a: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.constraints_ms or not all(np.isfinite(self.constraints_ms)):
            raise ConfigError(f"constraints_ms must name at least one, given {self.constraints_ms}")
        if self.samples < BATCH or not 1 <= self.top <= self.samples:
            raise ConfigError(
                f"samples must be at least {BATCH} and top within 1 to samples, "
                f"given samples={self.samples}, top={self.top}"
            )
        if not 0 < self.t <= 1 or self.a < 0:
            raise ConfigError(f"t must be in (0, 1] and a at least 0, given t={self.t}, a={self.a}")


@dataclass(frozen=True)
class SpaceScore:
    """A scored space.

    Attributes
    ----------
    code : the space
    score : Q-T score, summed over the constraints
    shares : share of subnets within each constraint
    top_losses : mean loss of the best subnets within each constraint; inf where there is none
    min_ms, max_ms : latency of the fastest and slowest subnet in milliseconds
    """

    code: SpaceCode
    score: float
    shares: tuple[float, ...]
    top_losses: tuple[float, ...]
    min_ms: float
    max_ms: float


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
    penalty = max(1.0, (config.t / (share + SHARE_EPSILON)) ** config.a)
    return 1 / (penalty * top_loss), share, top_loss


def qt_score(lut: QuantizedLUT, code: SpaceCode, config: QTConfig) -> SpaceScore:
    """Score a space; the same seed and code give the same score, in any order and process."""
    rng = np.random.default_rng([config.seed, *code.blocks, *code.windows])
    loss, latency = sample_subnets(lut, code, config.samples, rng)
    rows = [score_samples(loss, latency, T, config) for T in config.constraints_ms]
    scores, shares, top_losses = zip(*rows, strict=True)
    low, high = lut.latency_range(code)
    return SpaceScore(code, float(sum(scores)), shares, top_losses, low, high)


def check_constraints(lut: QuantizedLUT, constraints_ms: tuple[float, ...]) -> None:
    """Refuse constraints that cannot tell spaces apart.

    Raises
    ------
    ConstraintError
        T is below the hyperspace's fastest subnet (none fits) or above its slowest (all fit).
    """
    low, high = lut.latency_span
    for T in constraints_ms:
        if low <= T <= high:
            continue
        which = (
            f"below the fastest subnet ({low:.4g} ms)"
            if low > T
            else f"above the slowest subnet ({high:.4g} ms)"
        )
        raise ConstraintError(
            f"latency constraint T = {T:g} ms is {which} of hyperspace {lut.hyperspace.name!r} "
            f"on {lut.header.device or 'this device'}; expected {low:.4g} to {high:.4g} ms"
        )


def constraint_at_quantile(
    lut: QuantizedLUT, quantile: float, seed: int = 0, spaces: int = 200
) -> float:
    """The latency in ms that a share `quantile` of random subnets of random spaces stays within."""
    rng = np.random.default_rng(seed)
    latencies = [
        sample_subnets(lut, lut.hyperspace.random_space(rng), BATCH, rng)[1] for _ in range(spaces)
    ]
    return float(np.quantile(np.concatenate(latencies), quantile))
