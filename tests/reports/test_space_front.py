"""The subnets that no other beats: those of brute force."""

from __future__ import annotations

import numpy as np
import pytest

from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.reports.space_front import SpaceFront, unbeaten

from .small_search import BEST, small_lut


def all_subnets(lut: QuantizedLUT, code: str) -> tuple[np.ndarray, np.ndarray]:
    """Latency and loss of every combination of rows."""
    space = lut.hyperspace.space(code)
    latencies, losses = [], []
    for resolution in lut.hyperspace.distill_resolutions:
        latency, loss = np.array([lut.other_ms(resolution)]), np.zeros(1)
        for cell in zip(range(3), space.blocks, space.windows, strict=True):
            row_loss, row_ms = (v.astype(float) for v in lut.cell(*cell, resolution))
            latency = np.add.outer(latency, row_ms).ravel()
            loss = np.add.outer(loss, row_loss).ravel()
        latencies.append(latency)
        losses.append(loss)
    return np.concatenate(latencies), np.concatenate(losses)


@pytest.fixture(scope="module")
def lut() -> QuantizedLUT:
    return small_lut()


@pytest.mark.parametrize("code", [BEST, "synthetic-000-000", "synthetic-212-021"])
def test_the_best_subnet_within_any_latency_is_that_of_brute_force(lut, code):
    latency, loss = all_subnets(lut, code)
    front = SpaceFront(lut, lut.hyperspace.space(code))
    for T in np.linspace(latency.min(), latency.max(), 50).tolist():
        found = front.best(T)
        assert found is not None and found.latency_ms <= T
        assert found.loss == pytest.approx(loss[latency <= T].min(), abs=1e-12)


def test_the_parts_of_a_subnet_are_rows_and_add_up(lut):
    space = lut.hyperspace.space(BEST)
    found = SpaceFront(lut, space).best(1.5)
    assert found.other_ms == lut.other_ms(found.resolution)
    assert found.latency_ms == pytest.approx(found.other_ms + sum(found.stage_ms))
    assert found.loss == pytest.approx(sum(found.stage_losses))
    for stage, row in enumerate(zip(found.stage_losses, found.stage_ms, strict=True)):
        cell = lut.cell(stage, space.blocks[stage], space.windows[stage], found.resolution)
        assert row in set(zip(*(values.tolist() for values in cell), strict=True))


def test_no_subnet_is_faster_than_the_fastest(lut):
    front = SpaceFront(lut, lut.hyperspace.space(BEST))
    fastest, _ = lut.latency_range(lut.hyperspace.space(BEST))
    assert front.best(fastest - 1e-6) is None
    assert front.best(fastest + 1e-6).latency_ms == pytest.approx(fastest)


def test_points_that_are_beaten_or_equal_are_dropped():
    latency, loss = np.array([2.0, 1, 1, 3, 2, 1]), np.array([4.0, 5, 5, 4, 4, 6])
    kept = unbeaten(latency, loss)
    assert list(zip(latency[kept], loss[kept], strict=True)) == [(1, 5), (2, 4)]
