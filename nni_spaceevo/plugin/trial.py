"""A trial: the Q-T score of one search space.

NNI runs `python3 -m nni_spaceevo.plugin.trial --job spaceevo.yaml` in `trialCodeDirectory`, which
takes less than a second: with the LUT built, nothing here imports torch or NNI.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import SpaceEvoError
from ..search import QTConfig, SpaceScore, qt_score
from . import seam
from .job import Job


def score_config(job: Job, constraints_ms: tuple[float, ...]) -> QTConfig:
    """How a job scores its spaces, with its constraints resolved to milliseconds."""
    search = job.config.search
    return QTConfig(
        constraints_ms=constraints_ms,
        estimator=search.estimator,
        samples=search.samples,
        top=search.top,
        t=search.t,
        a=search.a,
        seed=job.config.seed,
    )


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


def run(job: Job) -> dict[str, Any]:
    """Score the space that NNI has for this trial and report it; returns the metrics.

    Raises
    ------
    SpaceEvoError
        Not started by NNI, parameters of another hyperspace, or a step before the LUT failed.
    """
    from .prepare import constraints, prepared_lut

    trial = seam.ThisTrial()
    code = job.hyperspace.from_parameters(trial.parameters)
    # With several trials at a time, one prepares what is missing and the others wait for it.
    lut = prepared_lut(job, wait=True)
    constraints_ms = constraints(job, lut)
    score = qt_score(lut, code, score_config(job, constraints_ms))
    metrics = metrics_of(score, constraints_ms)
    trial.report_final(metrics)
    return metrics


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, 1 after an error that the user can mend."""
    parser = argparse.ArgumentParser(prog="nni_spaceevo.plugin.trial", description=__doc__)
    parser.add_argument("--job", type=Path, required=True, help="job file (YAML)")
    options = parser.parse_args(arguments)
    try:
        metrics = run(Job(options.job))
    except SpaceEvoError as error:
        print(f"SpaceEvo: {error}", file=sys.stderr, flush=True)
        return 1
    loss = metrics["top_loss"]
    print(
        f"{metrics['space']}: Q-T score {metrics['default']:.4f}, "
        f"{metrics['share_within_T']:.1%} of subnets within T, "
        f"top loss {'none' if loss is None else format(loss, '.4f')}, "
        f"{metrics['min_ms']:.3g} to {metrics['max_ms']:.3g} ms",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
