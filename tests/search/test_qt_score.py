"""The Q-T score: its formula, its limits, and that it depends on seed and code alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_spaceevo.errors import ConfigError, ConstraintError
from nni_spaceevo.search import (
    QTConfig,
    check_constraints,
    constraint_at_quantile,
    qt_score,
    sample_subnets,
    score_samples,
)
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace()
BEST = HYPERSPACE.space("synthetic-120-201")
LUT = synthetic_lut(HYPERSPACE, BEST)
CONFIG = QTConfig(constraints_ms=(1.5,), samples=5000)


def plain_score(loss, latency, T, t=0.08, a=0.01, top=50):
    """The published procedure, written as its pseudo-code."""
    subnets = sorted(zip(latency, loss, strict=True))
    within = [row for row in subnets if row[0] <= T]
    p = len(within) / len(subnets) + 1e-5
    best = sorted(row[1] for row in within)[:top]
    return 1 / (max(1.0, (t / p) ** a) * (sum(best) / len(best)))


@pytest.mark.parametrize("T", [0.9, 1.2, 1.5, 2.5])
def test_the_score_is_the_published_formula(T):
    loss, latency = sample_subnets(LUT, BEST, 5000, np.random.default_rng(1))
    score, share, _ = score_samples(loss, latency, T, CONFIG)
    assert score == pytest.approx(plain_score(loss.tolist(), latency.tolist(), T))
    assert share == np.mean(latency <= T)


def test_golden_score_by_hand():
    loss, latency = np.array([0.5, 1.0, 4.0, 9.0]), np.array([1.0, 2.0, 3.0, 4.0])
    config = QTConfig(constraints_ms=(2.0,), samples=500, top=2, t=1.0, a=1.0)
    score, share, top_loss = score_samples(loss, latency, 2.0, config)
    assert (share, top_loss) == (0.5, 0.75)
    assert score == pytest.approx(1 / ((1 / (0.5 + 1e-5)) * 0.75))


def test_no_subnet_within_the_constraint_scores_zero():
    result = qt_score(LUT, BEST, replace_constraints(0.01))
    assert result.score == 0
    assert result.shares == (0.0,)
    assert result.top_losses == (math.inf,)


def replace_constraints(*T):
    return QTConfig(constraints_ms=T, samples=5000)


def test_scores_of_several_constraints_are_added():
    one, two = (qt_score(LUT, BEST, replace_constraints(T)).score for T in (1.2, 1.8))
    assert qt_score(LUT, BEST, replace_constraints(1.2, 1.8)).score == pytest.approx(one + two)


def test_a_score_depends_on_seed_and_code_alone():
    first = qt_score(LUT, BEST, CONFIG)
    qt_score(LUT, HYPERSPACE.space("synthetic-000-000"), CONFIG)
    assert qt_score(LUT, BEST, CONFIG) == first


def test_latencies_of_samples_lie_within_the_spaces_range():
    result = qt_score(LUT, BEST, CONFIG)
    _, latency = sample_subnets(LUT, BEST, 5000, np.random.default_rng(0))
    assert result.min_ms <= latency.min()
    assert latency.max() <= result.max_ms


samples = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=3, max_size=60).map(
    lambda rows: (np.array([r[0] for r in rows]), np.array([r[1] for r in rows]))
)


@given(samples, st.floats(0.1, 5), st.floats(0, 3))
def test_the_score_falls_when_losses_rise(drawn, T, more):
    loss, latency = drawn
    config = QTConfig(constraints_ms=(1.0,), samples=500, top=5)
    before = score_samples(loss, latency, T, config)[0]
    assert score_samples(loss + more, latency, T, config)[0] <= before


@given(samples, st.floats(0.1, 10), st.floats(0, 5))
def test_the_score_never_rises_when_the_constraint_tightens_around_a_single_best(drawn, T, less):
    loss, latency = drawn
    config = QTConfig(constraints_ms=(1.0,), samples=500, top=1)
    loose = score_samples(loss, latency, T, config)[0]
    assert score_samples(loss, latency, T - less, config)[0] <= loose


def test_the_known_best_space_scores_highest():
    rng = np.random.default_rng(0)
    best = qt_score(LUT, BEST, CONFIG).score
    for _ in range(50):
        code = HYPERSPACE.random_space(rng)
        assert code == BEST or qt_score(LUT, code, CONFIG).score < best


@pytest.mark.parametrize(
    ("T", "words"), [(0.01, "below the fastest subnet"), (99.0, "above the slowest subnet")]
)
def test_a_constraint_that_tells_no_spaces_apart_is_refused(T, words):
    with pytest.raises(ConstraintError, match=rf"T = {T:g} ms is {words}.*expected .* to .* ms"):
        check_constraints(LUT, (1.5, T))


def test_quantiles_give_constraints_that_such_a_share_meets():
    T = constraint_at_quantile(LUT, 0.3)
    check_constraints(LUT, (T,))
    rng = np.random.default_rng(5)
    codes = [HYPERSPACE.random_space(rng) for _ in range(100)]
    latency = np.concatenate([sample_subnets(LUT, c, 500, rng)[1] for c in codes])
    assert np.mean(latency <= T) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"constraints_ms": ()}, "constraints_ms"),
        ({"constraints_ms": (float("nan"),)}, "constraints_ms"),
        ({"samples": 10}, "samples"),
        ({"top": 0}, "top"),
        ({"t": 0.0}, "t must"),
        ({"a": -1.0}, "a at least"),
    ],
    ids=lambda v: str(v),
)
def test_wrong_settings_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        QTConfig(**{"constraints_ms": (1.0,), **wrong})


def test_scores_are_records_that_compare():
    score = qt_score(LUT, BEST, CONFIG)
    assert replace(score, score=score.score) == score
