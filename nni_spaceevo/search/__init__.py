"""Finding the best space: Q-T score, aging evolution, local search and a bound; pure numpy."""

from .aging import AgingEvolution, EvolutionConfig
from .bound import ScoreBound, score_bound
from .exact import ExactScorer
from .hybrid import HybridSearch, make_search
from .qt_score import Scorer, check_constraints, constraint_at_quantile, make_scorer, qt_score
from .sampled import SampledScorer, sample_subnets, score_samples
from .score import BATCH, QTConfig, SpaceScore

__all__ = [
    "BATCH",
    "AgingEvolution",
    "EvolutionConfig",
    "ExactScorer",
    "HybridSearch",
    "QTConfig",
    "SampledScorer",
    "ScoreBound",
    "Scorer",
    "SpaceScore",
    "check_constraints",
    "constraint_at_quantile",
    "make_scorer",
    "make_search",
    "qt_score",
    "sample_subnets",
    "score_bound",
    "score_samples",
]
