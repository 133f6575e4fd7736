"""What the training of a supernet asks of its images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import ConfigError


class LabelledImages(Protocol):
    """Images with labels, to train on and held out; every dataset of `distill.data` is one.

    Attributes
    ----------
    train_size, test_size : how many there are to train on, and held out
    train_labels, test_labels : int64, (train_size,) and (test_size,), or None
    fingerprint : changes with the images; checkpoints carry it
    """

    @property
    def train_size(self) -> int:
        """See the class."""

    @property
    def test_size(self) -> int:
        """See the class."""

    @property
    def train_labels(self) -> Tensor | None:
        """See the class."""

    @property
    def test_labels(self) -> Tensor | None:
        """See the class."""

    @property
    def fingerprint(self) -> str:
        """See the class."""

    def train_batch(
        self, index: Tensor, resolution: int, seeds: Sequence[int] | None = None
    ) -> Tensor:
        """Training images (len(index), channels, resolution, resolution).

        They are augmented if there are seeds, each by its own seed alone. The first indices are of
        all kinds of images, for a few of them are taken to stand for all.
        """

    def test_batch(self, index: Tensor, resolution: int) -> Tensor:
        """Held-out images, as `train_batch`."""


def check_labels(labels: Tensor, classes: int, what: str) -> None:
    """Refuse labels that a network of so many classes cannot learn or be judged by.

    Parameters
    ----------
    labels : int64, (n,)
    classes : of the network's last layer
    what : the images, for the message

    Raises
    ------
    ConfigError
        A label that is no class, or a class without an image; names the first of them.
    """
    counts = torch.bincount(labels.clamp(min=0), minlength=classes)
    if len(counts) > classes or int(labels.min()) < 0:
        wrong = int(labels.max()) if len(counts) > classes else int(labels.min())
        raise ConfigError(
            f"supernet: {what}: label {wrong}; the hyperspace's last stage has {classes} classes, "
            f"expected 0 to {classes - 1}"
        )
    if missing := (counts == 0).nonzero().flatten().tolist():
        raise ConfigError(
            f"supernet: {what}: no image of class {missing[0]}; expected at least one of each of "
            f"the {classes} classes of the hyperspace's last stage"
        )


def shuffled_batches(n: int, size: int, rng: np.random.Generator) -> list[Tensor]:
    """Indices 0 to n - 1 shuffled, in whole batches; fewer than `size` make one batch."""
    order = torch.from_numpy(rng.permutation(n))
    return list(order[: _in_whole_batches(n, size)].split(size))


def calibration_batches(
    data: LabelledImages, resolution: int, size: int, count: int
) -> Iterator[Tensor]:
    """Up to `count` whole batches of the first training images, none of which is augmented."""
    images = torch.arange(_in_whole_batches(data.train_size, size))[: size * count]
    for index in images.split(size):
        yield data.train_batch(index, resolution)


def held_out_batches(
    data: LabelledImages,
    resolution: int,
    size: int,
    doing: str | None = None,
    which: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Held-out images in batches, with their labels if they have any.

    Parameters
    ----------
    resolution : in pixels
    size : images a batch
    doing : what a progress bar says; None shows none
    which : numbers of the images (n,); all by default
    """
    parts = (torch.arange(data.test_size) if which is None else which).split(size)
    for index in tqdm(parts, doing, leave=False, disable=None if doing else True):
        labels = None if data.test_labels is None else data.test_labels[index]
        yield data.test_batch(index, resolution), labels


def _in_whole_batches(n: int, size: int) -> int:
    return n - n % size or n
