"""The figures of a search's report are those of brute force over the LUT."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from nni_spaceevo.errors import ConfigError, ConstraintError
from nni_spaceevo.files import convert, to_json
from nni_spaceevo.jobs.results import SearchResults
from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.reports.space_study import SpaceStudy, study_space
from nni_spaceevo.search import QTConfig, qt_score, score_bound
from nni_spaceevo.search.hybrid import neighbours

from .small_search import BEST, SCORING, small_lut, small_search, with_latencies
from .test_space_front import all_subnets


@pytest.fixture(scope="module")
def lut():
    return small_lut()


@pytest.fixture(scope="module")
def results(lut, tmp_path_factory) -> SearchResults:
    return small_search(tmp_path_factory.mktemp("search"), lut)


@pytest.fixture(scope="module")
def study(lut, results) -> SpaceStudy:
    return study_space(lut, results, SCORING)


def beyond_uniform() -> tuple[QuantizedLUT, QTConfig]:
    """A LUT and constraints that no uniform space meets: other block types are fast."""
    lut = small_lut()
    fast = lut.columns["block"] == np.array([1, 2, 0])[lut.columns["stage"]]
    latency = np.where(fast, 0.1, 1.0) * lut.columns["latency_ms"]
    return with_latencies(lut, latency), QTConfig(constraints_ms=(0.1, 0.2))


def test_best_and_uniform_spaces_have_the_scores_of_the_scorer(lut, results, study):
    assert study.best.space == results.best.space == BEST
    assert study.scores == tuple(s.score for s in results.spaces)
    for space in (study.best, *study.uniform):
        expected = qt_score(lut, lut.hyperspace.space(space.space), SCORING)
        assert (space.score, space.shares, space.top_losses) == (
            *(expected.score, expected.shares, expected.top_losses),
        )
    codes = set(lut.hyperspace.uniform_spaces())
    assert study.uniform_spaces == len(codes)
    by_type = {option.type: 0.0 for option in lut.hyperspace.block_types}
    for code in codes:
        name = lut.hyperspace.block_types[code.blocks[0]].type
        by_type[name] = max(by_type[name], qt_score(lut, code, SCORING).score)
    assert {s.name: s.score for s in study.uniform} == by_type
    assert [s.score for s in study.uniform] == sorted(by_type.values(), reverse=True)


def test_distributions_are_those_of_all_subnets(lut, study):
    for space in (study.best, study.uniform[0]):
        latency, loss = all_subnets(lut, space.space)
        centres, shares = np.array(space.latencies).T
        assert shares.sum() == pytest.approx(1)
        assert (centres * shares).sum() == pytest.approx(latency.mean(), rel=0.02)
        for T, points in zip(SCORING.constraints_ms, space.losses, strict=True):
            assert points[-1][1] == pytest.approx(np.mean(latency <= T), abs=0.01)
            for most, share in points[20:]:
                expected = np.mean((latency <= T) & (loss <= most + 1e-9))
                assert share == pytest.approx(expected, rel=0.2, abs=0.005)


def test_fronts_pass_through_the_best_subnet_within_each_constraint(lut, study):
    for space in (study.best, *study.uniform):
        latency, loss = all_subnets(lut, space.space)
        for T in SCORING.constraints_ms:
            within = [point for point in space.front if point[0] <= T]
            assert within[-1][1] == pytest.approx(loss[latency <= T].min())
    assert [s.constraint_ms for s in study.subnets] == [1.2, 1.5]


def test_the_bound_is_above_the_best_score(lut, study):
    assert study.bound.score == score_bound(lut, SCORING).score >= study.bound.best_score
    assert study.bound.gap == pytest.approx(study.bound.score / study.best.score - 1)


def test_a_change_of_block_type_is_that_of_the_best_neighbour(lut, study):
    best = lut.hyperspace.space(BEST)
    score = {code: qt_score(lut, code, SCORING).score for code in neighbours(lut.hyperspace, best)}
    for s, stage in enumerate(study.stages):
        described = lut.hyperspace.searchable[s]
        assert (stage.stage, stage.widths) == (described.name, described.widths)
        assert stage.window == described.windows[best.windows[s]]
        assert stage.chosen.change == 0
        for b, block in enumerate(stage.blocks):
            if b == best.blocks[s]:
                continue
            others = {c: v for c, v in score.items() if c.blocks[s] == b}
            first = max(others, key=others.__getitem__)
            assert block.change == pytest.approx(others[first] / study.best.score - 1)
            assert block.window == described.windows[first.windows[s]]


def test_latency_for_the_same_loss_is_that_of_the_fastest_row_that_is_as_good(lut, study):
    c, reference = lut.columns, study.reference
    for s, stage in enumerate(study.stages):
        assert stage.chosen.ms <= reference.stage_ms[s]
        for b, block in enumerate(stage.blocks):
            rows = (c["stage"] == s) & (c["block"] == b)
            rows &= c["resolution"] == reference.resolution
            enough = rows & (c["loss"] <= reference.stage_losses[s])
            expected = float(c["latency_ms"][enough].min()) if enough.any() else None
            assert block.ms == expected
            assert block.least_loss == block.front[-1][1] == c["loss"][rows].min()
            assert block.front[0][0] == c["latency_ms"][rows].min()


def test_it_is_plain_data_that_reads_back(study):
    assert convert(json.loads(to_json(study)), SpaceStudy, "study") == study


def test_the_same_search_gives_the_same_figures(lut, results, study):
    assert study_space(lut, results, SCORING) == study


def test_it_says_what_a_short_search_has_missed(lut, results):
    short = msgspec.structs.replace(
        results, spaces=tuple(s for s in results.spaces if s.space != BEST)[-5:]
    )
    study = study_space(lut, short, SCORING)
    assert max(block.change for stage in study.stages for block in stage.blocks) > 0


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
@pytest.mark.parametrize(
    ("rows_per_cell", "constraints_ms"),
    [(1, (0.33,)), (2, (1.3,)), (2, (1.5, 1.0, 2.2)), (5, (1.2,))],
)
def test_small_problems_have_all_figures(tmp_path, estimator, constraints_ms, rows_per_cell):
    scoring = QTConfig(constraints_ms=constraints_ms, estimator=estimator, samples=1000, top=20)
    lut = small_lut(rows_per_cell=rows_per_cell)
    study = study_space(lut, small_search(tmp_path, lut, scoring, 1), scoring)
    assert len(study.scores) == 1
    assert [s.constraint_ms for s in study.subnets] == sorted(constraints_ms)
    assert len(study.stages) == 3


def test_uniform_spaces_need_not_be_within_t(tmp_path):
    lut, own = beyond_uniform()
    study = study_space(lut, small_search(tmp_path, lut, own), own)
    assert study.best.space == BEST
    assert study.uniform[0].score == 0
    assert study.uniform[0].top_losses == (None, None)
    assert study.uniform[0].losses == ((), ())
    assert study.settings[0].over_uniform is None


def test_results_of_another_search_are_refused(lut, results):
    other = msgspec.structs.replace(SCORING, constraints_ms=(1.2,))
    with pytest.raises(ConfigError, match=r"was for T = 1\.2 / 1\.5 ms; given 1\.2 ms"):
        study_space(lut, results, other)
    other = msgspec.structs.replace(SCORING, top=500)
    with pytest.raises(ConfigError, match=r"in the search, but .* give those of the search"):
        study_space(lut, results, other)
    with pytest.raises(ConfigError, match="no scored spaces of hyperspace 'synthetic'"):
        study_space(lut, msgspec.structs.replace(results, spaces=()), SCORING)


def test_a_best_space_beyond_t_is_refused(lut, results):
    own = QTConfig(constraints_ms=(0.01,))
    spaces = tuple(msgspec.structs.replace(s, score=0.0) for s in results.spaces)
    beyond = msgspec.structs.replace(results, constraints_ms=(0.01,), spaces=spaces)
    with pytest.raises(ConstraintError, match=r"is within T = 0\.01 ms; score more spaces"):
        study_space(lut, beyond, own)


def test_figures_need_no_drawing_library():
    code = "import sys, nni_spaceevo.reports.space_report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
