"""Hardly trained stages; what matters is how they are measured. Importable by other processes."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from nni_spaceevo.distill.config import DistillConfig
from nni_spaceevo.distill.data import ImageData, load_dataset
from nni_spaceevo.distill.stage import StageDistiller, StageRun, StageTask
from nni_spaceevo.distill.teachers import Teacher
from nni_spaceevo.lut import Row
from nni_spaceevo.lut.build import StageSampler
from nni_spaceevo.lut.config import LUTConfig
from nni_spaceevo.testing import synthetic_hyperspace

HYPERSPACE = synthetic_hyperspace()
# Two batches of each, and of 48 and 42 images.
CONFIG = LUTConfig(rows_per_cell=6, calibration_images=96, held_out_images=84)


class Distilled(NamedTuple):
    """A task, its stage, and the fingerprint of its training."""

    task: StageTask
    model: StageDistiller
    training: str


@cache
def stage_task(block: int) -> StageTask:
    """Stage 2 with a block type and a teacher of random weights."""
    torch.manual_seed(0)
    teacher = Teacher(HYPERSPACE, (8, 12, 16, 16), 10).requires_grad_(False).eval()
    data = load_dataset("digits")
    assert isinstance(data, ImageData)
    data = replace(data, train_images=data.train_images[:192], train_labels=None)
    return StageTask(HYPERSPACE, 1, block, teacher, data, seed=0)


def distilled(block: int) -> Distilled:
    """Stage 2 with a block type, distilled for a moment."""
    config = DistillConfig(epochs_fp32=1, epochs_int8=1, batch_size=96)
    with tempfile.TemporaryDirectory() as folder:
        run = StageRun(stage_task(block), config, Path(folder))
        return Distilled(stage_task(block), run.run(), run.made_for)


def measured_rows(block: int) -> list[Row]:
    """Distil a stage and measure its rows."""
    task, model, _ = distilled(block)
    return StageSampler(task, CONFIG).rows(model)
