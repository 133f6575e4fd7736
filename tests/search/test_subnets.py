"""The search finds what exhaustive evaluation finds, by few evaluations, and stays within T."""

from __future__ import annotations

import re

import numpy as np
import pytest

from nni_spaceevo.errors import ConfigError, ConstraintError
from nni_spaceevo.files import convert, plain
from nni_spaceevo.search.priced import PricedSubnets
from nni_spaceevo.search.subnet_evolution import EvolutionNumbers, evolution
from nni_spaceevo.search.subnets import (
    EvaluatedSubnet,
    SubnetSearch,
    SubnetSearchConfig,
    SurrogateNumbers,
    best_within,
    constraint_at,
    latency_span,
    pareto_front,
)
from nni_spaceevo.search.surrogate import AccuracySurrogate
from nni_spaceevo.testing import MACsLatency, synthetic_hyperspace

SMALL = synthetic_hyperspace(2)
SUBNETS = PricedSubnets(SMALL, SMALL.space("synthetic-12-01"), MACsLatency())
FEW = EvolutionNumbers(population=48, mutations=12, crossovers=12, generations=6)
PUBLISHED = SubnetSearchConfig(evolution=FEW, surrogate=None)
DEFAULT = SubnetSearchConfig(
    evolution=FEW, surrogate=SurrogateNumbers(first=12, rounds=3, candidates=4)
)
CONSTRAINTS = tuple(constraint_at([SUBNETS], q, 0) for q in (0.3, 0.6, 0.9))
both = pytest.mark.parametrize("config", [PUBLISHED, DEFAULT], ids=["published", "surrogate"])


def accuracy(codes):
    """What choices add, what latency adds, and a little of each subnet's own."""
    genes = SUBNETS.genes(codes)
    columns = SUBNETS.one_hot(genes)
    # Sums by rows: the last bits of a product with a matrix depend on the rows beside.
    of_choices = (columns * np.random.default_rng(7).normal(0, 0.01, columns.shape[1])).sum(axis=1)
    own = [np.random.default_rng(row.tolist()).normal(0, 0.002) for row in genes]
    return 0.7 + of_choices + 0.05 * np.log(SUBNETS.ms(genes)) + own


def run(search, order=1):
    """Tell a search all that it asks for; the codes in the order asked."""
    asked = []
    while codes := search.ask():
        asked += codes
        for code, value in list(zip(codes, accuracy(codes), strict=True))[::order]:
            search.tell(code, float(value))
    return asked


def all_subnets():
    rng = np.random.default_rng(0)
    codes = SUBNETS.codes(np.unique(SUBNETS.random(30_000, rng), axis=0))
    ms = SUBNETS.ms(SUBNETS.genes(codes))
    rows = zip(codes, ms.tolist(), accuracy(codes).tolist(), strict=True)
    return [EvaluatedSubnet(*row) for row in rows]


ALL = all_subnets()


@both
@pytest.mark.parametrize("seed", [0, 1])
def test_it_finds_nearly_the_best_subnet_of_every_constraint(config, seed):
    search = SubnetSearch(SUBNETS, CONSTRAINTS, config, seed)
    asked = run(search)
    assert search.is_finished
    assert len(asked) == len(set(asked)) == len(search.evaluated)
    assert len(asked) <= config.most_evaluations(len(CONSTRAINTS))
    for T in CONSTRAINTS:
        found, truth = best_within(search.evaluated, T), best_within(ALL, T)
        assert found.ms <= T
        better = sum(s.ms <= T and s.accuracy > found.accuracy for s in ALL)
        assert better <= len(ALL) / 200, (T, truth.accuracy - found.accuracy)


def test_the_surrogate_saves_most_of_the_evaluations():
    few = len(run(SubnetSearch(SUBNETS, CONSTRAINTS, DEFAULT, 0)))
    many = len(run(SubnetSearch(SUBNETS, CONSTRAINTS, PUBLISHED, 0)))
    assert few < many / 3


@both
def test_the_same_seed_and_accuracies_give_the_same_subnets_told_in_any_order(config):
    searches = [SubnetSearch(SUBNETS, CONSTRAINTS, config, 3) for _ in range(2)]
    first, second = run(searches[0]), run(searches[1], order=-1)
    assert first == second
    assert first != run(SubnetSearch(SUBNETS, CONSTRAINTS, config, 4))


@both
@pytest.mark.parametrize("told", [20, 10_000])
def test_a_new_search_that_is_told_what_is_known_goes_on_there(config, told):
    whole = SubnetSearch(SUBNETS, CONSTRAINTS, config, 3)
    asked = run(whole)
    again = SubnetSearch(SUBNETS, CONSTRAINTS, config, 3)
    for code, value in zip(asked[:told], accuracy(asked[:told]), strict=True):
        again.tell(code, float(value))
    assert run(again) == asked[told:]
    assert {(s.code, s.accuracy) for s in again.evaluated} == {
        (s.code, s.accuracy) for s in whole.evaluated
    }
    assert again.is_finished


def test_what_was_told_before_it_was_asked_for_is_not_asked_for():
    search = SubnetSearch(SUBNETS, CONSTRAINTS, PUBLISHED, 3)
    early = search.ask()[5]
    search.tell(early, 0.5)
    search.tell(early, 0.9)  # The first one counts.
    assert early not in run(search)
    assert next(s for s in search.evaluated if s.code == early).accuracy == 0.5


