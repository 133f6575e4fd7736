from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from nni_spaceevo.errors import PredictorError, PredictorWarning
from nni_spaceevo.files import packed_folder
from nni_spaceevo.latency import Lowering
from nni_spaceevo.latency.comparison import (
    Measured,
    in_order,
    kernel_of_key,
    measured_us,
    speed_grids,
    step_curves,
    tail_penalty,
    unit_costs,
)
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.latency.predictor import load_predictor

from .formula import SIZES, WIDTHS, float_us, formula_predictor, int8_us

WHOLE = Lowering(whole_blocks=True)
PACKED = sorted(path.parent for path in packed_folder("latency_predictors").glob("*/device.yaml"))


@pytest.mark.parametrize(
    "kernel",
    [
        RuntimeKernel("conv1x1", 14, 16, 96),
        RuntimeKernel("conv", 28, 16, 32, 5, 2, activation="hswish"),
        RuntimeKernel("se", 7, 96, 96, squeezed=24),
        RuntimeKernel("se", 7, 96, 96, squeezed=24, activation="hswish"),
        RuntimeKernel("dwconv", 7, 96, 96, 3, positive=True),
        RuntimeKernel("block_mbv2_res", 14, 16, 24, 3, 2, activation="relu6", expand=4.5),
    ],
    ids=lambda k: k.key,
)
def test_a_key_names_its_kernel(kernel: RuntimeKernel) -> None:
    assert kernel_of_key(kernel.key) == kernel


@pytest.mark.parametrize("key", ["conv1x1", "conv1x1/7/a/1/1/1/0", "conv/7/8/8/1/1/0/1/2"])
def test_other_text_is_refused(key: str) -> None:
    with pytest.raises(PredictorError, match="expected <type>"):
        kernel_of_key(key)


@pytest.mark.parametrize("folder", PACKED, ids=lambda folder: folder.name)
def test_what_the_predictors_of_the_package_were_fitted_to_is_known(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PredictorWarning)
        predictor = load_predictor(folder)
    known = {unit.partition("+")[0] for unit in predictor.lowering.operators}
    assert {kernel.type for kernel in measured_us(predictor)} <= known


def test_kinds_are_ordered_by_what_they_are() -> None:
    assert in_order(["swish", "own", "se", "conv1x1+hswish", "add", "conv1x1"]) == [
        *("conv1x1", "conv1x1+hswish", "add", "se", "swish", "own")
    ]


def test_near_is_near_in_size_and_width() -> None:
    measured = Measured(formula_predictor(widths=(16, 128)))
    assert measured.near(RuntimeKernel("conv1x1", 14, 24, 16))
    assert not measured.near(RuntimeKernel("conv1x1", 14, 48, 48))
    assert not measured.near(RuntimeKernel("conv1x1", 56, 16, 16))
    assert not measured.near(RuntimeKernel("dwconv", 14, 16, 16, 7))
    assert not measured.near(RuntimeKernel("unknown", 14, 16, 16))


def test_a_grid_is_float_time_over_int8_time() -> None:
    grids = {g.title: g for g in speed_grids(formula_predictor(), formula_predictor("float32"))}
    assert list(grids) == [
        *("conv1x1", "conv 3×3", "dwconv 3×3", "dwconv 5×5", "add", "pool", "linear", "se"),
        *("conv1x1 + swish", "conv1x1 + hswish"),
    ]
    grid = grids["dwconv 5×5"]
    assert grid.sizes == tuple(sorted(SIZES, reverse=True))
    assert set(grid.widths) == {16, 32, 48, 64, 96, 128, 192}
    kernel = RuntimeKernel("dwconv", 14, 64, 64, 5)
    found = grid.ratio[grid.sizes.index(14), grid.widths.index(64)]
    assert found == pytest.approx(float_us(kernel) / int8_us(kernel))
    assert len(grid.known) == grid.ratio.size


