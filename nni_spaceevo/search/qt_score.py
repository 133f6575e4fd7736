"""Scoring spaces by the Q-T score, and latency constraints that can tell spaces apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import ConstraintError
from ..hyperspace import SpaceCode
from ..lut import QuantizedLUT
from .exact import ExactScorer
from .sampled import SampledScorer, sample_subnets
from .score import BATCH, QTConfig, SpaceScore

Scorer = Callable[[SpaceCode], SpaceScore]


def make_scorer(lut: QuantizedLUT, config: QTConfig) -> Scorer:
    """What scores spaces of a LUT; for many spaces much faster than `qt_score` of each."""
    return (ExactScorer if config.estimator == "exact" else SampledScorer)(lut, config)


def qt_score(lut: QuantizedLUT, code: SpaceCode, config: QTConfig) -> SpaceScore:
    """Score one space; the same code and settings give the same score in every process."""
    return make_scorer(lut, config)(code)


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
