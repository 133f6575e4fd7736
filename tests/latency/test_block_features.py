"""Whole blocks as arrays: physical terms that follow the recipes, and features of the residual."""

from __future__ import annotations

import numpy as np
import pytest

from nni_spaceevo.hyperspace import BLOCK_TYPES, BlockConfig, PlacedBlock
from nni_spaceevo.latency.block_features import (
    BLOCK_FEATURE_NAMES,
    BLOCK_TERMS,
    BlockColumns,
    block_features,
    block_terms,
)
from nni_spaceevo.latency.features import FEATURE_NAMES
from nni_spaceevo.latency.lowering import BLOCK, RuntimeKernel, whole_block
from nni_spaceevo.latency.views import view_of


def block(kind: str, hw: int, cin: int, cout: int, k: int = 3, stride: int = 1) -> PlacedBlock:
    expand = 2.0 if BLOCK_TYPES[kind].expands else None
    return PlacedBlock(BlockConfig(kind, cin, cout, k, expand, stride, "swish"), hw)


def some_blocks(kind: str) -> list[PlacedBlock]:
    if kind == "linear":
        return [block(kind, 1, 24, 10, 1), block(kind, 1, 48, 40, 1)]
    return [block(kind, 7, 16, 24), block(kind, 15, 24, 24, 5), block(kind, 15, 24, 40, 3, 2)]


def term(name: str, *blocks: PlacedBlock) -> np.ndarray:
    columns = BlockColumns([whole_block(b) for b in blocks])
    return block_terms(columns)[:, BLOCK_TERMS.index(name)]


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_shapes_and_signs(kind):
    columns = BlockColumns([whole_block(b) for b in some_blocks(kind)])
    n = len(columns.hw)
    terms, rows = block_terms(columns), block_features(columns, np.ones(n))
    assert terms.shape == (n, len(BLOCK_TERMS))
    assert rows.shape == (n, len(BLOCK_FEATURE_NAMES))
    assert np.isfinite(terms).all() and np.isfinite(rows).all() and (terms >= 0).all()


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_work_and_number_of_kernels_are_the_recipe_s(kind):
    blocks = some_blocks(kind)
    columns = BlockColumns([whole_block(b) for b in blocks])
    products = [sum(k.macs for k in b.kernels if k.op != "se") for b in blocks]
    assert columns.costs["macs"].tolist() == products
    assert columns.kernels.tolist() == [len(b.kernels) for b in blocks]


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_bytes_in_and_out_are_the_kernels(kind):
    blocks = some_blocks(kind)
    moved = [
        [sum(k.hw**2 * k.cin for k in b.kernels), sum(k.hw_out**2 * k.cout for k in b.kernels)]
        for b in blocks
    ]
    found = np.stack([term("input", *blocks), term("output", *blocks)], axis=1)
    assert found * 1e3 == pytest.approx(np.array(moved))


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_a_block_s_numbers_do_not_depend_on_its_company(kind):
    blocks = [whole_block(b) for b in some_blocks(kind)]
    together = block_features(BlockColumns(blocks), np.arange(1.0, len(blocks) + 1))
    for i, one in enumerate(blocks):
        assert (block_features(BlockColumns([one]), np.array([i + 1.0])) == together[i]).all()


def test_work_is_padded_to_vectors_of_16_channels_and_4_bytes():
    narrow, wide = term("padded_macs_1x1", block("conv", 1, 5, 17, 1), block("conv", 1, 8, 32, 1))
    assert narrow == wide == pytest.approx(8 * 32 / 1e3)


def test_channels_that_do_not_fill_vectors_are_told_apart():
    full, tail = term("depthwise_with_tail", block("mbv2", 8, 16, 16), block("mbv2", 8, 12, 16))
    assert full == 0 and tail > 0


def test_a_linear_layer_costs_as_a_1x1_convolution_of_one_pixel():
    columns = [
        BlockColumns([RuntimeKernel(f"{BLOCK}{kind}", 1, 320, 1000)]) for kind in ("conv", "linear")
    ]
    assert (block_terms(columns[0]) == block_terms(columns[1])).all()


def test_a_pooled_convolution_sees_one_pixel():
    small, large = term("padded_macs_1x1", block("pool_conv", 5, 32, 64), block("conv", 1, 32, 64))
    assert small == pytest.approx(32 * 64 / 1e3) and large == 0
    assert term("pooled", block("pool_conv", 5, 32, 64))[0] == pytest.approx(25 * 32 / 1e3)


def test_only_computed_activations_cost():
    clipped, computed = (
        RuntimeKernel(f"{BLOCK}conv", 4, 8, 8, 3, activation=name) for name in ("relu6", "swish")
    )
    costs = BlockColumns([clipped, computed]).costs["activated"]
    assert costs.tolist() == [0, 16 * 8]


def test_no_blocks_are_no_rows():
    assert block_terms(BlockColumns([])).shape == (0, len(BLOCK_TERMS))


def test_a_type_is_seen_as_a_block_by_its_name():
    assert view_of(f"{BLOCK}conv").feature_names == BLOCK_FEATURE_NAMES
    assert view_of("conv").feature_names == FEATURE_NAMES
