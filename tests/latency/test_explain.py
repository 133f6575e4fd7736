from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from msgspec import structs

from nni_spaceevo.hyperspace import BlockConfig, Hyperspace, PlacedBlock, mparams, place
from nni_spaceevo.latency import LatencyPredictor, Lowering
from nni_spaceevo.latency.explain import CheaperWidth, explain, format_explanation, runs_as
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.latency.sampling import random_network

from .formula import CALIBRATION, WIDTHS, formula_predictor, int8_us

HSWISH = {"activation": "hswish"}
# Hidden width 16 * 11.5 = 184.
UNEVEN = BlockConfig("mbv2_res", 16, 16, 3, expand=11.5, activation="relu6")
EVEN = BlockConfig("mbv2_res", 16, 16, 3, expand=12, activation="relu6")
LAST = BlockConfig("conv", 16, 24, activation="relu")
WHOLE = Lowering(whole_blocks=True)


def us_of(kernels: Sequence[RuntimeKernel], millions_of_weights: float) -> float:
    c = CALIBRATION
    alone = c.scale * sum(map(int8_us, kernels))
    return alone + c.node_us * len(kernels) + c.weight_us_per_mb * millions_of_weights


@pytest.mark.parametrize("kept_mb", [None, 1e-3])
@pytest.mark.parametrize("seed", range(4))
def test_the_rows_and_the_constant_are_the_whole_network(
    invented: LatencyPredictor, digits: Hyperspace, seed: int, kept_mb: float | None
) -> None:
    by = structs.replace(invented.calibration, kept_mb=kept_mb)
    where = (invented.provenance, invented.lowering, by)
    invented = LatencyPredictor(*where, invented.kernels, invented.report, invented.folder)
    blocks = random_network(digits, np.random.default_rng(seed)).placed
    found = explain(invented, blocks)
    expected = invented.network_ms([blocks])[0]
    assert found.total_ms == pytest.approx(expected, rel=1e-13)
    assert sum(row.ms for row in found.rows) + found.constant_ms == pytest.approx(expected)
    assert sum(found.ms_by_type.values()) + found.constant_ms == pytest.approx(expected)
    assert [row.kernel for row in found.rows] == [
        part for block in blocks for part in invented.lowering.lower_block(block)
    ]


def test_rows_are_named_by_their_blocks() -> None:
    blocks = place((EVEN, LAST), 14)
    found = explain(formula_predictor(), blocks, ["stem", "head"])
    assert [(row.block, row.name) for row in found.rows] == [(1, "stem")] * 4 + [(2, "head")]
    assert explain(formula_predictor(), blocks).rows[-1].name == "block 2"
    with pytest.raises(ValueError):
        explain(formula_predictor(), blocks, ["stem"])


def test_a_row_costs_its_kernel_its_operators_and_its_weights() -> None:
    block = PlacedBlock(BlockConfig("conv", 16, 32, **HSWISH), 14)
    conv, hswish = explain(formula_predictor(), [block]).rows
    weights = mparams(block.kernels)
    assert conv.ms == pytest.approx(us_of([conv.kernel], weights) / 1e3)
    # Three operators.
    expected = CALIBRATION.scale * int8_us(hswish.kernel) + 3 * CALIBRATION.node_us
    assert hswish.ms == pytest.approx(expected / 1e3)


def test_what_falls_back_to_float_is_told_with_its_cost() -> None:
    blocks = place((BlockConfig("mbv3_res", 16, 16, 3, expand=4, **HSWISH),), 14)
    found = explain(formula_predictor(), blocks)
    kinds = {row.kernel.type: row.in_float for row in found.rows if row.in_float}
    assert kinds == {"hswish": ("HardSwish:float32",), "se": ("HardSigmoid:float32",)}
    assert found.float_ms == pytest.approx(sum(r.ms for r in found.rows if r.kernel.type in kinds))
    text = format_explanation(found)
    assert f"In float: kernels of {found.float_ms:.4f} ms" in text
    assert "in 2 kernels; in float: HardSwish" in text


def test_in_a_float_network_nothing_falls_back() -> None:
    blocks = place((BlockConfig("mbv3_res", 16, 16, 3, expand=4, **HSWISH),), 14)
    found = explain(formula_predictor("float32"), blocks)
    assert found.float_ms == 0
    assert "In float" not in format_explanation(found)


