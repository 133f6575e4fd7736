"""What a job's distillation will be, and the distillation of all its stages."""

import re
import shutil
from pathlib import Path

import pytest
from distill.data.folders import write_images
from distill.teachers.test_models import needs_lite
from distill.teachers.test_pretrained import STAGES

from nni_spaceevo.cli import main
from nni_spaceevo.errors import ConfigError
from nni_spaceevo.files import digest, to_json
from nni_spaceevo.hyperspace import load_hyperspace
from nni_spaceevo.jobs.distillation import cells, prepared_teacher, rows_folder
from nni_spaceevo.jobs.plan import plan
from nni_spaceevo.jobs.prepare import lut_recipe

from .small_job import write_small_job

OWN = """
import torch
from distill.teachers.tiny import grey_images, trained_tiny
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "own_parts.py").write_text(OWN)
    return tmp_path


def own_job(folder, **changes):
    own = {"teacher": {"model": "own_parts:trained_tiny"}, "dataset": "own_parts:grey_images"}
    return write_small_job(folder, **{**own, **changes})


def test_a_dry_run_shows_every_stage_and_writes_nothing(folder):
    job = own_job(folder, teacher={"model": "own_parts:trained_tiny", "quantize": True})
    text = plan(job)
    assert text.splitlines()[:4] == [
        "Images   own_parts:grey_images: 48 to train on, 24 held out, 1 channels",
        "Teacher  own_parts:trained_tiny, weights of its own; quantized with LSQ+ first",
        "Blocks   mbv1_dual, mbv2_res, resnet, in every stage",
        "Device   CPU, float32",
    ]
    rows = [line.split("  ") for line in text.splitlines()[5:9]]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        ["stage", "teacher nodes", "widths", "8 px", "16 px"],
        *(
            [f"stage{i}", f"{a} → {b}", widths, "4 → 4", "8 → 8"]
            for i, a, b, widths in (
                (1, "stem.2", "blocks.0.layers.7", "8 → 12"),
                (2, "blocks.0.layers.7", "blocks.2.add", "12 → 16"),
                (3, "blocks.2.add", "blocks.3.layers.7", "16 → 24"),
            )
        ),
    ]
    assert "9 tasks, one for each of 3 stages and 3 block types" in text
    assert not job.work.exists()


def test_a_dry_run_does_not_train_a_teacher(tmp_path):
    job = write_small_job(tmp_path)
    assert "Teacher  trained for 1 epochs" in plan(job)
    assert not job.work.exists()


def test_a_dry_run_on_the_command_line(folder, capsys):
    assert main(["distill", "--job", str(own_job(folder).path), "--dry-run"]) == 0
    assert "blocks.2.add → blocks.3.layers.7" in capsys.readouterr().out


@needs_lite
def test_an_imagenet_teacher_with_folders_of_images(tmp_path):
    write_images(tmp_path / "images")
    job = write_small_job(
        tmp_path,
        hyperspace="onnxw",
        teacher={"model": "efficientnet-lite0"},
        dataset={"name": "image_folder", "train": "images", "held_out": "images"},
    )
    text = plan(job)
    assert "image_folder: 12 to train on, 12 held out, 3 channels" in text
    last = text.splitlines()[11].split()
    assert last[:4] == ["stage6", "_blocks.14.add", "→", "_blocks.15._bn2"]
    assert last[4:16] == ["192", "→", "320", "5", "→", "5", "6", "→", "6", "7", "→", "7"]
    assert f"{len(load_hyperspace('onnxw').block_types) * 6} tasks" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": {"model": "resnet50"}}, "unknown model 'resnet50'"),
        (
            {"teacher": {"model": "torchvision:mobilenet_v2", "stages": STAGES}},
            "no weights; nothing is downloaded",
        ),
        ({"hyperspace": "onnxw"}, "too few stages: stage1 end at stride 4"),
        ({"dataset": {"name": "image_folder", "train": "a", "held_out": "b"}}, "a: no such folder"),
        (
            {"teacher": {"widths": [8, 8, 8, 8], "epochs": 1}},
            "the dataset has no labels to train one with",
        ),
    ],
    ids=["model", "weights", "stages", "images", "labels"],
)
def test_what_does_not_fit_is_one_line_before_anything_is_trained(folder, capsys, changes, words):
    job = own_job(folder, **changes)
    assert main(["distill", "--job", str(job.path), "--dry-run"]) == 1
    assert words in capsys.readouterr().err.strip()
    with pytest.raises(ConfigError):
        prepared_teacher(job, say=lambda line: None)


def test_a_teacher_says_where_its_weights_are_from(folder):
    said = []
    settings = {"model": "torchvision:mobilenet_v2", "weights": "random", "stages": STAGES}
    prepared_teacher(own_job(folder, teacher=settings), said.append)
    assert said == [
        "Teacher: torchvision:mobilenet_v2, RANDOM WEIGHTS: losses mean nothing, only speed does"
    ]


def test_the_lut_depends_on_teacher_and_dataset(folder):
    recipes = {
        lut_recipe(own_job(folder, **changes))
        for changes in (
            {},
            {"teacher": {"model": "own_parts:trained_tiny", "quantize": True}},
            {"dataset": "digits"},
            {"dataset": {"name": "image_folder", "train": "a", "held_out": "b"}},
            {"dataset": {"name": "image_folder", "train": "a", "held_out": "c"}},
        )
    }
    assert len(recipes) == 5


@pytest.mark.slow
def test_distil_does_all_stages(folder, capsys):
    job = own_job(folder, teacher={"model": "own_parts:trained_tiny", "quantize": True})
    assert main(["distill", "--job", str(job.path)]) == 0
    out = capsys.readouterr().out
    assert "Teacher: quantized with LSQ+; NSR loss" in out
    assert "162 sub-stages, mean INT8 NSR loss" in out
    assert len(list(job.work.rglob("*.pt"))) == 1 + len(cells(job))


@pytest.fixture
def smooth_job(tmp_path, monkeypatch):
    """A job whose teacher can be made to fail in a stage."""
    shutil.copy(Path(__file__).with_name("smooth_parts.py"), tmp_path)
    monkeypatch.chdir(tmp_path)
    return write_small_job(
        tmp_path,
        teacher={"model": "smooth_parts:Smooth"},
        dataset="smooth_parts:images",
        distill={"epochs_fp32": 1, "epochs_int8": 1, "batch_size": 25, "cache_gb": 0.1},
    )


@pytest.mark.slow
def test_tasks_that_fail_leave_the_others_alone_and_are_the_only_ones_done_again(
    smooth_job, capsys
):
    fault = smooth_job.path.with_name("fault")
    fault.write_text("nan 1")
    command = ["distill", "--job", str(smooth_job.path)]
    assert main(command) == 1
    told = capsys.readouterr()
    assert "spaceevo: 3 of 9 tasks failed; the others are done" in told.err
    reason = re.search(r"\n  (stage2_\w+, stage2_\w+, stage2_\w+): (.*)\n", told.err)
    assert reason[2] == "NSR loss is not finite in fp32 epoch 1; lower the learning rate"
    rows = rows_folder(smooth_job)
    failed = ["stage2_mbv1_dual", "stage2_mbv2_res", "stage2_resnet"]
    assert rows.missing() == sorted(reason[1].split(", ")) == failed
    # Two stages of three block types, four batches each.
    assert re.search(r"Teacher's features: \d+ of 24 batches came from the cache", told.out)

    fault.unlink()
    before = {p: p.stat().st_mtime_ns for p in rows.path.glob("*.json")}
    assert main(command) == 0
    assert rows.missing() == []
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert "162 sub-stages, mean INT8 NSR loss" in capsys.readouterr().out


def test_images_of_a_folder_are_read_once_before_anything_is_trained(tmp_path, capsys):
    for name in ("train", "val"):
        write_images(tmp_path / name)
    dataset = {"name": "image_folder", "train": "train", "held_out": "val"}
    job = write_small_job(tmp_path, dataset=dataset)
    broken = sorted((tmp_path / "val").rglob("*.png"))[0]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    assert main(["distill", "--job", str(job.path)]) == 1
    error = capsys.readouterr().err
    assert f"1 of 24 images cannot be read: {broken}: not a readable image" in error
    assert not job.teacher_path.exists()
    assert not (job.work / "images.json").exists()


def test_an_image_that_cannot_be_read_is_named_with_its_tasks(smooth_job, capsys):
    smooth_job.path.with_name("fault").write_text("image 0")
    assert main(["distill", "--job", str(smooth_job.path)]) == 1
    error = capsys.readouterr().err
    assert "spaceevo: 9 of 9 tasks failed" in error
    tasks = ", ".join(rows_folder(smooth_job).tasks)
    assert sorted(error.rpartition("\n  ")[2].partition(": ")[0].split(", ")) == sorted(
        tasks.split(", ")
    )
    assert error.endswith(": a.jpg: not a readable image\n")


def test_a_gpu_that_is_not_there_is_told_before_anything_starts(smooth_job, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job = write_small_job(smooth_job.path.parent, distill={"device": "cuda"})
    for more in (["--dry-run"], []):
        assert main(["distill", "--job", str(job.path), *more]) == 1
        assert "device is cuda, but torch" in capsys.readouterr().err


def test_where_it_is_done_makes_no_other_rows(folder):
    def made_with(**distill):
        return rows_folder(own_job(folder, distill=distill)).made_with

    assert made_with(device="cpu", tasks_per_gpu=2, cache_gb=1) == made_with()
    assert made_with(mixed_precision=True) != made_with()


def test_rows_of_before_there_was_a_setting_stay_valid(tmp_path):
    """Some settings came later; a job that does not name them is the same job."""
    job = write_small_job(tmp_path, dataset="fashion_mnist")
    path = "/usr/share/datasets/fashion-mnist"
    dataset = to_json({"name": "fashion_mnist", "path": path})
    config = job.config
    settings = [to_json(part) for part in (job.teacher, config.distill.deciding, config.lut)]
    before = digest(job.hyperspace.fingerprint, dataset, str(config.seed), *settings)
    assert rows_folder(job).made_with == before
    for setting in ({"train_images": 20}, {"augment": False}):
        other = write_small_job(tmp_path, dataset={"name": "fashion_mnist", **setting})
        assert rows_folder(other).made_with != before
