"""Fitting: kernel measurements to regressors, whole-network measurements to a calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ..errors import PredictorError
from .features import Columns, FloatArray, base_terms, residual_features
from .lowering import RuntimeKernel
from .predictor import Calibration
from .regressor import Regressor, Trees

# With fewer kernels the trees would only memorise; the physical base alone is safer.
_FEWEST_FOR_TREES = 24
_FOLDS = 5
# Kernels in a network are not twice as fast as alone.
_LEAST_SCALE = 0.5


def fit_regressor(
    kind: str, kernels: Sequence[RuntimeKernel], us: FloatArray, seed: int
) -> Regressor:
    """Fit one kernel type: a non-negative physical base, then boosting on the log residual.

    Parameters
    ----------
    kind : the kernel type
    kernels : n kernels of it
    us : their latencies in microseconds, shape (n,)
    seed : of the boosting

    Raises
    ------
    PredictorError
        A latency that is not a positive number.
    """
    if not (np.isfinite(us).all() and (us > 0).all()):
        raise PredictorError(
            f"kernel {kind!r}: measured latencies must be positive, got {us.min()}"
        )
    columns = Columns(kernels)
    weights = _relative_nnls(base_terms(kind, columns), us, us)
    base = Regressor(kind, weights, Trees.none())
    if len(kernels) < _FEWEST_FOR_TREES:
        return base
    base_us = base.base_us(columns)
    model = HistGradientBoostingRegressor(
        max_iter=300,
        learning_rate=0.06,
        max_leaf_nodes=12,
        min_samples_leaf=4,
        l2_regularization=0.1,
        early_stopping=False,
        random_state=seed,
    )
    # Small tables gain nothing from threads, and OpenMP's spinning crawls on a busy machine.
    with threadpool_limits(1):
        model.fit(residual_features(columns, base_us), np.log(us / base_us))
    return Regressor(kind, weights, extract_trees(model))


def cross_validated_us(kernels: Sequence[RuntimeKernel], us: FloatArray, seed: int) -> FloatArray:
    """Latency of every kernel as predicted by regressors that were not fitted to it, shape (n,).

    Parameters
    ----------
    kernels : n kernels of any types
    us : their latencies in microseconds, shape (n,)
    seed : of the folds and the boosting
    """
    result = np.empty(len(kernels))
    for kind in sorted({k.type for k in kernels}):
        mine = np.array([i for i, k in enumerate(kernels) if k.type == kind])
        order = np.random.default_rng([seed, len(mine)]).permutation(mine)
        for held in np.array_split(order, min(_FOLDS, len(mine))):
            rest = np.setdiff1d(mine, held)
            if len(rest) == 0:
                raise PredictorError(f"kernel {kind!r}: one measurement is too few to fit")
            probe = fit_regressor(kind, [kernels[i] for i in rest], us[rest], seed)
            result[held] = probe.predict_us([kernels[i] for i in held])
    return result


def _relative_nnls(terms: FloatArray, target: FloatArray, measured: FloatArray) -> FloatArray:
    """Non-negative weights of least squared error relative to `measured`, shape (terms,)."""
    rows = terms / measured[:, None]
    # Terms differ by orders of magnitude; equal norms keep the solver well conditioned.
    norms = np.linalg.norm(rows, axis=0)
    norms[norms == 0] = 1
    weights, _ = nnls(rows / norms, target / measured)
    return np.asarray(weights / norms)


def extract_trees(model: HistGradientBoostingRegressor) -> Trees:
    """The trees of a fitted scikit-learn model as plain arrays."""
    tables: list[NDArray[np.void]] = [p[0].nodes for p in model._predictors]
    size = max(len(t) for t in tables)
    shape = (len(tables), size)
    feature, left, right = (np.zeros(shape, np.int16) for _ in range(3))
    threshold, value = np.zeros(shape), np.zeros(shape)
    for i, table in enumerate(tables):
        leaf, own = table["is_leaf"].astype(bool), np.arange(len(table))
        n = slice(len(table))
        feature[i, n] = np.where(leaf, 0, table["feature_idx"])
        threshold[i, n] = np.where(leaf, 0, table["num_threshold"])
        left[i, n] = np.where(leaf, own, table["left"])
        right[i, n] = np.where(leaf, own, table["right"])
        value[i, n] = np.where(leaf, table["value"], 0)
    return Trees(
        feature=feature,
        threshold=threshold,
        left=left,
        right=right,
        value=value,
        baseline=np.asarray(model._baseline_prediction, np.float64).reshape(()),
        depth=np.array(max(int(t["depth"].max()) for t in tables), np.int64),
    )


def fit_calibration(sums: FloatArray, measured_us: FloatArray) -> Calibration:
    """Fit a calibration to whole networks by relative least squares, no term negative.

    Parameters
    ----------
    sums : `LatencyPredictor.chain_sums` of n networks, shape (n, 3)
    measured_us : their latencies in microseconds, shape (n,)
    """
    terms = np.column_stack([sums, np.ones(len(sums))])
    # What goes beyond the least scale is fitted: few or noisy networks may otherwise explain all
    # by their operators and leave the kernels free.
    rest = measured_us - _LEAST_SCALE * sums[:, 0]
    above, node_us, weight_us_per_mb, constant_us = _relative_nnls(
        terms, rest, measured_us
    ).tolist()
    return Calibration(
        scale=_LEAST_SCALE + above,
        node_us=node_us,
        weight_us_per_mb=weight_us_per_mb,
        constant_us=constant_us,
    )
