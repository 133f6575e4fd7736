"""Finding the best space: Q-T score and aging evolution, pure numpy."""

from .aging import AgingEvolution, EvolutionConfig
from .qt_score import (
    BATCH,
    QTConfig,
    SpaceScore,
    check_constraints,
    constraint_at_quantile,
    qt_score,
    sample_subnets,
    score_samples,
)

__all__ = [
    "BATCH",
    "AgingEvolution",
    "EvolutionConfig",
    "QTConfig",
    "SpaceScore",
    "check_constraints",
    "constraint_at_quantile",
    "qt_score",
    "sample_subnets",
    "score_samples",
]
