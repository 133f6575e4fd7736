"""Spaces and images so small that a supernet of them trains in a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nni_spaceevo.hyperspace import BlockOption, Hyperspace, SpaceCode, Stage, load_hyperspace
from nni_spaceevo.quant import FP32, Precision, set_precision, uninitialized
from nni_spaceevo.supernet.config import PhaseConfig, SupernetConfig
from nni_spaceevo.supernet.model import Supernet, resized

CONFIG = SupernetConfig(
    fp32=PhaseConfig(epochs=2, learning_rate=0.4, warmup_epochs=1),
    int8=PhaseConfig(epochs=2, learning_rate=0.04),
    batch_size=32,
    recalibration_batches=2,
    evaluate_every=2,
    seed=3,
)

# Every block type that a preset searches, with the preset's choices and activation.
OPTIONS = {
    f"{preset}-{option.type}": option
    for preset in ("onnxw", "mobilew")
    for option in load_hyperspace(preset).block_types
}


def tiny_hyperspace(*options: BlockOption, name: str = "tiny") -> Hyperspace:
    """Two searchable stages of two width windows each, at 8 or 12 pixels."""
    options = options or (
        BlockOption(type="mbv2_res", kernel_sizes=(3, 5), expands=(1.0, 2.0), activation="relu6"),
        BlockOption(type="resnet", kernel_sizes=(3,), expands=(0.5, 1.0)),
    )
    linear = BlockOption(type="linear", activation="none")
    first = BlockOption(type="conv", kernel_sizes=(3,))
    return Hyperspace(
        schema=1,
        name=name,
        in_channels=1,
        resolutions=(8, 12),
        distill_resolutions=(8, 12),
        block_types=options,
        stages=(
            Stage(name="first_conv", widths=(8, 16), block=first),
            Stage(name="stage1", widths=(8, 16, 24), depths=(1, 2), stride=2, window_size=2),
            Stage(name="stage2", widths=(16, 24, 32), depths=(1, 3), stride=2, window_size=2),
            Stage(name="final_expand", widths=(32,), block=BlockOption(type="conv")),
            Stage(name="feature_mix", widths=(32,), block=BlockOption(type="pool_conv")),
            Stage(name="logits", widths=(4,), block=linear),
        ),
    )


def uniform(hyperspace: Hyperspace, block: int = 0, window: int = 0) -> SpaceCode:
    """The space of one block type and window in all stages."""
    stages = len(hyperspace.searchable)
    return SpaceCode(hyperspace.name, (block,) * stages, (window,) * stages)


@dataclass(frozen=True, eq=False)
class Stripes:
    """Images (n, 1, 8, 8) of four classes: stripes of four widths, with noise."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    fingerprint: str = "stripes"

    @property
    def train_labels(self) -> Tensor:
        """Of the images to train on."""
        return self.labels

    @property
    def train_size(self) -> int:
        """Images to train on."""
        return len(self.images)

    @property
    def test_size(self) -> int:
        """Images held out."""
        return len(self.test_images)

    def train_batch(
        self, index: Tensor, resolution: int, seeds: Sequence[int] | None = None
    ) -> Tensor:
        """Images, each lighter or darker by its seed."""
        images = resized(self.images[index], resolution)
        if seeds is not None:
            images = images + torch.tensor(seeds).view(-1, 1, 1, 1) / 2.0**65
        return images

    def test_batch(self, index: Tensor, resolution: int) -> Tensor:
        """Held-out images."""
        return resized(self.test_images[index], resolution)


def stripes(train: int = 96, test: int = 40) -> Stripes:
    """So many images to train on and held out."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(train + test) % 4
    waves = torch.sin(torch.arange(8.0) * (0.5 + labels.view(-1, 1, 1, 1)))
    images = waves.expand(-1, 1, 8, 8) + 0.3 * torch.randn(train + test, 1, 8, 8, generator=rng)
    return Stripes(images[:train], labels[:train], images[train:], labels[train:])


def used_supernet(
    hyperspace: Hyperspace, space: SpaceCode, precision: Precision = FP32
) -> Supernet:
    """A supernet in evaluation mode whose statistics and ranges come from random subnets."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    supernet = Supernet(hyperspace, space)
    set_precision(supernet, precision)
    images = torch.randn(4, hyperspace.in_channels, 12, 12)
    codes = [supernet.largest, *(hyperspace.random_subnet(space, rng) for _ in range(200))]
    with torch.no_grad():
        for used, code in enumerate(codes):
            if used > 4 and not (precision.quantized and uninitialized(supernet)):
                break
            supernet(images, code)
    return supernet.eval()
