"""The datasets that a job can name."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError, FileAccessError
from ...files import digest
from ...own import import_own
from ..config import DatasetConfig, FashionMNISTConfig, ImageFolderConfig
from .folder import ImageFolderData
from .images import ImageData, Images

_FASHION_MEAN, _FASHION_STD = (0.2860,), (0.3530,)


def load_dataset(config: DatasetConfig, folder: Path = Path()) -> Images:
    """The dataset that a job names.

    Parameters
    ----------
    config : `digits`, the import path of a function, or the settings of another dataset
    folder : of the job file, where relative paths begin

    Raises
    ------
    ConfigError
        It is not known, not there, or too small.
    FileAccessError
        A file of it cannot be read.
    """
    if isinstance(config, FashionMNISTConfig):
        whole = fashion_mnist(folder / config.path, config.train_images)
        data: Images = whole if config.augment else _as_they_are(whole)
    elif isinstance(config, ImageFolderConfig):
        data = ImageFolderData(folder / config.train, folder / config.held_out)
    elif config == "digits":
        data = _digits()
    else:
        data = _own(config, folder)
    if data.train_size < 2 or data.test_size < 1:
        raise ConfigError(
            f"dataset: {data.train_size} images to train on and {data.test_size} held out; "
            "expected at least 2 and 1"
        )
    return data


def _own(name: str, folder: Path) -> Images:
    data = import_own(name, folder, "dataset")()
    if not isinstance(data, Images):
        needed = [n for n in dir(Images) if not n.startswith("_")]
        lacking = [n for n in needed if not hasattr(data, n)]
        raise ConfigError(
            f"dataset {name!r}: gave a {type(data).__name__} without {', '.join(lacking)}; "
            "expected nni_spaceevo.distill.data.ImageData, or an object with all that Images has"
        )
    return data


def _digits() -> ImageData:
    """scikit-learn's 1,797 real 8x8 digits, a quarter of each class held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None]
    mean, std = images.mean(), images.std()
    images = (images - mean) / std
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    rng = np.random.default_rng(0)
    held_out = np.zeros(len(labels), bool)
    for digit in range(10):
        members = np.flatnonzero(bunch.target == digit)
        held_out[rng.permutation(members)[: len(members) // 4]] = True
    test = torch.tensor(held_out)
    return ImageData(
        *(images[~test], labels[~test], images[test], labels[test], 10),
        mean=(float(mean) / 16,),
        std=(float(std) / 16,),
        # Empty, so that what was made when this was the only dataset stays valid.
        identity="",
    )


def fashion_mnist(folder: Path, train_images: int | None = None) -> ImageData:
    """Zalando's 70,000 grey images of clothes, 28x28, 10,000 of them held out.

    Parameters
    ----------
    folder : with the four idx files, plain or `.gz`; or torchvision's, with `FashionMNIST/raw`
    train_images : how many of those to train on are taken, the first of each class in equal shares;
        None for all

    Raises
    ------
    ConfigError
        A file is missing, or there are fewer images to train on.
    FileAccessError
        A file is damaged.
    """
    from torchvision.transforms import v2

    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(_idx(folder, f"{part}-images-idx3-ubyte", 3)[:, None])
        labels.append(_idx(folder, f"{part}-labels-idx1-ubyte", 1).long())
        if len(images[-1]) != len(labels[-1]):
            raise FileAccessError(
                f"{folder}: {len(images[-1])} images and {len(labels[-1])} labels in {part}-*; "
                "expected as many of both"
            )
    if train_images is not None:
        if train_images > len(labels[0]):
            raise ConfigError(
                f"dataset fashion_mnist: train_images {train_images}; {folder} has "
                f"{len(labels[0])} images to train on"
            )
        taken = _first_of_each_class(labels[0], train_images)
        images[0], labels[0] = images[0][taken], labels[0][taken]
    data = ImageData(
        *(images[0], labels[0], images[1], labels[1], 10), mean=_FASHION_MEAN, std=_FASHION_STD
    )
    size = tuple(images[0].shape[2:])
    augment = v2.Compose([v2.RandomCrop(size, padding=2), v2.RandomHorizontalFlip()])
    # Known by the images alone, whatever torchvision's next version says of these two.
    return replace(data, augment=augment, identity=data.fingerprint)


def _as_they_are(data: ImageData) -> ImageData:
    """The same images, never augmented; another dataset, for other networks come of it."""
    return replace(data, augment=None, identity=digest(data.fingerprint, "not augmented"))


def _first_of_each_class(labels: Tensor, count: int) -> Tensor:
    """Ascending indices of `count` of the `labels` (n,), as many of each class as can be."""
    rank = torch.empty_like(labels)
    for members in (torch.nonzero(labels == label).flatten() for label in labels.unique()):
        rank[members] = torch.arange(len(members))
    return rank.argsort(stable=True)[:count].sort().values


def _idx(folder: Path, name: str, dimensions: int) -> Tensor:
    """A tensor of bytes from one of MNIST's idx files."""
    places = [
        place / file
        for place in (folder, folder / "FashionMNIST" / "raw")
        for file in (name, f"{name}.gz")
    ]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise ConfigError(
            f"dataset fashion_mnist: no {name} or {name}.gz in {folder}; install Debian's "
            "dataset-fashion-mnist, or give the files' folder as `path`"
        )
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise FileAccessError(f"{path}: cannot read ({error}); expected an idx file") from error
    shape = tuple(np.frombuffer(content[4 : 4 + 4 * dimensions], ">i4").tolist())
    values = content[4 + 4 * dimensions :]
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(values) != np.prod(shape):
        raise FileAccessError(
            f"{path}: {len(content)} bytes that are no whole idx file of {dimensions} dimensions; "
            "copy it again"
        )
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).view(shape)
