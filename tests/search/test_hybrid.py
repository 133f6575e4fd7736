"""Evolution that ends in a local search."""

import json

import numpy as np
import pytest

from nni_spaceevo.search import (
    AgingEvolution,
    EvolutionConfig,
    ExactScorer,
    HybridSearch,
    QTConfig,
    make_search,
)
from nni_spaceevo.search.hybrid import neighbours
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace(stages=4)
BEST = HYPERSPACE.space("synthetic-1201-2010")
SCORE = ExactScorer(synthetic_lut(HYPERSPACE, BEST), QTConfig(constraints_ms=(2.0,)))
CONFIG = EvolutionConfig(population_size=20, sample_size=5, evolve=40)


def told(search, count):
    codes = []
    for _ in range(count):
        codes.append(search.ask())
        search.tell(codes[-1], SCORE(codes[-1]).score)
    return codes


def test_without_evolve_it_is_the_published_evolution():
    config = EvolutionConfig(population_size=20, sample_size=5)
    search = make_search(HYPERSPACE, config, [BEST])
    assert type(search) is AgingEvolution
    assert told(search, 60) == told(AgingEvolution(HYPERSPACE, config), 60)


def test_given_spaces_are_first():
    first = [BEST, HYPERSPACE.space("synthetic-0000-0000")]
    assert told(make_search(HYPERSPACE, CONFIG, first), 2) == first


def test_neighbours_differ_in_one_stage():
    found = list(neighbours(HYPERSPACE, BEST))
    assert len(found) == len(set(found)) == 4 * (3 * 3 - 1)
    for code in found:
        stages = zip(code.blocks, code.windows, BEST.blocks, BEST.windows, strict=True)
        assert sum((b, w) != (its_b, its_w) for b, w, its_b, its_w in stages) == 1


def test_after_evolution_all_neighbours_of_the_best_are_looked_at():
    search = HybridSearch(HYPERSPACE, CONFIG)
    told(search, 40)
    best, _ = search.best
    left = set(neighbours(HYPERSPACE, best)) - search.scores.keys()
    assert set(told(search, len(left))) == left


@pytest.mark.parametrize("seed", range(5))
def test_it_ends_at_the_best_space(seed):
    config = EvolutionConfig(population_size=20, sample_size=5, evolve=40, seed=seed)
    search = HybridSearch(HYPERSPACE, config)
    told(search, 200)
    assert search.best[0] == BEST


def test_no_space_is_asked_for_twice_and_all_are_found_in_the_end():
    small = synthetic_hyperspace(stages=2)
    search = HybridSearch(small, EvolutionConfig(population_size=10, sample_size=3, evolve=20))
    rng = np.random.default_rng(0)
    codes = set()
    for _ in range(small.num_spaces):
        code = search.ask()
        assert code not in codes
        codes.add(code)
        search.tell(code, rng.random())


def test_spaces_still_being_scored_do_not_stop_it():
    search = HybridSearch(HYPERSPACE, EvolutionConfig(population_size=4, sample_size=2, evolve=0))
    waiting = [search.ask() for _ in range(10)]
    assert len(set(waiting)) == 10
    search.tell(waiting[0], 1.0)
    assert search.ask() in set(neighbours(HYPERSPACE, waiting[0])) - set(waiting)


@pytest.mark.parametrize("stop", [1, 30, 41, 77])
def test_a_stopped_search_continues_to_the_same_spaces(stop):
    expected = told(HybridSearch(HYPERSPACE, CONFIG), 120)
    stopped = HybridSearch(HYPERSPACE, CONFIG)
    told(stopped, stop)
    state = json.loads(json.dumps(stopped.state_dict()))
    other = HybridSearch(HYPERSPACE, CONFIG)
    other.load_state_dict(state)
    assert told(other, 120 - stop) == expected[stop:]
