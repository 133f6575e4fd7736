"""The study of how many held-out batches a LUT needs, on features of which the truth is known."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from nni_spaceevo.distill.loss import nsr_loss

from .conftest import script


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """`benchmarks/lut_batches.py`."""
    return script("lut_batches")


def features(substages: int, images: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A teacher's features, and those of sub-stages that come near them, each its own way."""
    generator = torch.Generator().manual_seed(0)
    teacher = 3 + torch.randn((images, 4, 2, 2), generator=generator)
    noise = [torch.randn(teacher.shape, generator=generator) for _ in range(substages)]
    return teacher, [teacher + (0.3 + 0.004 * i) * n for i, n in enumerate(noise)]


def measured(study: ModuleType, substages: int, images: int):  # type: ignore[no-untyped-def]
    teacher, students = features(substages, images)
    return study.Measured(
        "stage1_resnet",
        np.arange(substages) % 2,
        np.stack([(s - teacher).square().mean((2, 3)).numpy() for s in students]),
        teacher.mean((2, 3)).double().numpy(),
        teacher.square().mean((2, 3)).double().numpy(),
    )


def test_losses_on_some_images_are_nsr_losses_of_these(study: ModuleType) -> None:
    teacher, students = features(3, 50)
    chosen = np.array([3, 8, 9, 21, 40])
    losses = measured(study, 3, 50).losses(chosen)
    assert losses.shape == (3, 5)
    expected = [float(nsr_loss(s[chosen], teacher[chosen])) for s in students]
    np.testing.assert_allclose(losses.mean(1), expected, rtol=1e-4)


@pytest.mark.parametrize("batches", [1, 3])
def test_draws_share_no_image_and_are_as_many_as_there_can_be(
    study: ModuleType, batches: int
) -> None:
    found = list(study.draws(1000, batches))
    assert {len(d) for d in found} == {64 * batches}
    assert len(found) == 1000 // (64 * batches)
    assert len(np.unique(np.concatenate(found))) == 64 * batches * len(found)


def test_stated_errors_and_rankings_are_those_observed(study: ModuleType) -> None:
    found = study.case(measured(study, 20, 6400))
    assert found["substages"] == 20
    for row in found["by_batches"][:3]:
        for kind in ("error", "difference_error"):
            assert row[f"{kind}_stated"] == pytest.approx(row[f"{kind}_observed"], rel=0.15)
        # Losses that lie evenly are easier to order than the normal ones which the formula is of.
        assert row["tau"] == pytest.approx(row["tau_stated"], abs=0.12)
        assert row["least_tau"] <= row["tau"] < 1


def test_the_table_has_a_line_for_every_number_of_batches(study: ModuleType) -> None:
    cases = [study.case(measured(study, 8, 6400))]
    lines = study.table(study.means_by_batches(cases)).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        str(n) for n in study.BATCHES
    ]
    assert all(line.count("|") == 9 for line in lines)
