"""Blocks of rows, and the latency of the stages that have no rows."""

import numpy as np
import pytest

from nni_spaceevo.errors import LUTError
from nni_spaceevo.hyperspace import ElasticStage, place
from nni_spaceevo.lut import OtherStages
from nni_spaceevo.lut.pricing import RowBlocks, _other_blocks
from nni_spaceevo.testing import MACsLatency, synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace()
LUT = synthetic_lut(HYPERSPACE, HYPERSPACE.space("synthetic-120-201"), rows_per_cell=4)


def blocks_of(i):
    row = LUT.row(i)
    stage, option = HYPERSPACE.searchable[row.stage], HYPERSPACE.block_types[row.block]
    elastic = ElasticStage(stage=stage, option=option, widths=stage.windows[row.window])
    hw = HYPERSPACE.input_hw(stage, row.resolution)
    return list(place(elastic.blocks(row.cin, row.chain), hw))


def test_the_blocks_of_rows_are_those_of_their_sub_stages():
    found = RowBlocks.of(HYPERSPACE, LUT.columns)
    assert found.chains() == [blocks_of(i) for i in range(len(LUT))]


def test_a_block_that_many_rows_share_is_made_once():
    found = RowBlocks.of(HYPERSPACE, LUT.columns)
    assert len(set(found.distinct)) == len(found.distinct) < len(found.places)
    chains = found.chains()
    objects = {id(block) for chain in chains for block in chain}
    assert len(objects) == len(found.distinct)


def test_sums_are_over_the_blocks_of_each_row():
    found = RowBlocks.of(HYPERSPACE, LUT.columns)
    values = np.arange(len(found.distinct))
    number = {block: i for i, block in enumerate(found.distinct)}
    expected = [sum(number[b] for b in blocks_of(i)) for i in range(len(LUT))]
    np.testing.assert_array_equal(found.sums(values), expected)


def test_no_rows_have_no_blocks():
    empty = {name: values[:0] for name, values in LUT.columns.items()}
    found = RowBlocks.of(HYPERSPACE, empty)
    assert (found.distinct, found.chains(), len(found.sums([]))) == ([], [], 0)


def test_a_predictor_prices_stem_and_head_of_the_smallest_subnet():
    device = MACsLatency(macs_per_ms=1e6)
    found = OtherStages.predicted(HYPERSPACE, device)
    # A convolution 1 -> 8 of 3x3 on half the size, a pooled one 8 -> 32, and 32 -> 10 classes.
    for resolution in (8, 16):
        macs = (resolution // 2) ** 2 * 8 * 9 + 8 * 32 + 32 * 10
        assert found.ms[str(resolution)] == pytest.approx(macs / 1e6 + device.network_overhead_ms)
    assert found.source == "latency predictor synthetic (macs-1e+06)"


@pytest.mark.parametrize(("slope", "constant"), [(1.0, -0.02), (0.5, 0.0)])
def test_sums_of_a_lut_are_latencies_of_its_networks(slope, constant, rng):
    """Where caches keep a part of every network, or a share."""

    class Cached(MACsLatency):
        def network_of_sum(self, sum_ms):
            return slope * sum_ms + constant

    device = Cached(macs_per_ms=1e6)
    lut = LUT.priced(device)
    chains = RowBlocks.of(HYPERSPACE, lut.columns).chains()
    for i in (int(rng.integers(len(lut))) for _ in range(5)):
        resolution = int(lut.columns["resolution"][i])
        whole = [*_other_blocks(HYPERSPACE, resolution), *chains[i]]
        found = lut.columns["latency_ms"][i] + lut.other_ms(resolution)
        assert found == pytest.approx(device.network_ms([whole])[0], rel=1e-6)


def test_given_latencies_are_kept_by_resolution():
    found = OtherStages.given(HYPERSPACE, {16: 2, 8: 0})
    assert (found.ms, found.source) == ({"8": 0.0, "16": 2.0}, "given by the user")


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        ({8: 1.0}, r"given for resolutions \[8\]; synthetic needs \[8, 16\]"),
        ({8: 1.0, 16: 1.0, 32: 1.0}, r"given for resolutions \[8, 16, 32\]; synthetic needs"),
        ({}, r"given for resolutions \[\]"),
        ({8: 1.0, 16: -1.0}, r"at resolution 16: -1\.0 ms; expected a finite value >= 0"),
        ({8: float("nan"), 16: 1.0}, "at resolution 8: nan ms"),
        ({8: float("inf"), 16: 1.0}, "at resolution 8: inf ms"),
    ],
)
def test_latencies_that_do_not_fit_are_refused(ms, words):
    with pytest.raises(LUTError, match=words):
        OtherStages.given(HYPERSPACE, ms)
