"""Batches of images to train on and to take statistics from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nni_spaceevo.distill.data import load_dataset
from nni_spaceevo.supernet.data import LabelledImages, calibration_batches, shuffled_batches

from .tiny import stripes


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(10, 4, [4, 4]), (8, 4, [4, 4]), (3, 4, [3]), (5, 4, [4])]
)
def test_batches_are_whole_and_shuffled(n, size, sizes):
    first, again = (shuffled_batches(n, size, np.random.default_rng(0)) for _ in range(2))
    assert [len(batch) for batch in first] == sizes
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(set(torch.cat(first).tolist())) == sum(sizes)
    other = shuffled_batches(n, size, np.random.default_rng(1))
    assert not torch.equal(torch.cat(other), torch.cat(first))


def test_statistics_are_taken_from_the_first_images_as_they_are():
    data = stripes(train=50)
    found = list(calibration_batches(data, 8, size=16, count=2))
    assert torch.equal(torch.cat(found), data.images[:32])
    assert [len(b) for b in calibration_batches(data, 12, size=16, count=9)] == [16, 16, 16]
    assert next(calibration_batches(data, 12, 16, 1)).shape == (16, 1, 12, 12)


def test_the_datasets_of_distillation_will_do():
    data: LabelledImages = load_dataset("digits")
    (batch,) = calibration_batches(data, 16, size=8, count=1)
    assert batch.shape == (8, 1, 16, 16)
