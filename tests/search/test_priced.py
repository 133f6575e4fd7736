"""Rows are subnets: drawn, changed, crossed, within limits, and priced as the predictor prices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_spaceevo.errors import CodeError
from nni_spaceevo.hyperspace import load_hyperspace, place
from nni_spaceevo.latency import find_predictor, load_predictor
from nni_spaceevo.search.priced import PricedSubnets
from nni_spaceevo.testing import MACsLatency, synthetic_hyperspace

SMALL = synthetic_hyperspace()
SUBNETS = PricedSubnets(SMALL, SMALL.space("synthetic-012-201"), MACsLatency())
seeds = st.integers(0, 2**32).map(np.random.default_rng)


@given(seeds)
def test_a_row_is_a_subnet_and_the_subnet_the_row(rng):
    genes = SUBNETS.random(20, rng)
    codes = SUBNETS.codes(genes)
    assert all(SMALL.subnet(SUBNETS.space, code) == code for code in codes)
    assert np.array_equal(SUBNETS.genes(codes), genes)
    # Equal subnets are equal rows, whatever was drawn for blocks that are not there.
    assert len({row.tobytes() for row in genes}) == len(set(codes))


@given(seeds)
def test_children_are_subnets_made_of_their_parents(rng):
    mothers, fathers = SUBNETS.random(20, rng), SUBNETS.random(20, rng)
    crossed = SUBNETS.crossed(mothers, fathers, rng)
    # A block that neither parent has cannot come up, nor one that only a deeper parent uses.
    assert np.all((crossed == mothers) | (crossed == fathers) | (crossed == 0))
    for children in (crossed, SUBNETS.mutated(mothers, 0.3, 0.5, rng)):
        assert np.array_equal(SUBNETS.genes(SUBNETS.codes(children)), children)
    assert np.array_equal(SUBNETS.mutated(mothers, 1e-12, 1e-12, rng), mothers)


def test_mutation_has_a_probability_of_its_own_for_the_resolution():
    rng = np.random.default_rng(0)
    parents = SUBNETS.random(1000, rng)
    codes = SUBNETS.codes(parents)
    changed = SUBNETS.codes(SUBNETS.mutated(parents, 1e-12, 1.0, rng))
    pairs = list(zip(codes, changed, strict=True))
    assert all(old.stages == new.stages for old, new in pairs)
    # Of two resolutions, a draw gives the other one half of the time.
    assert 400 < sum(old.resolution != new.resolution for old, new in pairs) < 600


@pytest.mark.parametrize("name", ["synthetic", "onnxw", "mobilew"])
def test_a_subnet_costs_what_the_predictor_says_of_its_blocks(name):
    rng = np.random.default_rng(1)
    if name == "synthetic":
        hyperspace, device = SMALL, MACsLatency()
    else:
        hyperspace = load_hyperspace(name)
        device = load_predictor(find_predictor("x86_vnni_ort_int8"))
    if name == "mobilew":
        device = MACsLatency()  # Its blocks' kernels were not profiled on the machine above.
    space = hyperspace.random_space(rng)
    subnets = PricedSubnets(hyperspace, space, device)
    genes = subnets.random(30, rng)
    chains = [
        place([b for _, blocks in hyperspace.subnet_blocks(space, code) for b in blocks], r)
        for code in subnets.codes(genes)
        for r in [code.resolution]
    ]
    expected = device.network_ms(chains)
    np.testing.assert_allclose(subnets.ms(genes), expected, rtol=1e-12)
    # To the last bit the same alone, in company, and once known.
    assert [subnets.ms(row[None])[0] for row in genes] == subnets.ms(genes).tolist()
    fresh = PricedSubnets(hyperspace, space, device)
    assert [fresh.ms(row[None])[0] for row in genes] == subnets.ms(genes).tolist()


def test_each_block_is_priced_once():
    class Counting(MACsLatency):
        asked = 0

        def chain_ms(self, chains):
            self.asked += len(chains)
            return super().chain_ms(chains)

    device = Counting()
    subnets = PricedSubnets(SMALL, SUBNETS.space, device)
    rng = np.random.default_rng(0)
    subnets.ms(subnets.random(5000, rng))
    blocks = device.asked
    subnets.ms(subnets.random(5000, rng))
    assert device.asked == blocks < 200


@pytest.mark.parametrize("share", [0.02, 0.3, 0.98])
def test_subnets_within_limits_are_different_and_within(share):
    rng = np.random.default_rng(2)
    ms = SUBNETS.ms(SUBNETS.random(2000, rng))
    low, high = np.quantile(ms, [share - 0.02, share + 0.02])
    found = SUBNETS.within(low, high, 100, rng)
    assert len(found) == len(np.unique(found, axis=0)) == 100
    assert ((low <= SUBNETS.ms(found)) & (SUBNETS.ms(found) <= high)).all()


def test_where_nothing_is_within_nothing_is_found():
    rng = np.random.default_rng(2)
    assert len(SUBNETS.within(1e-9, 1e-8, 10, rng)) == 0
    nearest = SUBNETS.ms(SUBNETS.nearest(0, 0, 50, rng)).min()
    smallest = SUBNETS.genes([SMALL.smallest_subnet(SUBNETS.space)])
    assert nearest == SUBNETS.ms(smallest)[0]


def test_one_column_is_one_for_each_choice_that_is_used():
    ends = [SMALL.smallest_subnet(SUBNETS.space), SMALL.largest_subnet(SUBNETS.space)]
    columns = SUBNETS.one_hot(SUBNETS.genes(ends))
    assert set(np.unique(columns)) == {0, 1}
    # One block a stage less in the smallest subnet, each with as many choices as its type has.
    assert columns[0].sum() < columns[1].sum() == SUBNETS.num_choices


def test_a_subnet_of_another_space_is_refused():
    other = SMALL.smallest_subnet(SMALL.space("synthetic-012-200"))
    with pytest.raises(CodeError, match="stage3"):
        SUBNETS.genes([other])
