"""A trial of an export experiment: one subnet of a trained supernet as an INT8 file.

NNI runs `python3 -m nni_spaceevo.plugin.export_trial --job spaceevo.yaml` in `trialCodeDirectory`.
`subnet` of the trial's parameters is what `spaceevo export` takes, a code with commas for each `#`;
`space` (`best`), `seed` (the job's) and `format` (`onnx`, or `tflite`) have defaults.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..files import Record, convert
from ..jobs.export import ExportReport, export_subnet, exported_path
from ..jobs.job import Job
from ..jobs.supernets import BEST, chosen_space
from ..latency.graph import Precision
from . import seam
from .subnet_trial import code_of
from .trial_base import trial_main


class FileParameters(Record, frozen=True):
    """What a trial of a subnet's file is given.

    Attributes
    ----------
    subnet : `largest`, `smallest`, `seqnet1` and so on, or what `task_of` makes of a code
    space, seed : of the supernet; None is the job's seed
    format : of the file
    """

    subnet: str
    space: str = BEST
    seed: int | None = None
    format: Literal["onnx", "tflite"] = "onnx"

    def written(self, job: Job, precision: Precision = "int8") -> tuple[Path, ExportReport]:
        """Export it into the job's work folder; raises as `export_subnet`."""
        subnet, space = code_of(self.subnet), chosen_space(job, self.space)
        path = exported_path(job, space, subnet, self.seed, precision, f".{self.format}")
        report = export_subnet(
            job, subnet, path, space=str(space), seed=self.seed, precision=precision
        )
        return path, report


def file_parameters(trial: seam.ThisTrial) -> FileParameters:
    """Those of a trial.

    Raises
    ------
    ConfigError
        NNI has others.
    """
    return convert(trial.parameters, FileParameters, "searchSpace")


def run(job: Job) -> str:
    """Export the subnet that NNI has for this trial and report its file.

    Returns
    -------
    a few lines about it

    Raises
    ------
    SpaceEvoError
        Not started by NNI, parameters that are not a file's, or as `export_subnet`.
    """
    trial = seam.ThisTrial()
    path, report = file_parameters(trial).written(job)
    found = report.agreement
    metrics: dict[str, Any] = {
        # Without labels there is no accuracy, but there are answers.
        "default": found.same if found.accuracy is None else found.accuracy,
        "same_answers": found.same,
        "largest_difference": found.largest_difference,
        "in_float": sum(report.operators.in_float.values()),
        "resolution": report.resolution,
        "file": str(path),
    }
    trial.report_final(metrics)
    return report.outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, 1 after an error that the user can mend."""
    return trial_main("nni_spaceevo.plugin.export_trial", __doc__, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
