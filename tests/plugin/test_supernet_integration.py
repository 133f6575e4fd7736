"""A real experiment that trains supernets, and what NNI's web page shows of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs.small_job import SUPERNET, write_small_job

from nni_spaceevo.files import to_yaml
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.plugin import seam

from .browser import PROGRAMS, chromium
from .curves import curve_keys
from .nni_experiments import NNI

pytestmark = [pytest.mark.slow, pytest.mark.experiment]

SPACES = ["synthetic-012-201", "synthetic-000-111"]


def write_experiment(job: Job) -> Path:
    """As `examples/digits/supernet.yml`, with two small spaces."""
    config = {
        "experimentName": "test",
        "searchSpace": {"space": {"_type": "choice", "_value": SPACES}},
        "trialCommand": "python3 -m nni_spaceevo.plugin.supernet_trial --job spaceevo.yaml",
        "trialCodeDirectory": ".",
        "trialConcurrency": 1,
        "maxTrialNumber": len(SPACES),
        "tuner": {"name": "GridSearch"},
        "trainingService": {"platform": "local"},
    }
    path = job.path.parent / "supernet.yml"
    path.write_text(to_yaml(config))
    return path


def test_an_experiment_trains_the_supernets_of_its_spaces(nni: NNI, tmp_path: Path) -> None:
    job = write_small_job(tmp_path / "job", supernet=SUPERNET)
    port = nni.create(write_experiment(job))
    nni.wait(port)
    trials = seam.trials(port)
    assert sorted(t.parameters["space"] for t in trials) == sorted(SPACES)
    for trial in trials:
        assert trial.metrics is not None
        assert trial.metrics["space"] == trial.parameters["space"]
        assert [point["precision"] for point in trial.intermediates] == ["fp32", "int8"]
        assert trial.metrics["default"] == trial.intermediates[-1]["default"]
        assert (job.supernets_path / "seed0" / f"{trial.metrics['space']}.pt").is_file()
        # Where the page's TensorBoard button looks.
        scalars = nni.home.glob(f"nni-experiments/*/environments/*/trials/{trial.id}/tensorboard/*")
        assert list(scalars)
    if chromium() is None:
        pytest.skip(f"all but the page was checked: none of {', '.join(PROGRAMS)} is installed")
    keys = curve_keys(port, "web_ui_supernet", tmp_path / "profile")
    assert {"largest", "smallest", "fp32_largest", "fp32_random", "loss_largest"} <= keys
