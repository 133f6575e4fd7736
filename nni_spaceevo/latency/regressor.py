"""Prediction of one kernel type's latency from plain arrays: physical base times boosted trees."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PredictorError
from ..files import UNREADABLE_ARCHIVE
from .features import FloatArray
from .lowering import RuntimeKernel
from .views import view_of

SCHEMA = 1
# A base of nothing at all would make the residual infinite.
_LEAST_US = 1e-3
# Leaves of a tree are bits of one number, where they are not too many.
_MOST_LEAVES = 64
# Rows whose bits stay in the CPU's cache.
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class _Column:
    """All comparisons that the trees make with one feature.

    Attributes
    ----------
    feature : the column
    steps : thresholds, ascending, shape (n,)
    reachable : leaves of each tree that are left for a value above i thresholds, shape
        (n + 1, trees)
    """

    feature: int
    steps: FloatArray
    reachable: NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Trees:
    """Boosted regression trees as arrays of shape (trees, nodes), each tree in preorder.

    Attributes
    ----------
    feature : column to compare; leaves compare column 0, with no effect
    threshold : at most this goes left
    left, right : indices of the children; a leaf is its own child
    value : what a leaf adds; 0 at inner nodes
    baseline : added once, shape ()
    depth : steps from the root to the deepest leaf, shape ()
    """

    feature: NDArray[np.int16]
    threshold: FloatArray
    left: NDArray[np.int16]
    right: NDArray[np.int16]
    value: FloatArray
    baseline: FloatArray
    depth: NDArray[np.int64]

    @classmethod
    def none(cls) -> Trees:
        """No trees: the sum is 0."""
        empty, index = np.zeros((0, 1)), np.zeros((0, 1), np.int16)
        return cls(index, empty, index, index, empty, np.zeros(()), np.zeros((), np.int64))

    def check(self, features: int) -> None:
        """Raise `ValueError` unless all indices stay inside and all numbers are finite."""
        shape = self.threshold.shape
        tables = (self.feature, self.left, self.right, self.value)
        if len(shape) != 2 or any(t.shape != shape for t in tables):
            raise ValueError("the arrays of the trees differ in shape")
        for table, limit in (
            (self.feature, features),
            (self.left, shape[1]),
            (self.right, shape[1]),
        ):
            if table.size and not (table.min() >= 0 and table.max() < limit):
                raise ValueError("an index of the trees is out of range")
        own = np.arange(shape[1])
        inner = self.left > own
        if (inner & ((self.left != own + 1) | (self.right <= self.left))).any():
            raise ValueError("the nodes of the trees are not in preorder")
        # An infinite threshold is legal (all go left); any other odd number is damage.
        if np.isnan(self.threshold).any() or not np.isfinite(self.value).all():
            raise ValueError("the trees hold numbers that are not finite")
        if not np.isfinite(self.baseline).all():
            raise ValueError("the baseline is not finite")

    def predict(self, rows: FloatArray) -> FloatArray:
        """Sum over the trees, shape (n,), for rows of shape (n, features)."""
        if self._most_leaves > _MOST_LEAVES:
            return self._walked(rows)
        return self._scored(rows)

    def _walked(self, rows: FloatArray) -> FloatArray:
        tree = np.arange(len(self.feature))[None, :]
        node = np.zeros((len(rows), len(self.feature)), np.intp)
        sample = np.arange(len(rows))[:, None]
        for _ in range(int(self.depth)):
            goes_left = rows[sample, self.feature[tree, node]] <= self.threshold[tree, node]
            node = np.where(goes_left, self.left[tree, node], self.right[tree, node])
        return np.asarray(self.value[tree, node].sum(axis=1) + self.baseline)

    def _scored(self, rows: FloatArray) -> FloatArray:
        """The same without walking.

        Each comparison that fails strikes out the leaves left of it, whatever the others say, and
        the first leaf that remains is the one that the walk would end at (QuickScorer: Lucchese
        et al., SIGIR 2015).
        """
        result = np.empty(len(rows))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            left = np.full((len(rows[part]), len(self.feature)), self._all_leaves)
            for column in self._columns:
                left &= column.reachable[np.searchsorted(column.steps, rows[part, column.feature])]
            # Ones below the lowest bit that is set: its place.
            first = np.bitwise_count(~left & (left - 1))
            result[part] = self._leaf_values[first + self._offsets].sum(axis=1)
        return result + self.baseline

    @cached_property
    def _all_leaves(self) -> np.unsignedinteger:
        kinds = (np.uint16, np.uint32, np.uint64)
        kind = next(k for k in kinds if np.iinfo(k).bits >= self._most_leaves)
        return kind(np.iinfo(kind).max)

    @cached_property
    def _leaves_before(self) -> NDArray[np.int64]:
        """Leaves of the tree with a smaller index than each node, shape (trees, nodes + 1)."""
        is_leaf = self.left == np.arange(self.left.shape[1])
        return np.pad(np.cumsum(is_leaf, axis=1), ((0, 0), (1, 0)))

    @cached_property
    def _most_leaves(self) -> int:
        return int(self._leaves_before[:, -1].max(initial=1))

    @cached_property
    def _leaf_values(self) -> FloatArray:
        """What each leaf adds, shape (trees * most leaves,)."""
        tree, node = np.nonzero(self.left == np.arange(self.left.shape[1]))
        values = np.zeros((len(self.left), self._most_leaves))
        values[tree, self._leaves_before[tree, node]] = self.value[tree, node]
        return values.ravel()

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        """Where the values of each tree start, shape (trees,)."""
        return np.arange(len(self.left)) * self._most_leaves

    @cached_property
    def _columns(self) -> list[_Column]:
        tree, node = np.nonzero(self.left > np.arange(self.left.shape[1]))
        # In preorder a left subtree's leaves are those from its root to the right child.
        first = self._leaves_before[tree, self.left[tree, node]]
        last = self._leaves_before[tree, self.right[tree, node]]
        one, first_bit = np.uint64(1), first.astype(np.uint64)
        lost = ((one << (last - first).astype(np.uint64)) - one) << first_bit
        keep = (~lost).astype(self._all_leaves.dtype)
        feature, threshold = self.feature[tree, node], self.threshold[tree, node]
        columns = []
        for number in np.unique(feature).tolist():
            mine = feature == number
            steps, place = np.unique(threshold[mine], return_inverse=True)
            reachable = np.full((len(steps) + 1, len(self.left)), self._all_leaves)
            np.bitwise_and.at(reachable, (place + 1, tree[mine]), keep[mine])
            np.bitwise_and.accumulate(reachable, axis=0, out=reachable)
            columns.append(_Column(number, steps, reachable))
        return columns


@dataclass(frozen=True)
class Regressor:
    """Latency of one kernel type: `base_terms @ weights * exp(trees)`.

    Attributes
    ----------
    kind : the kernel type
    weights : microseconds per base term, shape (terms,), none negative
    trees : logarithm of measured over base
    """

    kind: str
    weights: FloatArray
    trees: Trees

    def base_us(self, columns: Any) -> FloatArray:
        """The physical base in microseconds, shape (n,)."""
        # Summed by rows: a kernel's last bits must not depend on the kernels beside it.
        terms = view_of(self.kind).base_terms(columns) * self.weights
        return np.maximum(terms.sum(axis=1), _LEAST_US)

    def predict_us(self, kernels: Sequence[RuntimeKernel]) -> FloatArray:
        """Latency in microseconds of n kernels of this type, shape (n,)."""
        view = view_of(self.kind)
        columns = view.columns(kernels)
        base = self.base_us(columns)
        features = view.residual_features(columns, base)
        return np.asarray(base * np.exp(self.trees.predict(features)))

    def to_bytes(self) -> bytes:
        """Content of the `.npz` file; equal regressors give equal bytes."""
        arrays: dict[str, np.ndarray] = {
            "schema": np.array(SCHEMA),
            "kind": np.array(self.kind),
            "base_names": np.array(view_of(self.kind).base_names),
            "feature_names": np.array(view_of(self.kind).feature_names),
            "weights": self.weights,
        }
        arrays |= {f"trees_{f.name}": getattr(self.trees, f.name) for f in fields(Trees)}
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                content = io.BytesIO()
                np.lib.format.write_array(content, np.asarray(array), allow_pickle=False)
                # A fixed time stamp (np.savez writes the clock's) keeps hashes reproducible.
                entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, content.getvalue())
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, kind: str, where: str) -> Regressor:
        """Read what `to_bytes` wrote.

        Raises
        ------
        PredictorError
            Not such a file, another version or kernel type, or numbers that are not finite; starts
            with `where`.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            return cls._from_arrays(arrays, kind)
        except KeyError as error:
            raise PredictorError(f"{where}: array {error} is missing") from error
        except UNREADABLE_ARCHIVE as error:
            raise PredictorError(f"{where}: not a readable kernel regressor: {error}") from error

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray], kind: str) -> Regressor:
        view = view_of(kind)
        # Trees ask for features by number, and new ones are added at the end.
        known = view.feature_names[: arrays["feature_names"].size]
        expected = {
            "schema": np.array(SCHEMA),
            "kind": np.array(kind),
            "feature_names": np.array(known),
        }
        for name, value in expected.items():
            if not np.array_equal(arrays[name], value):
                raise ValueError(
                    f"{name} is {arrays[name].tolist()!r}, expected {value.tolist()!r}"
                )
        given = np.asarray(arrays["weights"], np.float64)
        weights = _weights(arrays["base_names"].tolist(), given, view.base_names)
        trees = Trees(**{f.name: arrays[f"trees_{f.name}"] for f in fields(Trees)})
        trees.check(len(known))
        return cls(kind, weights, trees)


def _weights(names: list[str], values: FloatArray, known: Sequence[str]) -> FloatArray:
    """Weights of all base terms that are known; a term newer than the file has none."""
    strange = sorted(set(names) - set(known))
    if strange:
        raise ValueError(f"base_names has {strange}, expected some of {list(known)}")
    if values.shape != (len(names),) or not np.isfinite(values).all():
        raise ValueError("the base weights are not finite numbers, one per base term")
    given = dict(zip(names, values.tolist(), strict=True))
    return np.array([given.get(name, 0.0) for name in known])
