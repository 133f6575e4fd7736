"""A trial of a supernet experiment: the quantized-for-all supernet of one space.

NNI runs `python3 -m nni_spaceevo.plugin.supernet_trial --job spaceevo.yaml` in
`trialCodeDirectory`. `space` of the trial's parameters is a space code, or `best` for the best one
of the job's search; `seed`, if it is there, replaces the job's. A trial that was killed continues
from the job's work folder when it is started again. With `torchrun --nproc-per-node N -m` for
`python3 -m`, N processes share every batch, of which the first one talks to NNI.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..jobs.job import Job
from ..jobs.supernets import BEST, TrainedSupernet, train_supernet
from ..jobs.workers import is_first_process
from . import seam
from .trial_base import trial_main

if TYPE_CHECKING:
    from ..supernet.run import SupernetEpoch

_KEYS = ("space", "seed")


def curve_point(epoch: SupernetEpoch) -> dict[str, Any] | None:
    """What a trial reports of an epoch after which the supernet was evaluated; None of others.

    Accuracies are of the precision in which the epoch trained, INT8 in the second phase, and
    `fp32_…` are those of the same weights without quantizers. The random subnets' is `default`.
    """
    if epoch.fp32 is None:
        return None
    trained = epoch.int8 or epoch.fp32
    return {
        "default": trained.random,
        "largest": trained.largest,
        "smallest": trained.smallest,
        "fp32_random": epoch.fp32.random,
        "fp32_largest": epoch.fp32.largest,
        "fp32_smallest": epoch.fp32.smallest,
        "loss_largest": epoch.largest,
        "loss_smallest": epoch.smallest,
        "loss_random": epoch.random,
        "epoch": epoch.epoch + 1,
        "precision": epoch.precision,
    }


def metrics_of(trained: TrainedSupernet) -> dict[str, Any]:
    """What a trial reports at the end: the last point of its curve, and where its file lies."""
    return {
        **(curve_point(trained.epochs[-1]) or {}),
        "space": trained.space,
        "seed": trained.seed,
        "file": str(trained.path),
        "machine": platform.node(),
    }


def run(job: Job) -> str | None:
    """Train the supernet that NNI has for this trial and report it.

    Returns
    -------
    a line about it; None in other processes than the first

    Raises
    ------
    SpaceEvoError
        Not started by NNI, parameters that are not a supernet's, or the training failed.
    """
    if not is_first_process():
        train_supernet(job)
        return None
    trial = seam.ThisTrial()
    if unknown := [key for key in trial.parameters if key not in _KEYS]:
        raise ConfigError(f"searchSpace, key {unknown[0]!r}; a supernet's are {', '.join(_KEYS)}")
    space, seed = trial.parameters.get("space", BEST), trial.parameters.get("seed")
    if not isinstance(seed, int | None):
        raise ConfigError(f"searchSpace, key seed: expected a whole number, given {seed!r}")

    def report(epoch: SupernetEpoch) -> None:
        print(epoch.outcome, flush=True)
        if point := curve_point(epoch):
            trial.report_intermediate(point)

    # Where the web UI's TensorBoard button looks for them.
    scalars = Path(os.environ["NNI_OUTPUT_DIR"]) / "tensorboard"
    trained = train_supernet(job, space, seed, report, scalars)
    assert trained is not None
    trial.report_final(metrics_of(trained))
    return trained.outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, 1 after an error that the user can mend."""
    return trial_main("nni_spaceevo.plugin.supernet_trial", __doc__, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
