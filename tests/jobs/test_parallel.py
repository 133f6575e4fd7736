"""One task in several processes: what one process gives, and an end for all if one fails."""

import shutil
from pathlib import Path

import pytest
import torch
from several_processes import side_by_side, torchrun

from nni_spaceevo.cli import main
from nni_spaceevo.jobs.distillation import rows_folder

from .small_job import write_small_job

TASK = "stage2_mbv2_res"
DISTIL = ("-m", "nni_spaceevo.cli", "distill", "--job", "spaceevo.yaml", "--task", TASK)
# As NNI starts it; what the trial would say to NNI is written to files named after the process.
TRIAL = """
import json, os, sys
from nni_spaceevo.plugin import distill_trial, seam

class Trial:
    parameters = {"task": "stage2_mbv2_res"}
    def __init__(self):
        self.file = open(f"told_by_{os.environ['RANK']}", "a")
    def report_intermediate(self, metrics):
        print(json.dumps(metrics), file=self.file, flush=True)
    report_final = report_intermediate

seam.ThisTrial = Trial
sys.exit(distill_trial.main(["--job", "spaceevo.yaml"]))
"""


def job_in(folder):
    """Batches of 8, 8, 8, 8, 8, 8 and 2, so that one of three processes has none of the last."""
    job = write_small_job(
        folder,
        teacher={"model": "smooth_parts:Smooth"},
        dataset="smooth_parts:images",
        distill={
            **{"epochs_fp32": 2, "epochs_int8": 1, "batch_size": 8, "cache_gb": 0.01},
            **{"learning_rate_fp32": 1e-3, "learning_rate_int8": 1e-4},
        },
    )
    shutil.copy(Path(__file__).with_name("smooth_parts.py"), folder)
    return job


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The task in one process."""
    with pytest.MonkeyPatch.context() as patch:
        job = job_in(tmp_path_factory.mktemp("alone"))
        patch.chdir(job.path.parent)
        assert main(list(DISTIL[2:])) == 0
    return job


def checkpoint(job):
    return torch.load(job.stages_path / f"{TASK}.pt", weights_only=True)["content"]


def assert_as_alone(job, alone):
    """But for rounding: in INT8, what is almost half way between two integers may go either way."""
    found, expected = checkpoint(job), checkpoint(alone)
    for one, other in zip(found["losses"], expected["losses"], strict=True):
        tolerance = 1e-6 if one["precision"] == "fp32" else 5e-3
        for kind in ("largest", "smallest", "random"):
            assert one[kind] == pytest.approx(other[kind], rel=tolerance)
    for key, weight in expected["model"].items():
        difference = (found["model"][key].float() - weight.float()).norm()
        assert difference <= 1e-2 * weight.float().norm() + 1e-3, key
    rows, expected = (rows_folder(j).find(TASK) for j in (job, alone))
    assert rows.made_for == expected.made_for
    for row, other in zip(rows.rows, expected.rows, strict=True):
        assert row[:6] == other[:6]
        assert row[6] == pytest.approx(other[6], rel=2e-2)


@pytest.mark.slow
def test_two_processes_started_by_torchrun_as_a_trial(alone, tmp_path):
    job = job_in(tmp_path)
    (tmp_path / "trial.py").write_text(TRIAL)
    out = torchrun(2, "trial.py", cwd=tmp_path)
    assert out.count(f"{TASK}: INT8 NSR loss") == 1
    assert_as_alone(job, alone)
    assert [p.name for p in tmp_path.glob("told_by_*")] == ["told_by_0"]
    assert len((tmp_path / "told_by_0").read_text().splitlines()) == 3 + 1
    # Each has the features of its own images.
    assert len(list((job.features_path / "stage2").glob("*/"))) == 2
    assert len(list(job.features_path.rglob("*.npy"))) == 2 * 3 * 7


@pytest.mark.slow
def test_three_processes_one_of_which_has_no_image_of_the_last_batch(alone, tmp_path):
    job = job_in(tmp_path)
    out = torchrun(3, *DISTIL, cwd=tmp_path)
    assert out.count("epoch 3, int8: NSR loss") == 1
    assert out.count("Teacher's features: 0 of 21 batches came from the cache") == 1
    assert_as_alone(job, alone)


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others_and_the_run_goes_on_without_it(alone, tmp_path):
    job = job_in(tmp_path)
    (tmp_path / "fault").write_text("image 1")
    (first, message), (second, reason) = side_by_side(2, *DISTIL, cwd=tmp_path)
    assert (first, second) == (1, 1)
    assert "spaceevo: a.jpg: not a readable image" in reason
    assert "spaceevo: process 0 has lost the others of its task" in message
    assert "the message of the one that failed says why" in message
    (tmp_path / "fault").unlink()
    torchrun(1, *DISTIL, cwd=tmp_path)
    assert_as_alone(job, alone)


def test_several_processes_without_a_task_are_one_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["distill", "--job", str(job_in(tmp_path).path)]) == 1
    assert "work on one task together: name it with --task" in capsys.readouterr().err


def test_an_unknown_task_is_one_error(tmp_path, capsys):
    job = job_in(tmp_path)
    assert main(["distill", "--job", str(job.path), "--task", "stage9_vgg"]) == 1
    assert "--task 'stage9_vgg'; hyperspace 'synthetic' has stage1_mbv1" in capsys.readouterr().err


def test_a_task_alone_is_the_same_again_and_tells_what_the_cache_saved(alone, capsys):
    assert main(["distill", "--job", str(alone.path), "--task", TASK]) == 0
    out = capsys.readouterr().out
    assert out.count("epoch") == 3
    assert "0 of 0 batches came from the cache" in out
    assert main(["distill", "--job", str(alone.path), "--task", "stage2_resnet"]) == 0
    assert "21 of 21 batches came from the cache" in capsys.readouterr().out
