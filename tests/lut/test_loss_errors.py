"""How well losses are known: standard errors, and pairs in the right order."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.lut.loss_errors import (
    LossErrors,
    MeanLosses,
    error_table,
    right_pairs,
    standard_errors,
    verdict,
)
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace()
LUT = synthetic_lut(HYPERSPACE, HYPERSPACE.space("synthetic-120-201"), rows_per_cell=8)


def with_errors(loss: float, paired: float, images: int = 640) -> QuantizedLUT:
    """The synthetic LUT with the same errors in every row."""
    n = len(LUT)
    columns = {**LUT.columns, "loss_error": np.full(n, loss), "paired_error": np.full(n, paired)}
    header = msgspec.structs.replace(LUT.header, held_out_images=images)
    return QuantizedLUT.from_columns(HYPERSPACE, columns, header)


# ---- means over images --------------------------------------------------------------------------


def test_standard_errors_say_how_means_over_batches_scatter(rng: np.random.Generator) -> None:
    losses = rng.gamma(2.0, 0.1, (3, 500 * 64))
    batches = losses.reshape(3, 500, 64).mean(2)
    predicted = [standard_errors(losses[:, i * 64 : i * 64 + 64]) for i in range(500)]
    typical = np.sqrt(np.mean(np.square(predicted), axis=0))
    np.testing.assert_allclose(typical, batches.std(1, ddof=1), rtol=0.08)


def test_what_all_substages_share_is_in_no_paired_error(rng: np.random.Generator) -> None:
    own = rng.normal(1.0, 0.1, (5, 640))
    shared = rng.normal(0.0, 1.0, 640)
    alone, together = MeanLosses.of(own), MeanLosses.of(own + shared)
    np.testing.assert_allclose(together.paired_error, alone.paired_error)
    assert (together.loss_error > 5 * alone.loss_error).all()
    # Nothing is shared here, so that both errors are one.
    np.testing.assert_allclose(alone.paired_error, alone.loss_error, rtol=0.15)


def test_two_substages_that_differ_by_a_constant_have_no_paired_error() -> None:
    losses = np.array([[1.0, 5.0, 3.0], [2.0, 6.0, 4.0]])
    found = MeanLosses.of(losses)
    np.testing.assert_allclose(found.paired_error, 0, atol=1e-12)
    assert list(found.loss) == [3.0, 4.0]


def test_a_row_has_three_digits_of_an_error() -> None:
    row, _ = MeanLosses.of(np.array([[1.0, 2.0, 4.0], [1.0, 2.5, 3.0]])).rows()
    assert row == (7 / 3, 0.882, 0.312)


@pytest.mark.parametrize(("shape", "known"), [((3, 1), (False, False)), ((1, 3), (True, False))])
def test_one_image_or_one_substage_leaves_errors_unknown(
    shape: tuple[int, int], known: tuple[bool, bool]
) -> None:
    for loss, *errors in MeanLosses.of(np.arange(3.0).reshape(shape)).rows():
        assert loss >= 0
        assert tuple(e is not None for e in errors) == known


# ---- ranking ------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0])
def test_noise_leaves_as_many_pairs_in_order_as_predicted(
    noise: float, rng: np.random.Generator
) -> None:
    true = rng.normal(size=1500)
    seen = true + noise * rng.normal(size=1500)
    first, second = np.triu_indices(1500, 1)
    right = np.mean((true[first] < true[second]) == (seen[first] < seen[second]))
    assert right == pytest.approx(right_pairs(1.0, noise), abs=0.015)


def test_no_noise_orders_all_pairs_and_nothing_but_noise_half_of_them() -> None:
    assert right_pairs(1.0, 0.0) == 1.0
    assert right_pairs(0.0, 1.0) == 0.5


def test_errors_of_a_lut_are_means_of_squares_over_rows() -> None:
    lut = with_errors(0.03, 0.01)
    lut.columns["loss_error"][: len(lut) // 2] = 0.04
    found = LossErrors.of(lut)
    assert found is not None
    assert found.loss == pytest.approx(math.sqrt((0.03**2 + 0.04**2) / 2))
    assert (found.paired, found.batches) == (pytest.approx(0.01), 10)
    cells = [lut.cell(0, b, w, 8)[0].astype(float) for b in range(3) for w in range(3)]
    assert found.within == pytest.approx(np.sqrt(np.mean([c.var(ddof=1) for c in cells])), rel=0.1)
    # Windows of one block type lie 0, .05 and .1 above the best, or .05, 0 and .05.
    assert 0.02 < found.between < 0.06


def test_errors_fall_with_the_square_root_of_the_batches() -> None:
    found = LossErrors(images=640, loss=0.03, paired=0.01, within=0.1, between=0.2)
    assert found.factor(10) == 1
    assert found.factor(40) == 0.5
    assert found.right_pairs(10) == pytest.approx(right_pairs(math.sqrt(0.0099), 0.01))
    shares = [found.right_pairs(n) for n in (1, 2, 5, 10)]
    assert shares == sorted(shares)


@pytest.mark.parametrize("share", [0.7, 0.9, 0.95, 0.99])
def test_the_least_batches_for_a_share_are_the_least(share: float) -> None:
    found = LossErrors(images=100, loss=0.03, paired=0.05, within=0.1, between=0.2)
    needed = found.batches_for(share)
    assert needed is not None
    assert found.right_pairs(needed) >= share
    assert needed == 1 or found.right_pairs(needed - 1) < share


# ---- words --------------------------------------------------------------------------------------


def test_errors_of_an_imported_lut_are_not_known() -> None:
    assert LossErrors.of(LUT) is None
    assert LossErrors.of(with_errors(0.03, np.nan)) is None
    assert LossErrors.of(with_errors(0.03, 0.01, images=0)) is None


def test_the_verdict_says_what_was_measured_and_what_it_would_take() -> None:
    found = LossErrors(images=640, loss=0.03, paired=0.01, within=0.1, between=0.2)
    assert verdict(found) == (
        "640 held-out images put 96.8% of a cell's pairs in the right order; 95% take 320"
    )


def test_losses_that_are_nothing_but_noise_are_called_so() -> None:
    found = LossErrors(images=64, loss=0.3, paired=0.1, within=0.09, between=0.0)
    assert found.batches_for(0.95) is None
    assert verdict(found).endswith("50.0% of a cell's pairs in the right order; losses differ by "
                                   "no more than their error")  # fmt: skip


def test_the_table_has_errors_and_shares_by_batches() -> None:
    found = LossErrors(images=640, loss=0.03, paired=0.01, within=0.1, between=0.2)
    lines = [line.rsplit(maxsplit=6) for line in error_table(found)]
    assert lines[0][1:] == ["1", "2", "5", "10", "20", "50"]
    by_name = {name: values[3] for name, *values in lines}
    assert by_name == {
        "batches of 64 images": "10",
        "error of a loss": "0.0300",
        "error of a difference": "0.0141",
        "share of the spread in cells": "10.0%",
        "share of the spread of windows": "5.0%",
        "a cell's pairs in right order": "96.8%",
    }
    single = LossErrors(images=640, loss=0.03, paired=0.01, within=0.1, between=0.0)
    assert len(error_table(single)) == len(lines) - 1
