from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.scoring import score_config
from nni_spaceevo.plugin import seam, trial
from nni_spaceevo.search import qt_score

from .nni_experiments import write_job


class _Trial:
    """Stands in for `seam.ThisTrial`."""

    parameters: ClassVar[dict[str, Any]] = {}
    reported: ClassVar[list[dict[str, Any]]] = []

    def report_final(self, metrics: dict[str, Any]) -> None:
        self.reported.append(metrics)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    job = write_job(tmp_path)
    monkeypatch.setattr(seam, "ThisTrial", _Trial)
    code = job.hyperspace.space("synthetic-012-201")
    monkeypatch.setattr(_Trial, "parameters", job.hyperspace.parameters(code))
    monkeypatch.setattr(_Trial, "reported", [])
    return job


def test_a_trial_reports_the_q_t_score_of_its_space(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    from nni_spaceevo.jobs.prepare import prepared_lut

    assert trial.main(["--job", str(job.path)]) == 0
    code = job.hyperspace.space("synthetic-012-201")
    expected = qt_score(prepared_lut(job), code, score_config(job, (1.5,)))
    (metrics,) = _Trial.reported
    assert metrics["default"] == expected.score
    assert metrics["space"] == str(code)
    assert metrics["share_within_T"] == expected.shares[0]
    assert metrics["top_loss"] == expected.top_losses[0]
    assert (metrics["min_ms"], metrics["max_ms"]) == (expected.min_ms, expected.max_ms)
    # NNI's page cannot show anything else.
    assert all(isinstance(value, str | float) for value in metrics.values())
    line = capsys.readouterr().out
    assert line.startswith("synthetic-012-201: Q-T score ")
    assert "of subnets within T" in line


def test_foreign_parameters_are_one_clear_line(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {**_Trial.parameters, "stage2/block_type": "vgg"}
    monkeypatch.setattr(_Trial, "parameters", wrong)
    assert trial.main(["--job", str(job.path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("SpaceEvo: stage2/block_type: 'vgg'; allowed ")
    assert error.count("\n") == 1
    assert _Trial.reported == []


def test_a_missing_job_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert trial.main(["--job", "nowhere.yaml"]) == 1
    assert "nowhere.yaml: cannot read" in capsys.readouterr().err


def test_a_trial_with_a_lut_imports_neither_torch_nor_nni(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    code = (
        "import sys\n"
        "from nni_spaceevo.plugin import seam, trial\n"
        "class T:\n"
        "    parameters = {p}\n"
        "    def report_final(self, metrics): pass\n"
        "seam.ThisTrial = T\n"
        "assert trial.main(['--job', {j}]) == 0\n"
        "heavy = {{'torch', 'nni', 'onnxruntime', 'sklearn', 'pandas'}} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    ).format(
        p=job.hyperspace.parameters(job.hyperspace.space("synthetic-000-000")),
        j=repr(str(job.path)),
    )
    subprocess.run([sys.executable, "-c", code], check=True)
