"""Quantized losses of the sub-stages of a distilled stage, on held-out images.

Many sub-stages are measured side by side, batch by batch: the teacher computes a batch's features
once for all of them, and no other batch's are kept, however many images there are and however
large. What is kept from one batch to the next is small: each sub-stage's BatchNorm statistics, for
sub-stages share weights but not these, and its losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..distill.loss import SMALLEST_VARIANCE
from ..distill.stage import StageDistiller, SubStage
from ..network import recalibrate_batch_norm
from .config import BATCH_SIZE

Features = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class FeatureBatches:
    """A teacher's features of the first images, computed batch by batch whenever asked for.

    Attributes
    ----------
    features : gives the features before and after a stage, of images by index, at a resolution
    images : how many
    resolution : in pixels
    """

    features: Callable[[Tensor, int], Features]
    images: int
    resolution: int

    def __iter__(self) -> Iterator[Features]:
        # Batches of almost one size: BatchNorm has no statistics of one image that is left over.
        for index in torch.arange(self.images).tensor_split(-(-self.images // BATCH_SIZE)):
            yield self.features(index, self.resolution)


# ---- the teacher's variance -------------------------------------------------------------------


@dataclass(frozen=True)
class Variance:
    """Variance of the teacher's feature after a stage over all images, and the part of each image.

    Attributes
    ----------
    channels : variance, shape (channels,)
    shares : what each image adds to it, relative to the mean image, shape (images, channels)
    """

    channels: Tensor
    shares: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, batches: Iterable[Features]) -> Variance:
        """Of the images of all batches."""
        moments = [_moments(after) for _, after in batches]
        means, squares = (torch.cat(part) for part in zip(*moments, strict=True))
        return cls.of_moments(means, squares)

    @classmethod
    def of_moments(cls, means: Tensor, squares: Tensor) -> Variance:
        """Of the means over pixels of feature and squared feature, both (images, channels)."""
        mean = means.mean(0)
        own = squares - 2 * mean * means + mean.square()
        variance = own.mean(0)
        # No image makes a difference to a channel that takes the least variance.
        shares = torch.where(variance > SMALLEST_VARIANCE, own / variance, 1.0)
        return cls(variance.clamp_min(SMALLEST_VARIANCE).float(), shares)


def _moments(feature: Tensor) -> tuple[Tensor, Tensor]:
    # In double precision, in which the difference of two large sums loses nothing that matters.
    values = feature.double()
    return values.mean((2, 3)), values.square().mean((2, 3))


# ---- BatchNorm --------------------------------------------------------------------------------


def _statistics(model: StageDistiller, substage: SubStage) -> list[Tensor]:
    """BatchNorm's running statistics in the blocks that a sub-stage has."""
    blocks = model.stage.blocks[: len(substage[1])]
    norms = (m for m in blocks.modules() if isinstance(m, nn.BatchNorm2d))
    return [s for m in norms for s in (m.running_mean, m.running_var) if s is not None]


@torch.no_grad()
def calibrated(
    model: StageDistiller, substages: Sequence[SubStage], batches: Iterable[Features]
) -> list[list[Tensor]]:
    """BatchNorm statistics of each sub-stage: the mean of those of the batches."""
    means: list[list[Tensor]] = [[] for _ in substages]
    for count, (before, _) in enumerate(batches, start=1):
        for substage, mean in zip(substages, means, strict=True):
            recalibrate_batch_norm(model, before, substage)
            found = _statistics(model, substage)
            if not mean:
                mean.extend(s.clone() for s in found)
                continue
            for kept, new in zip(mean, found, strict=True):
                kept.lerp_(new, 1 / count)
    return means


# ---- losses -----------------------------------------------------------------------------------


@torch.no_grad()
def channel_errors(
    model: StageDistiller,
    substages: Sequence[SubStage],
    calibration: Iterable[Features],
    held_out: Iterable[Features],
) -> Iterator[Tensor]:
    """Mean squared errors of sub-stages, BatchNorm recalibrated for each.

    Yields
    ------
    for each held-out batch, (len(substages), images of the batch, channels)
    """
    statistics = calibrated(model, substages, calibration)
    for before, after in held_out:
        errors = []
        for substage, kept in zip(substages, statistics, strict=True):
            for target, value in zip(_statistics(model, substage), kept, strict=True):
                target.copy_(value)
            student = model(before, substage).float()
            errors.append((student - after.float()).square().mean((2, 3)))
        yield torch.stack(errors)


def image_losses(errors: Iterable[Tensor], variance: Variance) -> np.ndarray:
    """Quantized NSR loss of each sub-stage, image by image, shape (substages, images).

    The mean over the images is `nsr_loss` of all of them at once, up to rounding: in evaluation
    mode no image sees another. The spread over the images gives that mean's standard error. The
    mean is a ratio, and other images would have had another variance as well as another error: so
    an image's loss has, besides its error, what its share of the variance does to the mean (the
    delta method). A hard image has much of the variance, too, so that the standard error would be
    overstated without.

    Parameters
    ----------
    errors : mean squared errors, for each batch (substages, images of the batch, channels)
    variance : of the teacher's feature on the same images
    """
    parts, total = [], torch.zeros(())
    for batch in errors:
        relative = batch / variance.channels
        parts.append(relative.mean(2).double())
        total = total + relative.sum(1).double()
    losses = torch.cat(parts, 1)
    channel_losses = total / losses.shape[1]
    # One at a time: a matrix product's last bits depend on a row's neighbours.
    owed = [(1 - variance.shares) @ of_one / len(of_one) for of_one in channel_losses]
    return np.asarray((losses + torch.stack(owed)).cpu().numpy())
