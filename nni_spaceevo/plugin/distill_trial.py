"""A trial of a distillation experiment: one elastic stage with one block type.

NNI runs `python3 -m nni_spaceevo.plugin.distill_trial --job spaceevo.yaml` in its copy of
`trialCodeDirectory`, on whichever machine it has chosen. A killed trial continues with the epoch in
which it was, if it is started again on a machine that sees its checkpoint. With `torchrun
--nproc-per-node N -m` for `python3 -m`, N processes work on the task together, of which the first
one talks to NNI.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..jobs.distillation import distilled_rows
from ..jobs.job import Job
from ..jobs.workers import is_first_process
from ..lut.merge import StageRows, task_cells
from . import seam
from .trial_base import trial_main

if TYPE_CHECKING:
    from ..distill.stage import EpochLoss


def curve_point(loss: EpochLoss) -> dict[str, Any]:
    """What a trial reports of an epoch: NSR losses, random sub-stages' as `default`."""
    return {
        "default": loss.random,
        "largest": loss.largest,
        "smallest": loss.smallest,
        "precision": loss.precision,
    }


def metrics_of(found: StageRows) -> dict[str, Any]:
    """What a trial reports at the end.

    Numbers and text only: NNI's web page goes blank, for good, once a user shows the column of a
    metric that is an object.

    Returns
    -------
    metrics : `default` is the mean quantized NSR loss of the sampled sub-stages; `rows` is all of
        them, for the tuner, which may have no other way to this machine's disk
    """
    losses = found.losses
    return {
        "default": found.mean_loss,
        "task": found.task,
        "substages": len(losses),
        "lowest_loss": min(losses),
        "highest_loss": max(losses),
        "machine": platform.node(),
        "rows": found.packed(),
    }


def run(job: Job) -> str | None:
    """Distil the task that NNI has for this trial and report it.

    Returns
    -------
    a line about it; None in other processes than the first

    Raises
    ------
    SpaceEvoError
        Not started by NNI, a task of another hyperspace, or the distillation failed.
    """
    if not is_first_process():
        distilled_rows(str(job.path), None)
        return None
    trial = seam.ThisTrial()
    cells, task = task_cells(job.hyperspace), trial.parameters.get("task")
    if task not in cells:
        raise ConfigError(
            f"task {task!r}; hyperspace {job.hyperspace.name!r} has {', '.join(cells)}"
        )
    print(f"{task} on {platform.node()}", flush=True)
    found = distilled_rows(
        str(job.path), cells[task], lambda loss: trial.report_intermediate(curve_point(loss))
    )
    assert found is not None
    trial.report_final(metrics_of(found))
    return f"{found.outcome}, {len(found.rows)} sub-stages"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, 1 after an error that the user can mend."""
    return trial_main("nni_spaceevo.plugin.distill_trial", __doc__, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
