from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from nni_spaceevo.errors import PredictorError
from nni_spaceevo.hyperspace import load_hyperspace
from nni_spaceevo.latency import Calibration
from nni_spaceevo.latency.features import Columns, base_names, base_terms
from nni_spaceevo.latency.fit import (
    calibrate,
    cross_validated_us,
    extract_trees,
    fit_calibration,
    fit_regressor,
)
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.latency.sampling import random_networks

from .formula import FormulaPredictor, formula_predictor

KERNELS = [
    RuntimeKernel("conv1x1", hw, cin, cout)
    for hw in (4, 7, 12, 20, 28)
    for cin in (8, 24, 64, 96)
    for cout in (16, 40, 72, 128)
]


# More than 64 leaves are walked, fewer are scored.
@pytest.mark.parametrize("leaves", [2, 12, 31, 100])
def test_extracted_trees_predict_what_scikit_learn_predicts(rng, leaves):
    rows = rng.normal(size=(400, 7))
    target = np.sin(3 * rows[:, 0]) + rows[:, 1] * (rows[:, 2] > 0)
    fresh = rng.normal(size=(1000, 7)) * 2
    # OpenMP's threads spin for a minute where another process has the other core.
    with threadpool_limits(1):
        model = HistGradientBoostingRegressor(
            max_iter=60, max_leaf_nodes=leaves, min_samples_leaf=2
        ).fit(rows, target)
        expected = model.predict(fresh)
    trees = extract_trees(model)
    found = (trees.left == np.arange(trees.left.shape[1])) & (trees.value != 0)
    assert found.sum(axis=1).max() == leaves
    assert trees.predict(fresh) == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_a_physical_cost_is_found_exactly():
    costs = {"padded_macs": 2.0, "input": 0.3, "output": 0.1, "weights": 0.05, "constant": 1.5}
    weights = [costs.get(name, 0.0) for name in base_names("conv1x1")]
    us = base_terms("conv1x1", Columns(KERNELS)) @ weights
    assert fit_regressor("conv1x1", KERNELS, us, 0).predict_us(KERNELS) == pytest.approx(us, 1e-3)


def test_boosting_learns_what_the_base_misses(rng):
    order = rng.permutation(len(KERNELS))
    kernels = [KERNELS[i] for i in order]
    us = np.array([(1 + k.cin * k.cout / 500) * (2 if k.cin == 24 else 1) for k in kernels])
    fitted = fit_regressor("conv1x1", kernels[:66], us[:66], 0)
    error = fitted.predict_us(kernels[66:]) / us[66:] - 1
    assert np.abs(error).mean() < 0.15
    assert len(fitted.trees.feature) > 0


def test_few_kernels_are_fitted_without_trees():
    assert len(fit_regressor("conv1x1", KERNELS[:5], np.arange(1.0, 6), 0).trees.feature) == 0


@pytest.mark.parametrize("beyond", [7, 8])
def test_a_knee_is_fitted_to_kernels_enough_beyond_it(beyond):
    kernels = [
        RuntimeKernel("linear", 1, 2000 + 20 * i, 1000) for i in range(beyond - 30, beyond + 1)
    ]
    us = np.array([k.cin + 9 * max(k.cin - 2000, 0) for k in kernels]) / 10
    fitted = fit_regressor("linear", kernels, us, 0)
    weight = fitted.weights[base_names("linear").index("weights_beyond_2m")]
    assert (weight > 0) == (beyond == 8)


def test_what_is_held_out_is_predicted_by_the_kind_of_regressor_that_is_kept(monkeypatch):
    """70 kernels have trees, so each fifth is predicted by trees too, although 56 would not."""
    us, fitted = np.linspace(1, 9, 70), []

    def noted(*args, **options):
        fitted.append(fit_regressor(*args, **options))
        return fitted[-1]

    monkeypatch.setattr("nni_spaceevo.latency.fit.fit_regressor", noted)
    assert np.isfinite(cross_validated_us(KERNELS[:70], us, 0)).all()
    assert [len(probe.trees.feature) > 0 for probe in fitted] == [True] * 5
    fitted.clear()
    cross_validated_us(KERNELS[:56], us[:56], 0)
    assert [len(probe.trees.feature) > 0 for probe in fitted] == [False] * 5


