"""Fitting: kernel measurements to regressors, whole-network measurements to a calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ..errors import PredictorError
from ..hyperspace import PlacedBlock
from .features import (
    Columns,
    FloatArray,
    base_names,
    base_terms,
    is_knee,
    residual_features,
)
from .lowering import RuntimeKernel
from .predictor import AS_THEY_ARE, Calibration, LatencyPredictor
from .regressor import Regressor, Trees

# With fewer kernels the trees would only memorise; the physical base alone is safer. And what lies
# beyond a knee that fewer kernels than this reach, they do not tell.
_FEWEST_FOR_TREES, _FEWEST_BEYOND = 64, 8
_FOLDS = 5
# How the share of the sum that networks cost follows their size: straight pieces of so many
# networks at least.
_MOST_PIECES, _NETWORKS_A_PIECE = 5, 8
# What a kernel type's own scale must explain, as a sum of squared relative errors, for a difference
# of 1 from the scale that all share: the square of this.
_ALIKE = 0.1
# Megabytes of weights that caches may keep from run to run of a kernel (in float, four times as
# many bytes); networks say which it is.
_KEPT_MB = (None, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
# Kernels in a network are not twice as fast as alone.
_LEAST_SCALE = 0.5


def fit_regressor(
    kind: str,
    kernels: Sequence[RuntimeKernel],
    us: FloatArray,
    seed: int,
    *,
    boosted: bool | None = None,
) -> Regressor:
    """Fit one kernel type: a non-negative physical base, then boosting on the log residual.

    Parameters
    ----------
    kind : the kernel type
    kernels : n kernels of it
    us : their latencies in microseconds, shape (n,)
    seed : of the boosting
    boosted : whether trees follow the base; by default where there are kernels enough

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
    terms = base_terms(kind, columns)
    for i, name in enumerate(base_names(kind)):
        if is_knee(name) and np.count_nonzero(terms[:, i]) < _FEWEST_BEYOND:
            terms[:, i] = 0
    weights = _relative_nnls(terms, us, us)
    base = Regressor(kind, weights, Trees.none())
    if boosted is None:
        boosted = _are_enough(kernels)
    if not boosted:
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


def _are_enough(kernels: Sized) -> bool:
    return len(kernels) >= _FEWEST_FOR_TREES


def cross_validated_us(kernels: Sequence[RuntimeKernel], us: FloatArray, seed: int) -> FloatArray:
    """Latency of every kernel as predicted by regressors that were not fitted to it, shape (n,).

    They have trees where a regressor of all kernels has, although each sees fewer.

    Parameters
    ----------
    kernels : n kernels of any types
    us : their latencies in microseconds, shape (n,)
    seed : of the folds and the boosting
    """
    result = np.empty(len(kernels))
    for kind in sorted({k.type for k in kernels}):
        mine = np.array([i for i, k in enumerate(kernels) if k.type == kind])
        boosted = _are_enough(mine)
        order = np.random.default_rng([seed, len(mine)]).permutation(mine)
        for held in np.array_split(order, min(_FOLDS, len(mine))):
            rest = np.setdiff1d(mine, held)
            if len(rest) == 0:
                raise PredictorError(f"kernel {kind!r}: one measurement is too few to fit")
            some = [kernels[i] for i in rest]
            probe = fit_regressor(kind, some, us[rest], seed, boosted=boosted)
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


def calibrate(
    predictor: Callable[[Calibration], LatencyPredictor],
    chains: Sequence[Sequence[PlacedBlock]],
    measured_us: FloatArray,
    cold_mb: float | None = None,
) -> LatencyPredictor:
    """The predictor whose calibration fits whole networks best.

    Parameters
    ----------
    predictor : makes one of a calibration
    chains : the blocks of n networks
    measured_us : their latencies in microseconds, shape (n,)
    cold_mb : of weights, from which convolutions were timed with caches that held none of them
    """
    candidates = []
    for kept_mb in _KEPT_MB:
        raw = predictor(replace(AS_THEY_ARE, kept_mb=kept_mb, cold_mb=cold_mb))
        by = fit_calibration(raw.kinds, raw.chain_sums(chains), measured_us)
        candidates.append(predictor(replace(by, kept_mb=kept_mb, cold_mb=cold_mb)))

    def error(candidate: LatencyPredictor) -> float:
        return float(np.square(1e3 * candidate.network_ms(chains) / measured_us - 1).sum())

    return min(candidates, key=error)


