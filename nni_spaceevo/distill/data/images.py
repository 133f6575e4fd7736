"""What distillation asks of a dataset, and a small one in memory."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...files import digest

T = TypeVar("T")
_DRAWING = threading.Lock()


@runtime_checkable
class Images(Protocol):
    """Images to train on and images held out, each made when a batch asks for it.

    Attributes
    ----------
    channels : of every image
    mean, std : what values from 0 to 1 were normalized with, one or one a channel
    train_size, test_size : how many there are to train on, and held out
    train_labels, test_labels : int64, (train_size,) and (test_size,), or None; distillation by a
        teacher that is trained already needs none
    classes : number of classes, 0 without labels
    fingerprint : changes with the images; checkpoints carry it
    """

    @property
    def channels(self) -> int:
        """See the class."""

    @property
    def mean(self) -> tuple[float, ...]:
        """See the class."""

    @property
    def std(self) -> tuple[float, ...]:
        """See the class."""

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
    def classes(self) -> int:
        """See the class."""

    @property
    def fingerprint(self) -> str:
        """See the class."""

    def train_batch(
        self, index: Tensor, resolution: int, seeds: Sequence[int] | None = None
    ) -> Tensor:
        """Training images (len(index), channels, resolution, resolution), normalized.

        They are augmented if there are seeds, each by its own seed alone, so that it does not
        matter which images are asked for together. The first indices are of all kinds of images,
        for a few of them are taken to stand for all.

        Parameters
        ----------
        index : of images, int64
        resolution : in pixels
        seeds : as many as images, 0 to 2^63 - 1
        """

    def test_batch(self, index: Tensor, resolution: int) -> Tensor:
        """Held-out images, as `train_batch`."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """A small dataset in memory.

    Attributes
    ----------
    train_images, test_images : (n, channels, h, w), float of about zero mean and unit variance; or
        uint8, which a batch normalizes with `mean` and `std`
    train_labels, test_labels : int64, (n,), or None
    classes : number of classes, 0 without labels
    mean, std : what values from 0 to 1 are or were normalized with, one or one a channel
    augment : a torchvision transform of one training image (channels, h, w)
    identity : what tells this dataset from others; by default a hash of the images and of what a
        transform says of itself. A function says nothing of itself, so give it an identity, and
        another one when it changes
    """

    train_images: Tensor
    train_labels: Tensor | None
    test_images: Tensor
    test_labels: Tensor | None
    classes: int = 0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: Callable[[Tensor], Tensor] | None = None
    identity: str | None = None

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.train_images.shape[1]

    @property
    def train_size(self) -> int:
        """Number of training images."""
        return len(self.train_images)

    @property
    def test_size(self) -> int:
        """Number of held-out images."""
        return len(self.test_images)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of images and augmentation, or whatever `identity` says."""
        if self.identity is not None:
            return self.identity
        tensors = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        contents = (t.numpy().tobytes() for t in tensors if t is not None)
        # torchvision's transforms are modules, and show their settings; functions within them show
        # where they lie in this process's memory.
        augmented: tuple[str, ...] = ()
        if isinstance(self.augment, nn.Module):
            augmented = (re.sub(r" at 0x[0-9a-f]+", "", repr(self.augment)),)
        return digest(str((self.mean, self.std)), *contents, *augmented)

    def train_batch(
        self, index: Tensor, resolution: int, seeds: Sequence[int] | None = None
    ) -> Tensor:
        """See `Images.train_batch`."""
        images = self.train_images[index]
        if self.augment is not None and seeds is not None:
            drawn = zip(images, seeds, strict=True)
            images = torch.stack([seeded(seed, self.augment, image) for image, seed in drawn])
        return self._ready(images, resolution)

    def test_batch(self, index: Tensor, resolution: int) -> Tensor:
        """See `Images.test_batch`."""
        return self._ready(self.test_images[index], resolution)

    def _ready(self, images: Tensor, resolution: int) -> Tensor:
        if images.dtype == torch.uint8:
            images = normalized(images, self.mean, self.std)
        return resize(images, resolution)


def image_seeds(rng: np.random.Generator, count: int) -> list[int]:
    """Seeds of augmentation, one an image."""
    drawn: list[int] = rng.integers(2**63, size=count).tolist()
    return drawn


def seeded(seed: int, draw: Callable[..., T], *arguments: object) -> T:
    """What `draw` gives for its arguments when torch's random numbers start at `seed`.

    They are left as they were. torchvision's transforms draw from the one generator that all
    threads share.
    """
    generator = torch.default_generator
    with _DRAWING:
        before = generator.get_state()
        try:
            generator.manual_seed(seed)
            return draw(*arguments)
        finally:
            generator.set_state(before)


def normalized(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images (…, channels, h, w) of 0 to 255 as float of about zero mean and unit variance."""
    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (images.float() / 255 - shift) / scale


def resize(images: Tensor, resolution: int) -> Tensor:
    """Images (n, c, h, w) at (n, c, resolution, resolution), bilinear."""
    if images.shape[-1] == resolution:
        return images
    size = (resolution, resolution)
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Images (n, c, h, w) with so many channels; grey ones are repeated.

    Raises
    ------
    ConfigError
        They are neither grey nor of so many channels.
    """
    given = images.shape[1]
    if given == channels:
        return images
    if given != 1:
        raise ConfigError(f"dataset: images of {given} channels; expected {channels}, or grey ones")
    return images.expand(-1, channels, -1, -1)


def batches(n: int, size: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Indices 0 to n - 1 shuffled, in batches; a last batch of one image is left out."""
    order = rng.permutation(n)
    for start in range(0, n - 1, size):
        yield torch.from_numpy(order[start : start + size])
