"""One task of distillation, and the training batches of its epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..device import channels_last
from ..hyperspace import BlockOption, Hyperspace
from .data import Images, batches, image_seeds
from .teachers.protocol import FeatureTeacher

Features = tuple[Tensor, Tensor]
# Tells these random numbers from all others of the same job.
_OF_BATCHES = 1 << 31
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Batch:
    """A training batch.

    Attributes
    ----------
    index : of its images, (n,)
    resolution : in pixels
    seeds : of their augmentation, one an image
    """

    index: Tensor
    resolution: int
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.index)

    def part(self, which: slice) -> Batch:
        """Some of its images, each with its own seed."""
        return Batch(self.index[which], self.resolution, self.seeds[which])


@dataclass(frozen=True, eq=False)
class StageTask:
    """One (stage, block type), and what it is distilled and judged with.

    Attributes
    ----------
    hyperspace, stage, block : which elastic stage, by index
    teacher, data : what it learns from
    seed : of the job; everything random follows from it, stage and block
    device : where teacher and stage compute; images are on the CPU
    """

    hyperspace: Hyperspace
    stage: int
    block: int
    teacher: FeatureTeacher
    data: Images
    seed: int
    device: torch.device = _CPU

    @property
    def stage_name(self) -> str:
        """Name of the stage."""
        return self.hyperspace.searchable[self.stage].name

    @property
    def name(self) -> str:
        """Stage and block type, as in file names: `stage1_mbv2_res`."""
        return f"{self.stage_name}_{self.option.type}"

    @property
    def option(self) -> BlockOption:
        """The block type with its elastic choices."""
        return self.hyperspace.block_types[self.block]

    @property
    def seeds(self) -> list[int]:
        """What random generators of this task start with."""
        return [self.seed, self.stage, self.block]

    def batches(self, size: int, epoch: int) -> list[Batch]:
        """The training batches of an epoch, of `size` images but for the last.

        They follow from the job's seed and the epoch alone, not from stage or block type, so that
        the teacher's features of a stage are the same for all of its block types.
        """
        rng = np.random.default_rng([self.seed, epoch, _OF_BATCHES])
        resolutions = self.hyperspace.distill_resolutions
        return [
            Batch(index, int(rng.choice(resolutions)), image_seeds(rng, len(index)))
            for index in batches(self.data.train_size, size, rng)
        ]

    def train_features(
        self, index: Tensor, resolution: int, seeds: Sequence[int] | None = None
    ) -> Features:
        """The teacher's features before and after the stage; `seeds` augment the images."""
        return self.features(self.data.train_batch(index, resolution, seeds))

    def test_features(self, index: Tensor, resolution: int) -> Features:
        """The same of held-out images."""
        return self.features(self.data.test_batch(index, resolution))

    def features(self, images: Tensor) -> Features:
        """The same of images (n, channels, resolution, resolution)."""
        # A teacher that is no module has its own mind about where it computes.
        if isinstance(self.teacher, nn.Module):
            images = channels_last(images.to(self.device))
        before, after = self.teacher.stage_features(images, self.stage)
        return before.to(self.device), after.to(self.device)