def fit_calibration(kinds: Sequence[str], sums: FloatArray, measured_us: FloatArray) -> Calibration:
    """Fit a calibration to whole networks by relative least squares, no cost negative.

    Parameters
    ----------
    kinds : kernel types
    sums : `LatencyPredictor.chain_sums` of n networks, shape (n, len(kinds) + 2)
    measured_us : their latencies in microseconds, shape (n,)
    """
    one = np.ones((len(sums), 1))
    # Small networks stay in the caches that large ones outgrow. The best line through both may then
    # meet the axis below zero, and its slope is right; the shares say what becomes of its end.
    costs, typical = _costs(np.hstack([sums, one, -one]), len(kinds), measured_us)
    constant_us = max(float(costs[-2] - costs[-1]), 0.0)
    ends, shares = _shares(sums @ costs[:-2] + constant_us, measured_us)
    try:
        return _calibration(kinds, costs, typical, constant_us, sums_us=ends, shares=shares)
    except PredictorError:
        # Networks too few or too noisy to tell how sizes differ.
        costs, typical = _costs(np.hstack([sums, one]), len(kinds), measured_us)
        return _calibration(kinds, costs, typical, float(costs[-1]))


def _costs(terms: FloatArray, kinds: int, measured_us: FloatArray) -> tuple[FloatArray, float]:
    """Non-negative costs of the terms, and the scale that those of kernel types, the first, share.

    The scales differ from the one they share as far as the networks really show it.
    """
    # What goes beyond the least scale is fitted: few or noisy networks may otherwise explain all
    # by their operators and leave the kernels free.
    rest = measured_us - _LEAST_SCALE * terms[:, :kinds].sum(axis=1)
    rows = np.hstack([terms, np.zeros((len(terms), 1))]) / measured_us[:, None]
    alike = np.hstack([np.eye(kinds, rows.shape[1] - 1), -np.ones((kinds, 1))])
    rows = np.vstack([rows, _ALIKE * alike])
    norms = np.linalg.norm(rows, axis=0)
    norms[norms == 0] = 1
    found, _ = nnls(rows / norms, np.concatenate([rest / measured_us, np.zeros(kinds)]))
    found /= norms
    found[:kinds] += _LEAST_SCALE
    return found[:-1], float(found[-1] + _LEAST_SCALE)


def _calibration(
    kinds: Sequence[str], costs: FloatArray, typical: float, constant_us: float, **shares: Any
) -> Calibration:
    of_kernels, (node_us, weight_us_per_mb) = costs[: len(kinds)], costs[len(kinds) :][:2]
    return Calibration(
        scale=typical,
        scales=dict(zip(kinds, of_kernels.tolist(), strict=True)),
        node_us=float(node_us),
        weight_us_per_mb=float(weight_us_per_mb),
        constant_us=constant_us,
        **shares,
    )


def _shares(sums_us: FloatArray, measured_us: FloatArray) -> tuple[tuple[float, ...], ...]:
    """Ends of straight pieces over the logarithm of the sum, and the share measured at each."""
    pieces = int(np.clip(len(sums_us) // _NETWORKS_A_PIECE, 1, _MOST_PIECES))
    logs = np.log(sums_us)
    ends = np.quantile(logs, np.linspace(0, 1, pieces + 1))
    hats = np.stack([np.interp(logs, ends, unit) for unit in np.eye(len(ends))], axis=1)
    terms = hats * (sums_us / measured_us)[:, None]
    shares = np.linalg.lstsq(terms, np.ones(len(terms)), rcond=None)[0]
    return tuple(np.exp(ends).tolist()), tuple(shares.tolist())