def test_an_activation_counts_with_the_convolution_before_it() -> None:
    grids = {g.title: g for g in speed_grids(formula_predictor(), formula_predictor("float32"))}
    grid = grids["conv1x1 + hswish"]
    within = float_us(RuntimeKernel("conv1x1", 14, 64, 64, activation="hswish"))
    conv, own = (int8_us(RuntimeKernel(kind, 14, 64, 64)) for kind in ("conv1x1", "hswish"))
    found = grid.ratio[grid.sizes.index(14), grid.widths.index(64)]
    assert found == pytest.approx(within / (conv + own))


def test_cells_that_one_of_the_two_never_measured_stay_empty() -> None:
    narrow = formula_predictor("float32", widths=(16, 24))
    grids = {g.title: g for g in speed_grids(formula_predictor(), narrow)}
    assert grids["conv1x1"].widths == (16,)


def test_devices_known_by_blocks_have_nothing_to_compare() -> None:
    predictor = formula_predictor(lowering=WHOLE)
    assert measured_us(predictor) == {}
    assert speed_grids(predictor, predictor) == []
    assert step_curves(predictor, "conv1x1") == []
    assert unit_costs(predictor) == []


def test_curves_run_over_what_was_measured() -> None:
    curves = step_curves(formula_predictor(), "dwconv")
    assert [c.title for c in curves] == [f"dwconv 3×3 at {s}×{s}" for s in sorted(SIZES)[::-1]]
    curve = curves[0]
    np.testing.assert_array_equal(curve.widths, np.arange(16, 193, 8))
    np.testing.assert_array_equal(curve.measured[:, 0], WIDTHS)
    kernels = [RuntimeKernel("dwconv", 28, w, w, 3) for w in range(16, 193, 8)]
    np.testing.assert_allclose(curve.predicted_us, [int8_us(k) for k in kernels])


def test_the_penalty_of_a_step_is_found() -> None:
    predictor = formula_predictor()
    assert 1.5 < tail_penalty(predictor, "dwconv") <= 2
    assert tail_penalty(predictor, "conv1x1") == pytest.approx(1, abs=0.01)


def test_where_nothing_lies_beside_the_multiples_no_step_is_claimed() -> None:
    predictor = formula_predictor(widths=(16, 32, 64, 96))
    assert tail_penalty(predictor, "dwconv") is None
    assert tail_penalty(predictor, "unknown") is None


def test_costs_of_activations_and_kernels() -> None:
    costs = {c.unit: c for c in unit_costs(formula_predictor())}
    assert costs["relu"].is_free and costs["relu"].how.startswith("free after conv1x1")
    hswish = costs["hswish"]
    assert hswish.how == "operators of its own after conv1x1, conv, dwconv, add"
    assert hswish.in_float == ("HardSwish",)
    assert hswish.conversions == ("DequantizeLinear", "QuantizeLinear")
    assert hswish.at is not None
    assert hswish.us == pytest.approx(int8_us(hswish.at))
    assert hswish.relative == pytest.approx(1)
    assert costs["conv1x1"].relative == pytest.approx(1)
    assert "hsigmoid" not in costs


def test_costs_are_compared_at_the_shapes_of_the_other_device() -> None:
    mine = unit_costs(formula_predictor(widths=(128, 184, 192)))
    assert {c.at.cout for c in unit_costs(formula_predictor("float32")) if c.at} <= {64, 72}
    others = unit_costs(formula_predictor("float32"), mine)
    wanted = {c.unit: c.at.cout for c in mine if c.at}
    assert {c.at.cout for c in others if c.at and c.unit in wanted} == {184}


def test_an_activation_within_a_kernel_costs_what_it_adds() -> None:
    (found,) = (c for c in unit_costs(formula_predictor("float32")) if c.unit == "hswish")
    assert found.how == "computed within conv1x1, dwconv"
    assert found.us == pytest.approx(0)
    assert not found.is_free
