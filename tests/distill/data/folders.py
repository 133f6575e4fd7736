"""Small folders of generated images."""

from __future__ import annotations

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
