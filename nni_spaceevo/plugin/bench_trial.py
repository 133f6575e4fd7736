"""A trial of a bench experiment: one subnet of a trained supernet, measured on this machine.

NNI runs `python3 -m nni_spaceevo.plugin.bench_trial --job spaceevo.yaml` in `trialCodeDirectory`.
The parameters are those of `nni_spaceevo.plugin.export_trial`. The subnet is exported in INT8 and
in floats, and both files are measured by turns. Whatever else runs on the machine disturbs that, so
trials go one at a time.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from typing import Any

from ..deploy.bench import Bench
from ..jobs.bench import bench_files
from ..jobs.job import Job
from . import seam
from .export_trial import file_parameters
from .trial_base import trial_main


def metrics_of(found: Bench) -> dict[str, Any]:
    """What a trial reports of an INT8 file and the same in floats; `default` is INT8's latency."""
    int8, fp32 = found.files
    known = {"predicted_ms": int8.predicted_ms, "accuracy": int8.accuracy}
    return {
        "default": int8.median_ms,
        "fp32_ms": fp32.median_ms,
        "int8_over_fp32": int8.ratio_to(fp32),
        **{key: value for key, value in known.items() if value is not None},
        "file": int8.file,
        "cpu": found.machine.cpu,
        "runtime": found.machine.runtime,
        "machine": platform.node(),
    }


def run(job: Job) -> str:
    """Measure the subnet that NNI has for this trial.

    Returns
    -------
    a table of both files

    Raises
    ------
    SpaceEvoError
        Not started by NNI, parameters that are not a file's, or as `export_subnet` and
        `bench_files`.
    """
    trial = seam.ThisTrial()
    given = file_parameters(trial)
    found = bench_files([given.written(job)[0], given.written(job, "float32")[0]], job)
    trial.report_final(metrics_of(found))
    return found.table()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, 1 after an error that the user can mend."""
    return trial_main("nni_spaceevo.plugin.bench_trial", __doc__, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
