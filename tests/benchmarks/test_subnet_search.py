"""The study of subnet searches: what it counts, and what it shows."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from nni_spaceevo.search.priced import PricedSubnets
from nni_spaceevo.search.subnet_evolution import EvolutionNumbers
from nni_spaceevo.search.subnets import SubnetSearchConfig, SurrogateNumbers, constraint_at
from nni_spaceevo.testing import MACsLatency, synthetic_hyperspace

from .conftest import script

HYPERSPACE = synthetic_hyperspace(2)
SUBNETS = PricedSubnets(HYPERSPACE, HYPERSPACE.space("synthetic-12-01"), MACsLatency())
FEW = EvolutionNumbers(population=24, mutations=8, crossovers=8, generations=4)


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """`benchmarks/subnet_search.py`."""
    return script("subnet_search")


@pytest.fixture(scope="module")
def found(study: ModuleType) -> list[dict[str, list[float]]]:
    """Two seeds of a problem whose accuracy is the latency, with something of each subnet's own."""
    T = constraint_at([SUBNETS], 0.5, 0)

    def accuracy(code):
        genes = SUBNETS.genes([code])
        own = np.random.default_rng(genes[0].tolist()).normal(0, 0.01)
        return float(0.8 + SUBNETS.ms(genes)[0] / T / 10 + own)

    few = SurrogateNumbers(first=8, rounds=2, candidates=4)
    configs = {
        "surrogate": SubnetSearchConfig(evolution=FEW, surrogate=few),
        "published": SubnetSearchConfig(evolution=FEW, surrogate=None),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "CONFIGS", configs)
        return [study.compare(SUBNETS, T, seed, accuracy, 30) for seed in range(2)]


def test_the_published_way_stops_where_it_reaches_the_surrogate_or_at_the_limit(study, found):
    for ways in found:
        goal = max(ways["surrogate"])
        assert len(ways["surrogate"]) == 16
        published = ways["published"]
        assert len(published) <= 30
        assert all(accuracy < goal for accuracy in published[:-1])
        assert len(published) == 30 or published[-1] >= goal


def test_the_table_and_the_picture_show_every_seed(study, found):
    rows = study.rows_of(found)
    for row, ways in zip(rows, found, strict=True):
        surrogate = ways["surrogate"]
        assert row["surrogate"]["reached_after"] == surrogate.index(max(surrogate)) + 1
        assert row["published"]["best"] == pytest.approx(max(ways["published"]), abs=1e-5)
    lines = study.table(rows).splitlines()
    assert len(lines) == 2 + len(found)
    for line, row in zip(lines[2:], rows, strict=True):
        assert f"| {row['surrogate']['reached_after']} |" in line
    assert study.picture(found).startswith(b"\x89PNG")


def test_a_way_that_does_not_get_there_says_so(study):
    rows = study.rows_of([{"surrogate": [0.9, 0.95], "published": [0.5]}])
    assert "| 2 | not in 1 (50.00%) |" in study.table(rows)
