"""A trial of a distillation experiment, without NNI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from jobs.small_job import write_small_job

from nni_spaceevo.jobs.distillation import rows_folder
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.lut.merge import StageRows
from nni_spaceevo.plugin import distill_trial, seam

from .stand_in import Trial


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(seam, "ThisTrial", Trial)
    Trial.begin(task="stage2_resnet")
    return write_small_job(tmp_path)


def test_a_trial_reports_its_curve_and_its_rows(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distill_trial.main(["--job", str(job.path)]) == 0
    assert [point["precision"] for point in Trial.curve] == ["fp32", "int8"]
    for point in Trial.curve:
        assert all(point[key] > 0 for key in ("default", "largest", "smallest"))
    (final,) = Trial.final
    found = rows_folder(job).find("stage2_resnet")
    assert found is not None
    assert StageRows.unpacked(final["rows"], "") == found
    losses = found.losses
    assert final["default"] == pytest.approx(sum(losses) / len(losses))
    assert (final["lowest_loss"], final["highest_loss"]) == (min(losses), max(losses))
    assert (final["task"], final["substages"]) == ("stage2_resnet", len(losses))
    # NNI's page cannot show anything else.
    assert all(isinstance(v, str | int | float) for v in (final | Trial.curve[0]).values())
    assert "stage2_resnet: INT8 NSR loss " in capsys.readouterr().out
    # Once more: nothing is trained, and NNI sees the same.
    curve = list(Trial.curve)
    from nni_spaceevo.distill.stage import StageRun

    monkeypatch.setattr(StageRun, "run", lambda *_: pytest.fail("distilled again"))
    assert distill_trial.main(["--job", str(job.path)]) == 0
    assert Trial.curve == curve * 2
    assert Trial.final == [final] * 2
    # Without the checkpoint too: the rows are enough.
    (job.stages_path / "stage2_resnet.pt").unlink()
    assert distill_trial.main(["--job", str(job.path)]) == 0
    assert Trial.final == [final] * 3


def test_rows_of_another_teacher_are_named_before_any_training(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    from nni_spaceevo.testing import synthetic_stage_rows

    folder = rows_folder(job)
    folder.add(synthetic_stage_rows(job.hyperspace, "stage2_resnet", folder.made_with), "test")
    assert distill_trial.main(["--job", str(job.path)]) == 1
    error = capsys.readouterr().err
    assert "stage2_resnet.json: made with another teacher or other images" in error
    assert not job.stages_path.exists()


def test_a_foreign_task_is_one_clear_line(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    Trial.begin(task="stage9_vgg")
    assert distill_trial.main(["--job", str(job.path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("SpaceEvo: task 'stage9_vgg'; hyperspace 'synthetic' has stage1_mbv1")
    assert error.count("\n") == 1
    assert Trial.final == []


def test_a_missing_job_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert distill_trial.main(["--job", "nowhere.yaml"]) == 1
    assert "nowhere.yaml: cannot read" in capsys.readouterr().err


def test_torch_is_imported_only_for_distilling() -> None:
    code = (
        "import sys, nni_spaceevo.plugin.distill_trial; "
        "assert not {'torch', 'nni'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
