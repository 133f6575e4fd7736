"""A problem small enough to distil in a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nni_spaceevo.distill.config import DistillConfig, TeacherConfig
from nni_spaceevo.distill.data import ImageData, load_dataset
from nni_spaceevo.distill.stage import StageRun, StageTask
from nni_spaceevo.distill.teachers import Teacher, train_teacher
from nni_spaceevo.hyperspace import Hyperspace
from nni_spaceevo.testing import synthetic_hyperspace

TEACHER = TeacherConfig(widths=(8, 12, 16, 16), epochs=2, min_accuracy=0.05)
DISTILL = DistillConfig(epochs_fp32=2, epochs_int8=2, batch_size=32)


@dataclass
class Small:
    """A hyperspace, a few hundred digits and a hardly trained teacher."""

    hyperspace: Hyperspace
    data: ImageData
    teacher: Teacher

    def run(
        self, folder: Path, config: DistillConfig = DISTILL, features: Path | None = None
    ) -> StageRun:
        """A distillation run of stage 2, block type 1."""
        task = StageTask(self.hyperspace, 1, 1, self.teacher, self.data, seed=3)
        return StageRun(task, config, folder, features)


def few_digits() -> ImageData:
    """The first 160 and 60 digits."""
    d = load_dataset("digits")
    assert isinstance(d, ImageData)
    assert d.train_labels is not None and d.test_labels is not None
    return ImageData(
        d.train_images[:160], d.train_labels[:160], d.test_images[:60], d.test_labels[:60], 10
    )


def small_problem(folder: Path) -> Small:
    """The problem, its teacher trained into `folder`."""
    hyperspace, data = synthetic_hyperspace(), few_digits()
    teacher = train_teacher(hyperspace, data, TEACHER, 0, folder / "teacher.pt")
    return Small(hyperspace, data, teacher)
