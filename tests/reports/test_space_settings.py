"""Scoring good spaces in other ways gives what a scorer with those settings gives."""

from __future__ import annotations

import msgspec
import pytest

from nni_spaceevo.reports.space_settings import compare_settings
from nni_spaceevo.search import QTConfig, make_scorer

from .small_search import BEST, SCORING, small_lut

UNIFORM = ("synthetic-000-000", "synthetic-111-111")


def compared(scoring: QTConfig, codes: tuple[str, ...]):
    lut = small_lut()
    space = lut.hyperspace.space
    scores = list(map(make_scorer(lut, scoring), map(space, codes)))
    return lut, compare_settings(lut, scoring, scores, [space(c) for c in UNIFORM])


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_each_setting_is_that_of_its_own_scorer(estimator):
    scoring = msgspec.structs.replace(SCORING, estimator=estimator, samples=2000)
    codes = ("synthetic-120-200", BEST, *UNIFORM)
    lut, settings = compared(scoring, codes)
    assert settings[0].changed == ""
    assert len(settings) == 7
    for setting in settings:
        key, _, value = setting.changed.partition(" = ")
        number = int(value) if key == "top" else float(value or 0)
        own = msgspec.structs.replace(scoring, **({key: number} if key else {}))
        score = make_scorer(lut, own)
        scores = {code: score(lut.hyperspace.space(code)).score for code in codes}
        assert setting.rank == 1 + sum(s > scores[codes[0]] for s in scores.values())
        assert setting.first == max(codes, key=scores.__getitem__)
        assert setting.ratio == pytest.approx(scores[codes[0]] / max(scores.values()))
        uniform = max(scores[code] for code in UNIFORM)
        assert setting.over_uniform == pytest.approx(scores[codes[0]] / uniform)


def test_settings_that_would_repeat_the_searchs_own_are_left_out():
    scoring = msgspec.structs.replace(SCORING, t=1.0, a=0.0, top=1)
    _, settings = compared(scoring, (BEST, *UNIFORM))
    assert [s.changed for s in settings] == ["", "t = 0.25", "a = 0.07", "top = 4"]


def test_where_nothing_is_within_t_there_are_no_ratios():
    scoring = msgspec.structs.replace(SCORING, constraints_ms=(0.01,))
    _, settings = compared(scoring, (BEST, *UNIFORM))
    for setting in settings:
        assert (setting.rank, setting.first) == (1, BEST)
        assert setting.ratio is setting.over_uniform is None


def test_each_constraint_is_penalized_on_its_own():
    # Of few samples hardly one is within the first, and its score has the chance of that as factor.
    tight = small_lut().latency_span[0] * 1.02
    scoring = msgspec.structs.replace(SCORING, constraints_ms=(tight, 1.5), samples=500, top=1)
    codes = (BEST, *UNIFORM)
    lut, settings = compared(scoring, codes)
    changed = next(s for s in settings if s.changed.startswith("a = "))
    own = msgspec.structs.replace(scoring, a=float(changed.changed.removeprefix("a = ")))
    score = make_scorer(lut, own)
    scores = {code: score(lut.hyperspace.space(code)).score for code in codes}
    assert changed.ratio == pytest.approx(scores[BEST] / max(scores.values()))
    uniform = max(scores[code] for code in UNIFORM)
    assert changed.over_uniform == pytest.approx(scores[BEST] / uniform)
