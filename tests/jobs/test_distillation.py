"""What a job's distillation will be, and the distillation of all its stages."""

import pytest
from distill.data.folders import write_images
from distill.teachers.test_models import needs_lite
from distill.teachers.test_pretrained import STAGES

from nni_spaceevo.cli import main
from nni_spaceevo.errors import ConfigError
from nni_spaceevo.hyperspace import load_hyperspace
from nni_spaceevo.jobs.distillation import cells, plan, prepared_teacher
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
    assert text.splitlines()[:3] == [
        "Images   own_parts:grey_images: 48 to train on, 24 held out, 1 channels",
        "Teacher  own_parts:trained_tiny, weights of its own; quantized with LSQ+ first",
        "Blocks   mbv1_dual, mbv2_res, resnet, in every stage",
    ]
    rows = [line.split("  ") for line in text.splitlines()[4:8]]
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
    last = text.splitlines()[10].split()
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
