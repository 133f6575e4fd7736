"""A trial: the Q-T score of one search space.

NNI runs `python3 -m nni_spaceevo.plugin.trial --job spaceevo.yaml` in `trialCodeDirectory`, which
takes less than a second: with the LUT built, nothing here imports torch or NNI.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..jobs.job import Job
from ..jobs.scoring import metrics_of, score_config
from ..search import qt_score
from . import seam
from .trial_base import trial_main


def run(job: Job) -> str:
    """Score the space that NNI has for this trial and report it; returns a line about it.

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
    loss = metrics["top_loss"]
    return (
        f"{metrics['space']}: Q-T score {metrics['default']:.4f}, "
        f"{metrics['share_within_T']:.1%} of subnets within T, "
        f"top loss {'none' if loss is None else format(loss, '.4f')}, "
        f"{metrics['min_ms']:.3g} to {metrics['max_ms']:.3g} ms"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, 1 after an error that the user can mend."""
    return trial_main("nni_spaceevo.plugin.trial", __doc__, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