def test_the_evolution_keeps_the_better_half_and_stays_within_its_limits():
    rng, T = np.random.default_rng(0), CONSTRAINTS[1]
    search = evolution(SUBNETS, FEW.limits(T, 1e6), FEW, rng)
    asked, seen, best = next(search), [], []
    while True:
        seen += [row.tobytes() for row in asked]
        ms = SUBNETS.ms(asked)
        assert ((ms >= 0.8 * T) & (ms <= T)).all()
        scores = accuracy(SUBNETS.codes(asked))
        best.append(scores.max())
        try:
            asked = search.send(scores)
        except StopIteration as end:
            population, last = end.value
            break
    assert len(seen) == len(set(seen)) <= 48 + 6 * 24
    assert last[0] == max(best)
    assert (np.diff(last) <= 0).all()
    assert np.array_equal(accuracy(SUBNETS.codes(population)), last)


def test_a_space_with_few_subnets_within_a_constraint_is_searched_through():
    T = latency_span(SUBNETS, 0)[0] * 1.02
    within = {s.code for s in ALL if 0.8 * T <= s.ms <= T}
    assert 0 < len(within) < 20
    for config in (PUBLISHED, DEFAULT):
        search = SubnetSearch(SUBNETS, [T], config, 0)
        assert set(run(search)) == within


def test_the_surrogate_learns_what_choices_add():
    rng = np.random.default_rng(3)
    known, others = (np.unique(SUBNETS.random(n, rng), axis=0) for n in (60, 500))
    surrogate = AccuracySurrogate(SUBNETS, known, accuracy(SUBNETS.codes(known)))
    truth, drawn = accuracy(SUBNETS.codes(others)), surrogate.draws(others, 2, rng)
    assert np.corrcoef(surrogate.mean(others), truth)[0, 1] > 0.95
    assert drawn.shape == (2, len(others))
    for accuracies in drawn:
        assert 0.9 < np.corrcoef(accuracies, truth)[0, 1] < 1
    assert not np.array_equal(*drawn)


def test_the_front_has_no_subnet_that_another_beats():
    front = pareto_front(ALL[:2000])
    for subnet in ALL[:2000]:
        assert subnet in front or any(
            s.ms <= subnet.ms and s.accuracy >= subnet.accuracy for s in front
        )
    assert list(front) == sorted(front, key=lambda s: (s.ms, s.accuracy))
    assert best_within(front, CONSTRAINTS[0]) == best_within(ALL[:2000], CONSTRAINTS[0])
    assert best_within(front, 1e-9) is None


# ---- what is refused ----------------------------------------------------------------------------


def test_a_constraint_below_the_fastest_subnet_is_refused():
    low, high = latency_span(SUBNETS, 0)
    assert (low, high) == (min(s.ms for s in ALL), max(s.ms for s in ALL))
    with pytest.raises(ConstraintError, match=re.escape(f"take {low:.4g} to {high:.4g} ms")):
        SubnetSearch(SUBNETS, [CONSTRAINTS[0], 0.99 * low], DEFAULT, 0)


@pytest.mark.parametrize("surrogate", [None, SurrogateNumbers()], ids=["published", "surrogate"])
def test_where_a_window_has_no_subnet_faster_ones_are_searched(surrogate):
    T = CONSTRAINTS[0]
    narrow = SubnetSearchConfig(evolution=EvolutionNumbers(window=1e-9), surrogate=surrogate)
    assert not any((1 - 1e-9) * T <= s.ms <= T for s in ALL)
    search = SubnetSearch(SUBNETS, [T], narrow, 0)
    run(search)
    within = [s for s in ALL if s.ms <= T]
    best = best_within(search.evaluated, T)
    assert sum(s.accuracy > best.accuracy for s in within) <= len(within) / 100


@both
def test_within_a_constraint_above_the_slowest_subnet_all_subnets_are(config):
    search = SubnetSearch(SUBNETS, [1e6], config, 0)
    run(search)
    found = best_within(search.evaluated, 1e6)
    assert sum(s.accuracy > found.accuracy for s in ALL) <= len(ALL) / 200


@pytest.mark.parametrize("constraints", [[], [0.0], [-1.0], [float("inf")], [float("nan")]])
def test_what_is_no_latency_is_refused(constraints):
    with pytest.raises(ConfigError, match="expected latencies above 0 ms"):
        SubnetSearch(SUBNETS, constraints, DEFAULT, 0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"evolution": {"population": 1}}, "population must be at least 2"),
        ({"evolution": {"mutations": 0}}, "mutations must be at least 1"),
        ({"evolution": {"window": 0.0}}, "window must be above 0"),
        ({"evolution": {"mutate": 1.5}}, "mutate must be above 0, up to 1"),
        ({"surrogate": {"first": 1}}, "first must be at least 2"),
        ({"surrogate": {"fits": 1}}, "fits"),
    ],
)
def test_a_wrong_number_is_refused(numbers, message):
    with pytest.raises(ConfigError, match=message):
        convert(numbers, SubnetSearchConfig, "subnets")


def test_the_defaults_are_as_published_and_survive_a_file():
    numbers = SubnetSearchConfig().evolution
    assert (numbers.population, numbers.mutations, numbers.crossovers) == (512, 128, 128)
    assert (numbers.generations, numbers.mutate, numbers.mutate_resolution) == (20, 0.3, 0.5)
    for config in (SubnetSearchConfig(), PUBLISHED):
        assert convert(plain(config), SubnetSearchConfig, "subnets") == config
