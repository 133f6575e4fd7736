"""Fitting published block latencies: one regressor a block type, and estimates where none exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ..errors import PredictorError
from .block_features import BlockColumns, block_features, block_terms
from .features import FloatArray
from .fit import extract_trees
from .lowering import RuntimeKernel
from .regressor import Regressor, Trees

# With fewer blocks trees could not be told from noise; the physical base interpolates.
_FEWEST_FOR_TREES = 20
_FEWEST_FOR_LARGE_TREES = 200
# Smaller deviations of a noisy block from the smooth model are not worth remembering.
_WORTH_REMEMBERING = 0.02
# Least relative error of a row of the robust base: keeps exact rows from taking over.
_LEAST_ERROR = 0.02
_ROBUST_ROUNDS = 12


@dataclass(frozen=True)
class Boosting:
    """Settings of one boosting; the names are scikit-learn's."""

    max_iter: int
    learning_rate: float
    max_leaf_nodes: int
    max_depth: int
    min_samples_leaf: int
    loss: str = "squared_error"
    l2_regularization: float = 0.1

    def fit(self, features: FloatArray, target: FloatArray, seed: int) -> Trees:
        """Trees of `target` of shape (n,) from `features` of shape (n, f)."""
        model = HistGradientBoostingRegressor(
            loss=self.loss,
            max_iter=self.max_iter,
            learning_rate=self.learning_rate,
            max_leaf_nodes=self.max_leaf_nodes,
            max_depth=self.max_depth,
            min_samples_leaf=self.min_samples_leaf,
            l2_regularization=self.l2_regularization,
            early_stopping=False,
            random_state=seed,
        )
        # Small tables gain nothing from threads, and OpenMP's spinning crawls on a busy machine.
        with threadpool_limits(1):
            model.fit(features, target)
        return _rounded(extract_trees(model))


_FEW = Boosting(200, 0.1, 6, 6, 2)
_EXACT = Boosting(150, 0.15, 64, 9, 3)
# Slow runs of a busy machine are outliers on one side; absolute errors shrug them off.
_ROBUST = Boosting(150, 0.1, 31, 8, 8, "absolute_error")
# Unpruned, and as many leaves as a tree can have: each block that deviates needs its own.
_MEMORY = Boosting(250, 0.5, 64, 20, 1, l2_regularization=0.0)


def fit_block_regressor(
    kind: str,
    blocks: Sequence[RuntimeKernel],
    us: FloatArray,
    seed: int,
    others: Sequence[RuntimeKernel] | None = None,
) -> Regressor:
    """Fit one block type: a non-negative physical base, then boosting on the log residual.

    Parameters
    ----------
    kind : the block type as `RuntimeKernel.type` has it
    blocks : n blocks of it
    us : their latencies in microseconds, shape (n,)
    seed : of the boosting
    others : given for latencies that are noisy: blocks without a latency. A robust model then
        predicts all blocks, and further trees remember what single blocks of the n deviate from
        it by; the others teach these trees that they do not deviate

    Raises
    ------
    PredictorError
        A latency that is not a positive number.
    """
    if not (np.isfinite(us).all() and (us > 0).all()):
        raise PredictorError(f"block {kind!r}: latencies must be positive, got {us.min()}")
    columns = BlockColumns(blocks)
    base = Regressor(kind, _weights(columns, us, rounds=1), Trees.none())
    if len(blocks) < _FEWEST_FOR_TREES:
        return base
    base_us = base.base_us(columns)
    features, target = block_features(columns, base_us), np.log(us / base_us)
    if len(blocks) < _FEWEST_FOR_LARGE_TREES:
        return Regressor(kind, base.weights, _FEW.fit(features, target, seed))
    if others is None:
        return Regressor(kind, base.weights, _EXACT.fit(features, target, seed))
    elsewhere = BlockColumns(others)
    not_fitted = block_features(elsewhere, base.base_us(elsewhere))
    return Regressor(kind, base.weights, _remembering(features, target, not_fitted, seed))


