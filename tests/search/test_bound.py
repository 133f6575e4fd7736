"""The bound on the score: no space exceeds it, and it is close where it can be."""

import itertools

import pytest
from published import published_lut

from nni_spaceevo.hyperspace import SpaceCode
from nni_spaceevo.search import ExactScorer, QTConfig, score_bound
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace(stages=2)
BEST = HYPERSPACE.space("synthetic-12-20")
LUT = synthetic_lut(HYPERSPACE, BEST)


@pytest.mark.parametrize("T", [0.3, 0.6, 1.0, 1.5])
@pytest.mark.parametrize("a", [0.0, 0.01, 0.5])
def test_no_space_of_a_small_hyperspace_exceeds_it(T, a):
    config = QTConfig(constraints_ms=(T,), samples=1000, top=20, a=a)
    score = ExactScorer(LUT, config)
    digits = itertools.product(range(3), repeat=4)
    most = max(score(SpaceCode("synthetic", d[:2], d[2:])).score for d in digits)
    bound = score_bound(LUT, config)
    assert most <= bound.score * (1 + 1e-9)


def test_bounds_of_constraints_are_added():
    one, two, both = (
        score_bound(LUT, QTConfig(constraints_ms=T)) for T in ((0.6,), (1.0,), (0.6, 1.0))
    )
    assert both.score == pytest.approx(one.score + two.score)
    assert both.codes == (*one.codes, *two.codes)


@pytest.mark.parametrize(("T", "gap"), [(10.0, 0.1), (15.0, 0.05), (20.0, 0.03)])
def test_it_is_near_the_published_spaces(T, gap):
    lut = published_lut("onnxw")
    config = QTConfig(constraints_ms=(T,))
    bound = score_bound(lut, config)
    score = ExactScorer(lut, config)
    best = max(
        score(lut.hyperspace.space(code)).score
        for code in ("onnxw-151122-023231", "onnxw-121122-133333", str(bound.codes[0]))
    )
    assert best <= bound.score <= best * (1 + gap)
