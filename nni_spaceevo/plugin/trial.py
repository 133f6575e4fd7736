"""A trial: the Q-T score of one search space.

NNI runs `python3 -m nni_spaceevo.plugin.trial --job spaceevo.yaml` in `trialCodeDirectory`, which
takes less than a second: with the LUT built, nothing here imports torch or NNI.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import SpaceEvoError
from ..jobs.job import Job
from ..jobs.scoring import metrics_of, score_config
from ..search import qt_score
from . import seam


def run(job: Job) -> dict[str, Any]:
    """Score the space that NNI has for this trial and report it; returns the metrics.

    Raises
    ------
    SpaceEvoError
        Not started by NNI, parameters of another hyperspace, or a step before the LUT failed.
    """
    from ..jobs.prepare import constraints, prepared_lut

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
