"""How a job scores its spaces, and what is told of a score."""

from __future__ import annotations

import math
from typing import Any

from ..search import QTConfig, SpaceScore
from .job import Job


def score_config(job: Job, constraints_ms: tuple[float, ...]) -> QTConfig:
    """How a job scores its spaces, with its constraints resolved to milliseconds."""
    return job.config.search.scoring(constraints_ms, job.config.seed)


def metrics_of(score: SpaceScore, constraints_ms: tuple[float, ...]) -> dict[str, Any]:
    """What a trial reports to NNI.

    Numbers and text only: NNI's web page goes blank, for good, once a user shows the column of a
    metric that is an object.

    Returns
    -------
    metrics : `default` is the Q-T score; `share_within_T` and `top_loss` are those of the tightest
        constraint, and with several constraints each has its own `qt_score_5ms`,
        `share_within_5ms` and `top_loss_within_5ms`; `top_loss` is None where no sampled subnet is
        within the constraint
    """
    losses = [loss if math.isfinite(loss) else None for loss in score.top_losses]
    tightest = constraints_ms.index(min(constraints_ms))
    metrics: dict[str, Any] = {
        "default": score.score,
        "space": str(score.code),
        "share_within_T": score.shares[tightest],
        "top_loss": losses[tightest],
        "min_ms": score.min_ms,
        "max_ms": score.max_ms,
    }
    if len(constraints_ms) > 1:
        rows = zip(constraints_ms, score.scores, score.shares, losses, strict=True)
        for T, part, share, loss in rows:
            metrics[f"qt_score_{T:g}ms"] = part
            metrics[f"share_within_{T:g}ms"] = share
            metrics[f"top_loss_within_{T:g}ms"] = loss
    return metrics
