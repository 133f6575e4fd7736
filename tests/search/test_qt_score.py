"""Scoring by either estimator, and constraints that tell spaces apart."""

import math

import numpy as np
import pytest

from nni_spaceevo.errors import ConstraintError
from nni_spaceevo.search import (
    QTConfig,
    check_constraints,
    constraint_at_quantile,
    make_scorer,
    qt_score,
    sample_subnets,
)
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace()
BEST = HYPERSPACE.space("synthetic-120-201")
LUT = synthetic_lut(HYPERSPACE, BEST)
CONFIG = QTConfig(constraints_ms=(1.5,), samples=5000)

estimators = pytest.mark.parametrize("estimator", ["exact", "sampled"])


@estimators
def test_no_subnet_within_the_constraint_scores_zero(estimator):
    result = qt_score(LUT, BEST, config(estimator, 0.01))
    assert result.score == 0
    assert result.shares == (0.0,)
    assert result.top_losses == (math.inf,)


def config(estimator, *T):
    return QTConfig(constraints_ms=T, estimator=estimator, samples=5000)


@estimators
def test_scores_of_several_constraints_are_added(estimator):
    one, two = (qt_score(LUT, BEST, config(estimator, T)).score for T in (1.2, 1.8))
    both = qt_score(LUT, BEST, config(estimator, 1.2, 1.8))
    assert both.score == pytest.approx(one + two, rel=1e-4)


@estimators
def test_a_scorer_of_many_spaces_scores_as_one_of_each(estimator):
    score = make_scorer(LUT, config(estimator, 1.2, 1.8))
    for code in ("synthetic-000-000", "synthetic-120-201", "synthetic-000-000"):
        space = HYPERSPACE.space(code)
        assert score(space) == qt_score(LUT, space, config(estimator, 1.2, 1.8))


@estimators
def test_the_known_best_space_scores_highest(estimator):
    rng = np.random.default_rng(0)
    score = make_scorer(LUT, config(estimator, 1.5))
    best = score(BEST).score
    for _ in range(50):
        code = HYPERSPACE.random_space(rng)
        assert code == BEST or score(code).score < best


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
