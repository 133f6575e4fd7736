"""Image folders as of ImageNet, read when a batch asks for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...errors import ConfigError, FileAccessError
from ...files import digest
from .images import normalized, seeded

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Pillow lets go of Python's lock while it decodes. Results do not depend on the number.
_THREADS = 8
# Images that a pool is given at a time, to be checked.
_PART = 1000
# Damaged images that an error names.
_SHOWN = 3


class ImageFolderData:
    """A folder of images to train on and one held out, each with one folder a class, or with none.

    Training images are cropped and flipped at random, as is usual for ImageNet: torchvision's
    `RandomResizedCrop` and `RandomHorizontalFlip`. Held-out images are resized to 8/7 of the
    resolution and cropped in the centre.

    Parameters
    ----------
    train, test : the two folders

    Raises
    ------
    ConfigError
        A folder is missing or has a class without images; names it.
    """

    channels = 3
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, train: Path, test: Path) -> None:
        self._train, train_classes = _samples(train)
        self._test, test_classes = _samples(test)
        labelled = len(train_classes) > 1 and train_classes == test_classes
        self.classes = len(train_classes) if labelled else 0
        self.train_labels = _labels(self._train) if labelled else None
        self.test_labels = _labels(self._test) if labelled else None
        self._folders = (train, test)

    @property
    def train_size(self) -> int:
        """Number of training images."""
        return len(self._train)

    @property
    def test_size(self) -> int:
        """Number of held-out images."""
        return len(self._test)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all images' names and sizes in bytes."""
        parts = []
        for folder, samples in zip(self._folders, (self._train, self._test), strict=True):
            parts += [f"{os.path.relpath(p, folder)} {Path(p).stat().st_size}" for p, _ in samples]
        return digest("\n".join(parts))

    def train_batch(
        self, index: Tensor, resolution: int, seeds: Sequence[int] | None = None
    ) -> Tensor:
        """See `Images.train_batch`."""
        return _batch([self._train[i][0] for i in index.tolist()], resolution, seeds)

    def test_batch(self, index: Tensor, resolution: int) -> Tensor:
        """See `Images.test_batch`."""
        return _batch([self._test[i][0] for i in index.tolist()], resolution, None)

    def check(self) -> None:
        """Read every image once, with a bar: days of work begin only with images that are whole.

        Raises
        ------
        FileAccessError
            Some cannot be read; names the first ones.
        """
        paths = [path for path, _ in (*self._train, *self._test)]
        wrong: list[str] = []
        with (
            ThreadPoolExecutor(_THREADS) as pool,
            tqdm(None, "Checking images", len(paths), mininterval=1) as bar,
        ):
            # In parts, for a pool queues all that it is given.
            for start in range(0, len(paths), _PART):
                part = paths[start : start + _PART]
                wrong += [reason for reason in pool.map(_reason, part) if reason]
                bar.update(len(part))
        if wrong:
            more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
            raise FileAccessError(
                f"{len(wrong)} of {len(paths):,} images cannot be read: "
                f"{'; '.join(wrong[:_SHOWN])}{more}"
            )


def _samples(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """Paths with the number of their class, shuffled once for all, and the classes' names."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    if not folder.is_dir():
        raise ConfigError(f"dataset: {folder}: no such folder; expected one with images")
    try:
        classes = sorted(p.name for p in folder.iterdir() if p.is_dir()) or [""]
        numbers = {name: i for i, name in enumerate(classes)}
        samples = make_dataset(str(folder), numbers, IMG_EXTENSIONS, allow_empty=True)
    except OSError as error:
        raise FileAccessError(f"{folder}: cannot read ({error.strerror})") from error
    empty = sorted(set(range(len(classes))) - {label for _, label in samples})
    if empty:
        raise ConfigError(
            f"dataset: {folder / classes[empty[0]]}: no images in this folder; expected files "
            f"ending in {', '.join(IMG_EXTENSIONS)}"
        )
    order = np.random.default_rng(0).permutation(len(samples))
    return [samples[i] for i in order], classes


def _labels(samples: list[tuple[str, int]]) -> Tensor:
    return torch.tensor([label for _, label in samples])


def _batch(paths: list[str], resolution: int, seeds: Sequence[int] | None) -> Tensor:
    with ThreadPoolExecutor(_THREADS) as pool:
        drawn = repeat(None) if seeds is None else seeds
        images = pool.map(_image, paths, repeat(resolution), drawn)
        return torch.stack(list(images))


def _image(path: str, resolution: int, seed: int | None) -> Tensor:
    """One image (3, resolution, resolution), augmented if it has a seed."""
    from torchvision.transforms.v2 import functional as F

    image = _read(path)
    if seed is None:
        image = F.resize(image, [round(resolution * 8 / 7)])
        image = F.center_crop(image, [resolution])
    else:
        image = _random_cut(image, resolution, seed)
    return normalized(F.pil_to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)


def _reason(path: str) -> str:
    """Why an image cannot be read, or nothing."""
    try:
        _read(path)
    except FileAccessError as error:
        return str(error)
    return ""


def _read(path: str) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    # Pillow raises SyntaxError and ValueError for some damaged files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileAccessError(
            f"{path}: not a readable image ({error}); expected a whole file that Pillow reads, "
            "such as JPEG or PNG; repair or delete it"
        ) from error


def _random_cut(image: Any, resolution: int, seed: int) -> Any:
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(resolution)
    # Only what is drawn needs the lock; the cutting does not.
    place, flip = seeded(seed, lambda: (crop.make_params([image]), torch.rand(()) < 0.5))
    cut = crop.transform(image, place)
    return v2.functional.horizontal_flip(cut) if flip else cut
