from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from nni_spaceevo.latency.report import (
    error_statistics,
    format_report,
    gate_failures,
    kendall_tau,
    network_statistics,
)


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
            "networks": {**row, "kendall_tau": 0.91, "bias_of_thirds": [0.1, -0.2, 0.35]},
            "noise": {"slots": 70, "slow_slots": 12.0},
            "kernels_measured": 9,
            "seconds": 61.2,
        }
    )
    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["conv", "linear", "networks"]
    for part in ("too few", "0.91", "+0.1, -0.2, +0.3 %", "12 % of 70 slots", "9 kernels, 61 s"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def passing_report() -> dict:
    measured = np.linspace(1, 9, 42)
    row = {"count": 50, "bias": 0.0, "rmspe": 1.0, "within_5": 99.0, "within_10": 99.0}
    networks = network_statistics(measured * 1.001, measured)
    return {"kernels": {"conv": dict(row), "se": {**row, "within_10": 91.0}}, "networks": networks}


def test_a_good_report_passes_the_gate():
    assert gate_failures(passing_report()) == ()


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("conv", "within_10", 96.9, "conv: 96.9 % of kernels within 10 %, expected 97 %"),
        ("conv", "count", 0, "conv: no kernels held out"),
        ("se", "within_10", 89.0, "se: 89.0 % of kernels within 10 %, expected 90 %"),
        ("networks", "count", 39, "39 held-out networks, expected 40"),
        ("networks", "within_5", 94.0, "94.0 % of networks within 5 %, expected 95"),
        ("networks", "within_10", 99.0, "99.0 % of networks within 10 %, expected 100"),
        ("networks", "kendall_tau", 0.9, "Kendall's tau 0.900, expected 0.95"),
        ("networks", "kendall_tau", float("nan"), "Kendall's tau nan, expected 0.95"),
        ("networks", "bias_of_thirds", [-1.2, 0, 0], "bias -1.2 % in the smallest third"),
    ],
)
def test_the_gate_says_what_is_missing(part, key, value, message):
    report = passing_report()
    row = report["networks"] if part == "networks" else report["kernels"][part]
    row[key] = value
    (failure,) = gate_failures(report)
    assert message in failure


def test_thirds_are_by_measured_size():
    measured = np.array([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
    predicted = measured * np.array([1.0, 1.1, 1.1, 0.8, 0.8, 1.0])
    assert network_statistics(predicted, measured)["bias_of_thirds"] == pytest.approx([10, 0, -20])
