"""Images: a dataset is four tensors, resized to a resolution when a batch is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError


@dataclass(frozen=True, eq=False)
class ImageData:
    """A small dataset in memory.

    Attributes
    ----------
    train_images, test_images : float, (n, channels, h, w), about zero mean and unit variance
    train_labels, test_labels : int64, (n,)
    classes : number of classes
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int


def _digits() -> ImageData:
    """scikit-learn's 1,797 real 8x8 digits, a quarter of each class held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None]
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    rng = np.random.default_rng(0)
    held_out = np.zeros(len(labels), bool)
    for digit in range(10):
        members = np.flatnonzero(bunch.target == digit)
        held_out[rng.permutation(members)[: len(members) // 4]] = True
    test = torch.tensor(held_out)
    return ImageData(images[~test], labels[~test], images[test], labels[test], 10)


DATASETS: dict[str, Callable[[], ImageData]] = {"digits": _digits}


def load_dataset(name: str) -> ImageData:
    """Load a dataset by name, or raise `ConfigError` with the known names."""
    if name not in DATASETS:
        raise ConfigError(f"unknown dataset {name!r}; known: {', '.join(sorted(DATASETS))}")
    return DATASETS[name]()


def resize(images: Tensor, resolution: int) -> Tensor:
    """Images (n, c, h, w) at (n, c, resolution, resolution), bilinear."""
    if images.shape[-1] == resolution:
        return images
    size = (resolution, resolution)
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def batches(n: int, size: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Indices 0 to n - 1 shuffled, in batches; a last batch of one image is left out."""
    order = rng.permutation(n)
    for start in range(0, n - 1, size):
        yield torch.from_numpy(order[start : start + size])
