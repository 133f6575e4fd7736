"""Telling machines apart; measuring on one is tested with profiling."""

from __future__ import annotations

import msgspec
import pytest

from nni_spaceevo.latency.validate import (
    clock_differences,
    format_validation,
    machine_differences,
)

from .conftest import MACHINE


def changed(**fields):
    return msgspec.structs.replace(MACHINE, **fields)


def test_the_same_machine_has_no_differences():
    assert machine_differences(MACHINE, MACHINE) == []


@pytest.mark.parametrize(
    ("fitted", "here", "message"),
    [
        ({"flags": ("avx2", "avx512_vnni")}, {}, "this CPU lacks avx512_vnni, which"),
        ({}, {"flags": ("avx2", "avx512f")}, "this CPU has avx512f, which the predictor's lacks"),
        ({"runtime": "ort 1"}, {"runtime": "ort 2"}, "runtime: here ort 2, predictor fitted on"),
        ({"cpu": "A"}, {"cpu": "B"}, "cpu: here B, predictor fitted on A"),
    ],
)
def test_each_difference_is_a_sentence(fitted, here, message):
    (found,) = machine_differences(changed(**fitted), changed(**here))
    assert message in found


def test_another_clock_is_told_where_the_profile_knows_its_own():
    (found,) = clock_differences({"noise": {"reference_us": 16.4}}, 17.6)
    assert "takes 1.07 times as long here" in found
    assert clock_differences({"noise": {"reference_us": 16.4}}, 16.5) == []
    assert clock_differences({"noise": {"slots": 3}}, 17.6) == []


def test_the_text_tells_how_far_off_and_why():
    report = {
        "count": 20,
        "least_ms": 1.0,
        "most_ms": 30.0,
        "measured_over_predicted": 2.31,
        "within_5": 0.0,
        "within_10": 5.0,
        "kendall_tau": 0.9,
        "differences": ["this CPU lacks avx512_vnni, which the predictor's has"],
    }
    text = format_validation("x86_vnni_ort_int8", report)
    assert "measured / predicted: 2.31" in text
    assert text.splitlines()[-1].startswith("note: this CPU lacks avx512_vnni")
