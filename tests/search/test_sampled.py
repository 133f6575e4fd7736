"""The published estimator: its formula by hand and as written plainly, and its properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_spaceevo.search import QTConfig, SampledScorer, sample_subnets, score_samples
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace()
BEST = HYPERSPACE.space("synthetic-120-201")
LUT = synthetic_lut(HYPERSPACE, BEST)
CONFIG = QTConfig(constraints_ms=(1.5,), estimator="sampled", samples=5000)


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


def test_a_score_depends_on_seed_and_code_alone():
    score = SampledScorer(LUT, CONFIG)
    first = score(BEST)
    score(HYPERSPACE.space("synthetic-000-000"))
    assert score(BEST) == first == SampledScorer(LUT, CONFIG)(BEST)


def test_latencies_of_samples_lie_within_the_spaces_range():
    result = SampledScorer(LUT, CONFIG)(BEST)
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
