"""Small folders of generated images."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, classes: int = 2, count: int = 6) -> Path:
    """Write `count` images a class, PNG and JPEG by turns, of a class's own colours."""
    rng = np.random.default_rng(classes)
    for c in range(classes):
        place = folder / f"class{c}"
        place.mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(90, size=(20 + i, 26, 3)) + 60 * c
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(place / f"{i}.{'png' if i % 2 else 'jpg'}")
    return folder


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write bytes as MNIST's files have them, compressed if the name says so."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wb") as stream:
        stream.write(header + values.astype(np.uint8).tobytes())


def write_fashion(folder: Path, suffix: str = ".gz", count: int = 12) -> Path:
    """Write the four files of FashionMNIST with `count` noisy images to train on."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", count), ("t10k", 5)):
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", rng.integers(256, size=(n, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(n) % 10)
    return folder
