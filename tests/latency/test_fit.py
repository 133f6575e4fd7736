from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from nni_spaceevo.errors import PredictorError
from nni_spaceevo.latency.features import Columns, base_terms
from nni_spaceevo.latency.fit import extract_trees, fit_calibration, fit_regressor
from nni_spaceevo.latency.lowering import RuntimeKernel

KERNELS = [
    RuntimeKernel("conv1x1", hw, cin, cout)
    for hw in (4, 7, 12)
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
    columns = Columns(KERNELS)
    weights = np.array([2.0, 0, 0, 0.3, 0.1, 0.05, 0, 0, 0, 0, 1.5])
    us = base_terms("conv1x1", columns) @ weights
    assert fit_regressor("conv1x1", KERNELS, us, 0).predict_us(KERNELS) == pytest.approx(us, 1e-3)


def test_boosting_learns_what_the_base_misses(rng):
    order = rng.permutation(len(KERNELS))
    kernels = [KERNELS[i] for i in order]
    us = np.array([(1 + k.cin * k.cout / 500) * (2 if k.cin == 24 else 1) for k in kernels])
    fitted = fit_regressor("conv1x1", kernels[:40], us[:40], 0)
    error = fitted.predict_us(kernels[40:]) / us[40:] - 1
    assert np.abs(error).mean() < 0.15
    assert len(fitted.trees.feature) > 0


def test_few_kernels_are_fitted_without_trees():
    assert len(fit_regressor("conv1x1", KERNELS[:5], np.arange(1.0, 6), 0).trees.feature) == 0


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


def test_calibration_finds_its_four_numbers(rng):
    sums = rng.uniform([50, 20, 0.01], [500, 200, 2], (30, 3))
    found = fit_calibration(sums, sums @ [1.1, 0.4, 12] + 9)
    numbers = [found.scale, found.node_us, found.weight_us_per_mb, found.constant_us]
    assert numbers == pytest.approx([1.1, 0.4, 12, 9], rel=1e-6)


def test_calibration_never_goes_negative(rng):
    sums = rng.uniform([50, 20, 0.01], [500, 200, 2], (30, 3))
    found = fit_calibration(sums, sums[:, 0] * 1.2 - 5)
    assert min(found.node_us, found.weight_us_per_mb, found.constant_us) >= 0


def test_kernels_never_become_free(rng):
    sums = rng.uniform([50, 20, 0.01], [500, 200, 2], (5, 3))
    assert fit_calibration(sums, 3 * sums[:, 1]).scale >= 0.5
