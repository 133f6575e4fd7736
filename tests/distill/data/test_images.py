"""Datasets in memory, batches, and what is drawn for an image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from nni_spaceevo.distill.data import (
    ImageData,
    Images,
    batches,
    image_seeds,
    normalized,
    resize,
    to_channels,
)
from nni_spaceevo.distill.data.images import seeded
from nni_spaceevo.errors import ConfigError


def bytes_of(count, channels=1, size=8):
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8)


def noise(**changes):
    return ImageData(bytes_of(20), None, bytes_of(6), None, **changes)


def test_images_in_memory_are_images():
    data = noise()
    assert isinstance(data, Images)
    assert (data.train_size, data.test_size, data.channels) == (20, 6, 1)


def test_bytes_are_normalized_when_a_batch_is_made():
    data = noise(mean=(0.5,), std=(0.25,))
    index = torch.tensor([3, 1])
    expected = (data.train_images[index].float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(data.train_batch(index, 8), expected)
    assert data.test_batch(index, 16).shape == (2, 1, 16, 16)


def test_every_channel_has_its_mean():
    image = torch.full((3, 2, 2), 255, dtype=torch.uint8)
    found = normalized(image, (0.0, 0.5, 1.0), (1.0, 0.5, 0.25))
    assert found[:, 0, 0].tolist() == [1.0, 1.0, 0.0]


def test_augmentation_depends_on_each_images_seed_alone():
    data = noise(augment=v2.RandomCrop(8, padding=4))
    index, some = torch.arange(20), slice(7, 12)
    one, other = (image_seeds(np.random.default_rng(seed), 20) for seed in (5, 6))
    torch.manual_seed(1)
    a = data.train_batch(index, 8, one)
    torch.manual_seed(2)
    assert torch.equal(a, data.train_batch(index, 8, one))
    assert torch.equal(a[some], data.train_batch(index[some], 8, one[some]))
    assert not torch.equal(a, data.train_batch(index, 8, other))
    assert torch.equal(data.train_batch(index, 8), data.train_batch(index, 8))


def test_drawing_leaves_torchs_generator_as_it_was():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = torch.rand(1)
    seeded(9, torch.rand, 5)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)


def _flips():
    """Two functions of one name."""
    for _ in range(2):

        def flip(image):
            return image.flip(-1)

        yield flip


def test_the_fingerprint_follows_the_images():
    torch.manual_seed(0)
    a, b = noise(), noise()
    same = ImageData(a.train_images.clone(), None, a.test_images, None)
    assert a.fingerprint == same.fingerprint
    assert len({a.fingerprint, b.fingerprint, noise(mean=(0.5,)).fingerprint}) == 3
    assert noise(identity="mine").fingerprint == "mine"
    augmented = [replace(a, augment=v2.RandomCrop(8, padding=pixels)) for pixels in (1, 2)]
    assert len({data.fingerprint for data in (a, *augmented)}) == 3
    # A function is known by its name, not by its place in memory.
    flips = [v2.Compose([v2.Lambda(flipped), v2.RandomCrop(8)]) for flipped in _flips()]
    assert len({replace(a, augment=flip).fingerprint for flip in flips}) == 1


def test_grey_images_become_colours_and_nothing_else_does():
    grey = torch.randn(2, 1, 4, 4)
    assert torch.equal(to_channels(grey, 3)[:, 2], grey[:, 0])
    assert to_channels(grey, 1) is grey
    with pytest.raises(ConfigError, match="images of 3 channels; expected 1, or grey ones"):
        to_channels(torch.randn(2, 3, 4, 4), 1)


def test_resize_gives_the_resolution_and_leaves_fitting_images_alone():
    images = torch.randn(2, 1, 8, 8)
    assert resize(images, 24).shape == (2, 1, 24, 24)
    assert resize(images, 8) is images


@pytest.mark.parametrize(("n", "size"), [(10, 4), (9, 4), (8, 4), (2, 4)])
def test_batches_visit_all_but_a_lone_last_image_once(n, size):
    found = [len(b) for b in batches(n, size, np.random.default_rng(0))]
    assert 1 not in found
    assert sum(found) >= n - 1


def test_batches_repeat_with_the_seed():
    a, b = ([*batches(20, 6, np.random.default_rng(3))] for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
