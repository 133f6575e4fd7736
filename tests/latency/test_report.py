from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from nni_spaceevo.latency.report import error_statistics, format_report, kendall_tau


def test_statistics_of_a_known_case():
    found = error_statistics(np.array([1.04, 0.92, 1.2, 1.0]), np.ones(4))
    assert found["count"] == 4
    assert found["bias"] == pytest.approx(4)
    assert found["rmspe"] == pytest.approx(100 * np.sqrt((0.04**2 + 0.08**2 + 0.2**2) / 4))
    assert [found[f"within_{p}"] for p in (5, 10, 15)] == [50, 75, 75]


def test_errors_are_relative_to_what_was_measured():
    assert error_statistics(np.array([2.0]), np.array([4.0]))["bias"] == -50


def test_nothing_held_out_is_said_so():
    assert error_statistics(np.zeros(0), np.zeros(0)) == {"count": 0}


def test_kendall_agrees_with_scipy_without_ties(rng):
    a, b = rng.normal(size=(2, 40))
    assert kendall_tau(a, b) == pytest.approx(kendalltau(a, b).statistic)
    assert kendall_tau(a, 3 * a) == 1
    assert np.isnan(kendall_tau(a[:1], b[:1]))


def test_the_table_has_a_row_per_kernel_and_one_for_networks():
    row = error_statistics(np.array([1.04, 0.92]), np.ones(2))
    text = format_report(
        {
            "kernels": {"conv": row, "linear": {"count": 0}},
            "networks": {**row, "kendall_tau": 0.91},
            "noise": {"slots": 70, "slow_slots": 12.0},
            "kernels_measured": 9,
            "seconds": 61.2,
        }
    )
    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["conv", "linear", "networks"]
    for part in ("too few", "0.91", "12 % of 70 slots", "9 kernels, 61 s"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80
