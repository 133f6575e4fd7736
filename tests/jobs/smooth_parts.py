"""An own teacher and dataset whose training rounding errors do not change much."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nni_spaceevo.distill.data import ImageData
from nni_spaceevo.errors import FileAccessError

# What is wrong at the moment: `nan` in what stage, or `image` in what process.
FAULT = Path("fault")


def fault(what: str, where: int) -> bool:
    """Whether the file `fault` says so."""
    return FAULT.is_file() and FAULT.read_text() == f"{what} {where}"


class Smooth(nn.Module):
    """Every channel varies, and so no loss is large."""

    widths, fingerprint = (6, 8, 8, 8), "smooth"

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(6, 1, 3, 3, generator=draw))
        self.others = nn.ParameterList(
            torch.randn(cout, cin, 3, 3, generator=draw) / 7
            for cin, cout in ((6, 8), (8, 8), (8, 8))
        )

    @torch.no_grad()
    def stage_features(self, images: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """As of any teacher."""
        features = [torch.conv2d(images, self.first, padding=1, stride=2)]
        for weight in self.others:
            features.append(torch.tanh(torch.conv2d(features[-1], weight, padding=1)))
        after = features[stage + 1]
        # Nothing is wrong with the single image on which a teacher is tried.
        return features[stage], after * torch.nan if len(after) > 1 and fault(
            "nan", stage
        ) else after


class Data(ImageData):
    """Images of which a process may not be able to read one."""

    def train_batch(
        self, index: Tensor, resolution: int, seeds: Sequence[int] | None = None
    ) -> Tensor:
        """As of any dataset."""
        if fault("image", int(os.environ.get("RANK", "0"))):
            raise FileAccessError("a.jpg: not a readable image")
        return super().train_batch(index, resolution, seeds)


def images() -> Data:
    """Fifty of noise, shifted at random."""
    drawn = torch.randn(60, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return Data(
        *(drawn[:50], None, drawn[50:], None),
        augment=lambda image: image.roll(int(torch.randint(16, ())), -1),
    )
