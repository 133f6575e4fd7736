"""A trial of a profiling experiment: the latency predictor of one device.

NNI runs `python3 -m nni_spaceevo.plugin.profile_trial --job spaceevo.yaml` in `trialCodeDirectory`.
`device` of the trial's parameters is a device as `spaceevo profile` takes it. The predictor lies in
the job's work folder; that of ONNX Runtime's INT8 is what the job searches by, if it names none.
Whatever else runs on the machine disturbs the measurement, so trials go one at a time.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from ..jobs.job import Job
from ..jobs.predictors import profile_folder, profiled
from ..latency import LatencyPredictor
from . import seam
from .trial_base import trial_main


def metrics_of(predictor: LatencyPredictor) -> dict[str, Any]:
    """What a trial reports: how a predictor's held-out subnets come out; `default` within 5 %."""
    report, thirds = predictor.report["networks"], ("smallest", "middle", "largest")
    found = {key: report[key] for key in ("within_5", "within_10", "kendall_tau") if key in report}
    biases = dict(zip(thirds, report.get("bias_of_thirds", ()), strict=False))
    return {
        "default": report["within_5"],
        **found,
        **{f"bias_of_{third}": bias for third, bias in biases.items()},
        "gate": "; ".join(predictor.provenance.failures) or "passed",
        "predictor": predictor.name,
        "machine": platform.node(),
    }


def run(job: Job) -> str:
    """Profile the device that NNI has for this trial and report its predictor.

    Returns
    -------
    a line about it

    Raises
    ------
    SpaceEvoError
        Not started by NNI, parameters that are not a device's, or the device cannot be measured.
    """
    trial = seam.ThisTrial()
    device = trial.parameters.get("device")
    if trial.parameters.keys() != {"device"} or not isinstance(device, str):
        raise ConfigError(
            f"searchSpace: expected the key 'device' alone, with a device's name; given "
            f"{trial.parameters}"
        )
    metrics = metrics_of(profiled(job, device))
    trial.report_final(metrics)
    return f"{metrics['default']:.0f} % of subnets within 5 % -> {profile_folder(job, device)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, 1 after an error that the user can mend."""
    return trial_main("nni_spaceevo.plugin.profile_trial", __doc__, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
