"""Losses of sub-stages, image by image and batch by batch."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from nni_spaceevo.distill.loss import nsr_loss
from nni_spaceevo.distill.stage import StageDistiller, SubStage
from nni_spaceevo.lut import measure
from nni_spaceevo.lut.loss_errors import MeanLosses
from nni_spaceevo.lut.measure import (
    FeatureBatches,
    Features,
    Variance,
    calibrated,
    channel_errors,
    image_losses,
)
from nni_spaceevo.network import recalibrate_batch_norm

from .distilled_stages import Distilled


@pytest.fixture(scope="module")
def model(stage: Distilled) -> StageDistiller:
    return stage.model


@pytest.fixture(scope="module")
def held_out(stage: Distilled) -> Features:
    """The teacher's features of 90 held-out images."""
    return stage.task.test_features(torch.arange(90), 16)


@pytest.fixture(scope="module")
def calibration(stage: Distilled) -> Features:
    return stage.task.train_features(torch.arange(48), 16)


def some_substages(model: StageDistiller) -> list[SubStage]:
    rng = np.random.default_rng(0)
    return [model.largest(), model.smallest(), *(model.random(rng) for _ in range(3))]


def split(features: Features, *sizes: int) -> list[Features]:
    """Features in batches of these sizes."""
    before, after = (f.split(list(sizes)) for f in features)
    return list(zip(before, after, strict=True))


def losses_of(
    model: StageDistiller,
    substages: list[SubStage],
    calibration: list[Features],
    held_out: list[Features],
) -> np.ndarray:
    errors = channel_errors(model, substages, calibration, held_out)
    return image_losses(errors, Variance.of(held_out))


# ---- losses -------------------------------------------------------------------------------------


def test_the_mean_loss_is_the_nsr_loss_of_all_images_at_once_in_whatever_batches(
    model: StageDistiller, held_out: Features, calibration: Features
) -> None:
    # Of a channel that never changes the variance is 0, and both take the same least one.
    before, after = held_out[0], held_out[1].clone()
    after[:, 3] = 0.7
    substages, expected = some_substages(model), []
    with torch.no_grad():
        for substage in substages:
            recalibrate_batch_norm(model, calibration[0], substage)
            expected.append(float(nsr_loss(model(before, substage), after)))
    whole = losses_of(model, substages, [calibration], [(before, after)])
    np.testing.assert_allclose(whole.mean(1), expected, rtol=1e-4)
    for sizes in ((64, 26), (1, 44, 45)):
        parts = losses_of(model, substages, [calibration], split((before, after), *sizes))
        np.testing.assert_allclose(parts, whole, rtol=1e-3)


def test_substages_are_measured_side_by_side_as_each_alone(
    model: StageDistiller, held_out: Features, calibration: Features
) -> None:
    substages, parts = some_substages(model), split(held_out, 50, 40)
    batches = split(calibration, 24, 24)
    together = losses_of(model, substages, batches, parts)
    for substage, losses in zip(substages, together, strict=True):
        (alone,) = losses_of(model, [substage], batches, parts)
        assert np.array_equal(alone, losses)


def features_and_copy(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of images of unequal contrast, and a copy that misses more where there is more."""
    generator = torch.Generator().manual_seed(seed)
    contrast = torch.rand((images, 3, 1, 1), generator=generator) + 0.1
    teacher = 1 + contrast * torch.randn((images, 3, 2, 2), generator=generator)
    error = 0.3 * contrast * torch.randn(teacher.shape, generator=generator)
    return teacher, teacher + error


def losses_of_copy(teacher: Tensor, copy: Tensor) -> np.ndarray:
    errors = (copy - teacher).square().mean((2, 3))
    return image_losses([errors[None]], Variance.of([(teacher, teacher)]))[0]


def test_the_standard_error_is_that_of_leaving_out_one_image_at_a_time() -> None:
    teacher, copy = features_and_copy(60, seed=0)
    losses = losses_of_copy(teacher, copy)
    keep = ~torch.eye(60, dtype=torch.bool)
    without = np.array([float(nsr_loss(copy[k], teacher[k])) for k in keep])
    jackknife = math.sqrt(59 / 60 * np.square(without - without.mean()).sum())
    assert losses.std(ddof=1) / math.sqrt(60) == pytest.approx(jackknife, rel=0.06)


def test_standard_errors_say_how_losses_on_other_images_differ() -> None:
    losses = [losses_of_copy(*features_and_copy(100, seed)) for seed in range(300)]
    found = MeanLosses.of(np.array(losses))
    stated = np.sqrt(np.mean(np.square(found.loss_error)))
    assert stated == pytest.approx(found.loss.std(ddof=1), rel=0.1)


def test_images_of_a_constant_feature_have_the_error_alone() -> None:
    teacher = torch.full((4, 2, 3, 3), 0.5)
    copy = teacher + torch.arange(4.0).view(4, 1, 1, 1)
    np.testing.assert_allclose(losses_of_copy(teacher, copy), [0, 1e6, 4e6, 9e6], rtol=1e-5)


# ---- BatchNorm ----------------------------------------------------------------------------------


def test_statistics_of_several_batches_are_the_mean_of_each(
    model: StageDistiller, calibration: Features
) -> None:
    # Neither has a convolution on a shortcut, whose statistics would be another sub-stage's.
    substages = [model.largest(), model.smallest()]
    parts = split(calibration, 16, 16, 16)
    each = [calibrated(model, substages, [part]) for part in parts]
    for i, found in enumerate(calibrated(model, substages, parts)):
        for statistic, *alone in zip(found, *(e[i] for e in each), strict=True):
            # So many channels has the smallest; those beyond are of the largest.
            used = slice(0, model.elastic.widths[0])
            torch.testing.assert_close(statistic[used], torch.stack(alone).mean(0)[used])


# ---- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 2, 64, 65, 128, 200])
def test_batches_are_of_almost_one_size_and_of_all_first_images(images: int) -> None:
    batches = [index for index, _ in FeatureBatches(lambda index, r: (index, index), images, 8)]
    assert torch.equal(torch.cat(batches), torch.arange(images))
    sizes = [len(index) for index in batches]
    assert max(sizes) <= measure.BATCH_SIZE
    assert max(sizes) - min(sizes) <= 1


def test_few_batches_of_features_are_in_memory_however_many_there_are(
    stage: Distilled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "BATCH_SIZE", 8)
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def watched(index: Tensor, resolution: int) -> Features:
        nonlocal most
        found = stage.task.test_features(index, resolution)
        alive.add(found[1])
        most = max(most, len(alive))
        return found

    batches = FeatureBatches(watched, 80, 16)
    errors = channel_errors(stage.model, some_substages(stage.model), batches, batches)
    assert image_losses(errors, Variance.of(batches)).shape == (5, 80)
    # One, and the one before, which is let go when the next is there.
    assert most <= 2
