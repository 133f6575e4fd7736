"""Which sub-stages of a cell become rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nni_spaceevo.hyperspace import BlockOption, ElasticStage, Stage
from nni_spaceevo.lut.substages import all_substages, count_substages, sample_substages

Cell = tuple[ElasticStage, tuple[int, ...]]


def cell(
    depths: tuple[int, ...], widths: tuple[int, ...], kernels: tuple[int, ...], expands: int
) -> ElasticStage:
    block = "mbv2_res" if expands else "mbv1_dual"
    option = BlockOption(
        type=block, kernel_sizes=kernels, expands=tuple(float(e + 2) for e in range(expands))
    )
    return ElasticStage(Stage(name="s", widths=widths, depths=depths), option, widths)


@st.composite
def cells(draw: st.DrawFn) -> Cell:
    """Cells of 1 to some 20,000 sub-stages."""

    def some(values: tuple[int, ...], most: int) -> tuple[int, ...]:
        chosen = st.sets(st.sampled_from(values), min_size=1, max_size=most)
        return tuple(sorted(draw(chosen)))

    elastic = cell(
        some((1, 2, 3), 3), some((8, 16, 24), 2), some((3, 5, 7), 2), draw(st.integers(0, 2))
    )
    return elastic, some((4, 8, 12, 16), 3)


@given(cell=cells(), count=st.integers(1, 150), seed=st.integers(0, 99))
def test_as_many_distinct_substages_as_asked_for_or_all(cell: Cell, count: int, seed: int) -> None:
    elastic, cins = cell
    every = all_substages(elastic, cins)
    assert len(set(every)) == len(every) == count_substages(elastic, cins)
    found = sample_substages(elastic, cins, count, np.random.default_rng(seed))
    assert len(set(found)) == len(found) == min(count, len(every))
    for cin, chain in found:
        assert cin in cins
        elastic.check(chain)
    if count >= len(every):
        assert found == every
    assert found == sample_substages(elastic, cins, count, np.random.default_rng(seed))


@given(cell=cells(), seed=st.integers(0, 99))
def test_every_drawn_substage_is_among_all(cell: Cell, seed: int) -> None:
    elastic, cins = cell
    rng = np.random.default_rng(seed)
    every = set(all_substages(elastic, cins))
    assert all((int(rng.choice(cins)), elastic.random(rng)) in every for _ in range(20))


def test_all_but_one_are_found_at_once() -> None:
    elastic, cins = cell((1, 2, 3, 4), (8, 16), (3, 5), 2), (8,)
    total = count_substages(elastic, cins)
    assert total == 8 + 8**2 + 8**3 + 8**4
    found = sample_substages(elastic, cins, total - 1, np.random.default_rng(0))
    assert len(set(found)) == total - 1


def test_a_sample_of_few_is_drawn_like_any_other() -> None:
    """Depths have the same chance, so shallow sub-stages are met more often than deep ones."""
    elastic, cins, count = cell((1, 2), (8, 16), (3, 5), 0), (8,), 12
    assert count < count_substages(elastic, cins) == 4 + 16 <= 2 * count

    def drawn_one_by_one(rng: np.random.Generator) -> list[int]:
        found = {}
        while len(found) < count:
            chain = elastic.random(rng)
            found[chain] = len(chain)
        return list(found.values())

    rng = np.random.default_rng(0)
    runs = range(400)
    plain = np.mean([np.mean(drawn_one_by_one(rng)) for _ in runs])
    sampled = np.mean(
        [np.mean([len(c) for _, c in sample_substages(elastic, cins, count, rng)]) for _ in runs]
    )
    uniform = 1 + 16 / 20
    assert abs(sampled - plain) < 0.02 < uniform - plain


def test_shallow_substages_come_first_in_all() -> None:
    every = all_substages(cell((1, 3), (8,), (3, 5), 0), (4, 8))
    depths = [len(chain) for _, chain in every]
    assert all(a <= b for a, b in pairwise(depths))
    assert every[0] == (4, every[1][1])
