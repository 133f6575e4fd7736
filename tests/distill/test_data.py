"""Datasets and batches."""

import numpy as np
import pytest
import torch

from nni_spaceevo.distill.data import batches, load_dataset, resize
from nni_spaceevo.errors import ConfigError


def test_digits_are_split_by_class_without_overlap():
    data = load_dataset("digits")
    assert len(data.train_labels) + len(data.test_labels) == 1797
    share = torch.bincount(data.test_labels) / torch.bincount(
        torch.cat([data.train_labels, data.test_labels])
    )
    assert torch.all((share > 0.24) & (share <= 0.25))
    both = torch.cat([data.train_images, data.test_images])
    assert both.mean().abs() < 1e-5
    assert both.std() == pytest.approx(1, abs=1e-5)


def test_an_unknown_dataset_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown dataset 'imagenet-22k'; known: .*digits"):
        load_dataset("imagenet-22k")


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
