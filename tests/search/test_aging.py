"""Aging evolution: it finds the known best, beats random search, and continues where it was."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_spaceevo.errors import CodeError, ConfigError
from nni_spaceevo.search import AgingEvolution, EvolutionConfig
from nni_spaceevo.testing import synthetic_hyperspace

HYPERSPACE = synthetic_hyperspace(stages=5)  # 59,049 spaces
BEST = HYPERSPACE.space("synthetic-12012-20120")
SMALL = EvolutionConfig(population_size=40, sample_size=10)


def score(code):
    """Closeness to the known best; the larger the better."""
    blocks = sum(a == b for a, b in zip(code.blocks, BEST.blocks, strict=True))
    windows = sum(2 - abs(a - b) for a, b in zip(code.windows, BEST.windows, strict=True))
    return float(2 * blocks + windows)


def search(evolution, evaluations):
    asked = []
    for _ in range(evaluations):
        code = evolution.ask()
        evolution.tell(code, score(code))
        asked.append(code)
    return asked


def test_it_finds_the_known_best_space():
    evolution = AgingEvolution(HYPERSPACE, SMALL)
    search(evolution, 600)
    assert evolution.best == (BEST, score(BEST))


def test_it_beats_random_search_of_equal_budget_in_nine_of_ten_seeds():
    wins = 0
    for seed in range(10):
        config = EvolutionConfig(population_size=30, sample_size=10, seed=seed)
        evolution = AgingEvolution(HYPERSPACE, config)
        search(evolution, 150)
        rng = np.random.default_rng(seed)
        random = max(score(HYPERSPACE.random_space(rng)) for _ in range(150))
        wins += evolution.best[1] > random
    assert wins >= 9


def test_it_starts_with_uniform_spaces_then_random_ones():
    asked = search(AgingEvolution(HYPERSPACE, SMALL), 40)
    uniform = set(HYPERSPACE.uniform_spaces())
    assert set(asked[: len(uniform)]) == uniform
    assert not uniform & set(asked[len(uniform) :])


def test_a_small_population_is_half_uniform_half_random():
    config = EvolutionConfig(population_size=8, sample_size=4)
    asked = search(AgingEvolution(HYPERSPACE, config), 8)
    assert sum(c in set(HYPERSPACE.uniform_spaces()) for c in asked) == 4


def test_after_the_first_population_children_differ_from_a_known_space_in_one_place():
    evolution = AgingEvolution(HYPERSPACE, SMALL)
    known = search(evolution, 40)
    for _ in range(20):
        child = search(evolution, 1)[0]
        differences = [
            sum(
                a != b
                for a, b in zip(child.blocks + child.windows, c.blocks + c.windows, strict=True)
            )
            for c in known
        ]
        assert min(differences) == 1
        known.append(child)


def test_no_space_is_asked_for_twice_until_all_were():
    tiny = synthetic_hyperspace(stages=1)  # 9 spaces
    evolution = AgingEvolution(tiny, EvolutionConfig(population_size=4, sample_size=2))
    asked = [evolution.ask() for _ in range(9)]
    assert len(set(asked)) == 9


@given(st.integers(0, 130), st.integers(0, 3))
def test_a_continued_search_asks_what_an_undisturbed_one_asks(stop, seed):
    config = EvolutionConfig(population_size=20, sample_size=5, seed=seed)
    undisturbed = AgingEvolution(HYPERSPACE, config)
    expected = search(undisturbed, 150)
    first = AgingEvolution(HYPERSPACE, config)
    asked = search(first, stop)
    state = json.loads(json.dumps(first.state_dict()))  # plain data, as a file holds it
    second = AgingEvolution(HYPERSPACE, config)
    second.load_state_dict(state)
    assert asked + search(second, 150 - stop) == expected


def test_aging_forgets_the_oldest_not_the_worst():
    config = EvolutionConfig(population_size=5, sample_size=5)
    evolution = AgingEvolution(HYPERSPACE, config)
    first = evolution.ask()
    evolution.tell(first, 1000.0)
    search(evolution, 5)
    assert str(first) not in evolution.state_dict()["population"]
    assert evolution.best[0] == first


def test_pending_spaces_are_those_not_yet_told():
    evolution = AgingEvolution(HYPERSPACE, SMALL)
    codes = [evolution.ask() for _ in range(3)]
    evolution.tell(codes[1], 1.0)
    assert evolution.pending == sorted([codes[0], codes[2]])


def test_a_second_score_of_a_space_changes_nothing():
    evolution = AgingEvolution(HYPERSPACE, SMALL)
    code = evolution.ask()
    evolution.tell(code, 1.0)
    evolution.tell(code, 9.0)
    assert evolution.scores == {code: 1.0}


def test_a_state_of_another_hyperspace_is_refused():
    evolution = AgingEvolution(HYPERSPACE, SMALL)
    search(evolution, 5)
    other = AgingEvolution(synthetic_hyperspace(stages=5, name="other"), SMALL)
    with pytest.raises(CodeError, match="belongs to hyperspace 'synthetic'"):
        other.load_state_dict(evolution.state_dict())


@pytest.mark.parametrize(
    "wrong", [{"population_size": 1}, {"population_size": 4, "sample_size": 5}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="must be"):
        EvolutionConfig(**wrong)