def _remembering(
    features: FloatArray, target: FloatArray, not_fitted: FloatArray, seed: int
) -> Trees:
    """Robust trees, and trees that add the deviations of single rows but touch no other row."""
    smooth = _ROBUST.fit(features, target, seed)
    deviation = target - smooth.predict(features)
    deviation[np.abs(deviation) < _WORTH_REMEMBERING] = 0
    everywhere = np.concatenate([features, not_fitted])
    deviation = np.concatenate([deviation, np.zeros(len(not_fitted))])
    return _joined(smooth, _MEMORY.fit(everywhere, deviation, seed))


def _rounded(trees: Trees) -> Trees:
    """Thresholds and values in single precision, which halves the file."""
    threshold = trees.threshold.astype(np.float32)
    # Upwards, for a threshold may be a value that was met, and that value goes left.
    upwards = np.nextafter(threshold, np.float32(np.inf))
    threshold = np.where(threshold < trees.threshold, upwards, threshold)
    return Trees(
        feature=trees.feature,
        threshold=threshold.astype(np.float64),
        left=trees.left,
        right=trees.right,
        value=trees.value.astype(np.float32).astype(np.float64),
        baseline=trees.baseline,
        depth=trees.depth,
    )


def _joined(a: Trees, b: Trees) -> Trees:
    """Trees that predict the sum of both."""
    size = max(a.threshold.shape[1], b.threshold.shape[1])
    tables = {
        name: np.concatenate([_widened(getattr(t, name), size) for t in (a, b)])
        for name in ("feature", "threshold", "left", "right", "value")
    }
    return Trees(
        **tables,
        baseline=np.asarray(a.baseline + b.baseline),
        depth=np.maximum(a.depth, b.depth),
    )


def _widened(table: np.ndarray, size: int) -> np.ndarray:
    return np.pad(table, ((0, 0), (0, size - table.shape[1])))


def robust_weights(blocks: Sequence[RuntimeKernel], us: FloatArray) -> FloatArray:
    """Microseconds a base term costs on a device, shape (len(BLOCK_TERMS),), none negative.

    Fitted to blocks of all types at once for the least sum of absolute relative errors, by
    least squares whose weights are adapted round by round.

    Parameters
    ----------
    blocks : n blocks of any types
    us : their latencies in microseconds, shape (n,)
    """
    return _weights(BlockColumns(blocks), us, _ROBUST_ROUNDS)


def _weights(columns: BlockColumns, us: FloatArray, rounds: int) -> FloatArray:
    """Non-negative weights of least squared relative error; more rounds make them robust."""
    terms = block_terms(columns) / us[:, None]
    # Terms differ by orders of magnitude; equal norms keep the solver well conditioned.
    norms = np.linalg.norm(terms, axis=0)
    norms[norms == 0] = 1
    rows, importance, weights = terms / norms, np.ones(len(us)), np.zeros(len(norms))
    for _ in range(rounds):
        weights = nnls(rows * importance[:, None], importance)[0]
        importance = 1 / np.sqrt(np.maximum(np.abs(rows @ weights - 1), _LEAST_ERROR))
    return np.asarray(weights / norms)


def estimating_regressor(kind: str, weights: FloatArray) -> Regressor:
    """A regressor of a type nobody measured, from the costs of others; see `robust_weights`."""
    return Regressor(kind, weights, Trees.none())


def predict_blocks_us(
    regressors: Mapping[str, Regressor], blocks: Sequence[RuntimeKernel]
) -> FloatArray:
    """Latencies of blocks of several types in microseconds, shape (n,).

    Parameters
    ----------
    regressors : by type; one for every type that occurs
    blocks : n blocks
    """
    us = np.empty(len(blocks))
    places: dict[str, list[int]] = {}
    for i, block in enumerate(blocks):
        places.setdefault(block.type, []).append(i)
    for kind, mine in places.items():
        us[mine] = regressors[kind].predict_us([blocks[i] for i in mine])
    return us