def test_fitting_is_deterministic(rng):
    us = rng.uniform(1, 9, len(KERNELS))
    first, second = (fit_regressor("conv1x1", KERNELS, us, 3).to_bytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_latencies_must_be_positive_numbers(bad):
    us = np.ones(len(KERNELS))
    us[3] = bad
    with pytest.raises(PredictorError, match="'conv1x1'"):
        fit_regressor("conv1x1", KERNELS, us, 0)


@pytest.mark.parametrize("constant", [9, 0, -9])
def test_calibration_finds_its_numbers(rng, constant):
    sums = rng.uniform([50, 20, 0.01], [500, 200, 2], (40, 3))
    kernels = sums @ [1.1, 0.4, 12]
    found = fit_calibration(["conv"], sums, kernels + constant)
    numbers = [found.scale, found.node_us, found.weight_us_per_mb, found.constant_us]
    assert numbers == pytest.approx([1.1, 0.4, 12, max(constant, 0)], rel=1e-6, abs=1e-6)
    # What is less than nothing of a network is a smaller share of a smaller sum.
    ends = np.array([kernels.min(), kernels.max()])
    assert found.sums_us[:: len(found.sums_us) - 1] == pytest.approx(ends + max(constant, 0))
    assert found.shares[0] == pytest.approx(1 + min(constant, 0) / ends[0], abs=3e-3)
    assert found.shares[-1] == pytest.approx(1 + min(constant, 0) / ends[1], abs=3e-3)


@pytest.mark.parametrize("kept_mb", [None, 2.0])
def test_networks_tell_how_many_weights_a_kernel_alone_keeps(rng, kept_mb):
    like = formula_predictor()

    def predictor(by):
        given = (like.provenance, like.lowering, by, like.kernels, like.report, like.folder)
        return FormulaPredictor(*given)

    costs = {"scale": 1.1, "node_us": 0.5, "weight_us_per_mb": 900.0, "constant_us": 20.0}
    truth = predictor(Calibration(**costs, kept_mb=kept_mb))
    chains = [n.placed for n in random_networks(load_hyperspace("onnxw"), rng, 40)]
    found = calibrate(predictor, chains, 1e3 * truth.network_ms(chains))
    assert found.calibration.kept_mb == kept_mb
    assert found.calibration.weight_us_per_mb == pytest.approx(900, rel=0.02)
    assert found.network_ms(chains) == pytest.approx(truth.network_ms(chains), rel=1e-3)


def test_shares_follow_the_size_of_networks(rng):
    sums = rng.uniform([50, 20, 0.01], [500, 200, 2], (60, 3)) * rng.uniform(0.5, 10, (60, 1))
    kernels = sums @ [1.1, 0.4, 12]
    measured = kernels * np.interp(np.log(kernels), np.log([100, 5000]), [0.6, 1])
    found = fit_calibration(["conv"], sums, measured)
    total = sums @ [found.scale, found.node_us, found.weight_us_per_mb] + found.constant_us
    share = np.interp(np.log(total), np.log(found.sums_us), found.shares)
    assert len(found.shares) == 6
    errors = np.abs(total * share / measured - 1)
    assert np.median(errors) < 0.015
    assert errors.max() < 0.08


def test_a_few_networks_give_a_calibration_without_shares(rng):
    sums = rng.uniform([50, 20, 0.01], [500, 200, 2], (4, 3))
    found = fit_calibration(["conv"], sums, sums @ [1.1, 0.4, 12])
    assert len(found.shares) <= 2


def test_kernels_operators_and_weights_never_cost_less_than_nothing(rng):
    sums = rng.uniform([50, 20, 0.01], [500, 200, 2], (30, 3))
    found = fit_calibration(["conv"], sums, sums @ [1.2, -0.1, -2])
    assert min(found.node_us, found.weight_us_per_mb) >= 0


def test_kernels_never_become_free(rng):
    sums = rng.uniform([50, 20, 0.01], [500, 200, 2], (5, 3))
    assert fit_calibration(["conv"], sums, 3 * sums[:, 1]).scale >= 0.5