def test_a_hidden_width_is_compared_by_all_kernels_that_have_it() -> None:
    (found,) = explain(formula_predictor(), place((UNEVEN, LAST), 14)).cheaper

    def block_us(hidden: int) -> float:
        kernels = [
            RuntimeKernel("conv1x1", 14, 16, hidden),
            RuntimeKernel("dwconv", 14, hidden, hidden, 3),
            RuntimeKernel("conv1x1", 14, hidden, 16),
        ]
        norms, weights = 2 * (hidden + hidden + 16), (16 + 9 + 16) * hidden
        return us_of(kernels, (weights + norms) / 1e6)

    us, larger_us = block_us(184), block_us(192)
    assert found == CheaperWidth(
        "block 1: hidden width", 184, 192, pytest.approx(us), pytest.approx(larger_us)
    )
    assert (
        str(found) == f"block 1: hidden width 184 costs {us:.1f} us, 192 costs {larger_us:.1f} us"
    )


def test_widths_that_fill_their_vectors_stay() -> None:
    assert explain(formula_predictor(), place((EVEN, LAST), 14)).cheaper == ()


def test_widths_that_were_not_measured_are_not_proposed() -> None:
    predictor = formula_predictor(widths=[w for w in WIDTHS if w <= 184])
    assert explain(predictor, place((UNEVEN, LAST), 14)).cheaper == ()


def test_a_width_between_blocks_concerns_all_that_share_it() -> None:
    dual = BlockConfig("mbv1_dual", 24, 24, 3)
    blocks = place((BlockConfig("conv", 16, 24), dual, dual, BlockConfig("conv", 24, 16)), 14)
    # Identity shortcuts tie the width of all four, and a dual block has no width of its own.
    (found,) = explain(formula_predictor(), blocks, ["a", "b", "c", "d"]).cheaper
    assert (found.where, found.width, found.larger) == ("a to d: width between", 24, 32)
    kernels = [part for block in blocks for part in formula_predictor().lowering.lower_block(block)]
    millions = sum(mparams(block.kernels) for block in blocks)
    assert found.us == pytest.approx(us_of(kernels, millions))


def test_inner_features_of_a_block_are_widened_together() -> None:
    # Two kernels of a bottleneck write its hidden width; the block's own width stays.
    blocks = place((BlockConfig("resnet", 16, 16, 3, expand=1.5), LAST), 14)
    predictor = formula_predictor()
    wide = RuntimeKernel("conv", 14, 32, 32, 3)
    # Made dearer where channels leave a rest, which the formula does for depthwise ones only.
    predictor.kernels_us = lambda kernels: np.array(  # type: ignore[method-assign]
        [50.0 if k.type == "conv" and k != wide else 1.0 for k in kernels]
    )
    (found,) = explain(predictor, blocks).cheaper
    assert (found.where, found.width, found.larger) == ("block 1: hidden width", 24, 32)


def test_image_channels_and_classes_are_not_for_choosing() -> None:
    blocks = place((BlockConfig("mbv1_dual", 24, 40, 3),), 14)
    assert explain(formula_predictor(), blocks).cheaper == ()


def test_the_widths_that_save_most_come_first() -> None:
    small = BlockConfig("mbv2_res", 16, 16, 3, expand=2.5, activation="relu6")
    found = explain(formula_predictor(), place((small, UNEVEN, LAST), 14)).cheaper
    assert [c.width for c in found] == [184, 40]


def test_the_table_is_at_most_100_columns_wide_and_complete(
    invented: LatencyPredictor, digits: Hyperspace
) -> None:
    blocks = random_network(digits, np.random.default_rng(3)).placed
    names = [f"a rather long name of block {i}" for i in range(len(blocks))]
    found = explain(invented, blocks, names)
    lines = format_explanation(found).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == f"invented: {found.total_ms:.3f} ms predicted, {len(found.rows)} kernels"
    assert any(line.startswith("constant") for line in lines)
    (total,) = (line for line in lines if line.startswith("total"))
    assert total.split() == ["total", f"{found.total_ms:.4f}", "100.0"]
    assert any(line.startswith("  conv1x1: QLinearConv") for line in lines)


def test_a_device_known_by_blocks_has_a_row_a_block() -> None:
    predictor = formula_predictor(lowering=WHOLE)
    blocks = place((UNEVEN, LAST), 14)
    found = explain(predictor, blocks)
    assert found.total_ms == pytest.approx(predictor.network_ms([blocks])[0])
    assert len(found.rows) == 2 and found.cheaper == ()
    text = format_explanation(found)
    assert "mbv2_res+relu6" in text and "x11.5" in text
    assert "does not tell which operators" in text


def test_operators_are_those_of_the_width() -> None:
    lowering = Lowering(operators={"pool": ("A:int8",)}, unaligned={"pool": ("B:float32",)})
    assert runs_as(lowering, RuntimeKernel("pool", 7, 32, 32)) == ("A:int8",)
    assert runs_as(lowering, RuntimeKernel("pool", 7, 40, 40)) == ("B:float32",)
    assert runs_as(lowering, RuntimeKernel("add", 7, 40, 40)) == ()
