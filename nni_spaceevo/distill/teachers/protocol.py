"""What distillation asks of a teacher, and whether one fits a hyperspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...errors import ConfigError
from ...hyperspace import Hyperspace
from ..data import Images


@runtime_checkable
class FeatureTeacher(Protocol):
    """What distillation asks of a teacher, ours or a user's own.

    Attributes
    ----------
    widths : channels before the first searchable stage and after each one
    fingerprint : changes with the features; checkpoints carry it
    """

    widths: tuple[int, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of whatever decides the features."""

    def eval(self) -> Any:
        """Switch to evaluation mode."""

    def stage_features(self, images: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """Features before and after searchable stage number `stage`, without gradients."""


@dataclass(frozen=True)
class StageFeatures:
    """A stage's features before and after it.

    Attributes
    ----------
    stage : its name
    widths : channels before and after
    sizes : height before and after, for each resolution
    """

    stage: str
    widths: tuple[int, int]
    sizes: dict[int, tuple[int, int]]


def borders(hyperspace: Hyperspace) -> dict[str, int]:
    """Where features are wanted, with the total stride there.

    Returns
    -------
    the stage before the first searchable one (`image` if there is none), then all searchable ones
    """
    first = hyperspace.stages.index(hyperspace.searchable[0])
    before = hyperspace.stages[first - 1].name if first else "image"
    found, stride = {}, 1
    for i, stage in enumerate(hyperspace.stages):
        if i == first:
            found[before] = stride
        stride *= stage.stride
        if stage.searchable:
            found[stage.name] = stride
    return found


def check_teacher(
    teacher: FeatureTeacher, hyperspace: Hyperspace, data: Images
) -> list[StageFeatures]:
    """Show a teacher an image of each resolution, and hold its features against the hyperspace.

    Raises
    ------
    ConfigError
        A feature is missing or has another width or size than expected; names the stage.
    """
    stages = hyperspace.searchable
    if len(teacher.widths) != len(stages) + 1:
        raise ConfigError(
            f"teacher: {len(teacher.widths)} widths; expected {len(stages) + 1}, one before "
            f"{stages[0].name} and one after each of {', '.join(s.name for s in stages)}"
        )
    teacher.eval()
    found = []
    for i, stage in enumerate(stages):
        widths = (teacher.widths[i], teacher.widths[i + 1])
        sizes = {}
        for resolution in hyperspace.distill_resolutions:
            image = data.test_batch(torch.tensor([0]), resolution)
            before = hyperspace.input_hw(stage, resolution)
            sizes[resolution] = (before, -(-before // stage.stride))
            for when, feature, width, size in zip(
                ("before", "after"),
                teacher.stage_features(image, i),
                widths,
                sizes[resolution],
                strict=True,
            ):
                if tuple(feature.shape) != (1, width, size, size):
                    raise ConfigError(
                        f"teacher: features {when} {stage.name} are {list(feature.shape[1:])} at "
                        f"{resolution} px; expected {[width, size, size]}"
                    )
        found.append(StageFeatures(stage.name, widths, sizes))
    return found
