"""Prediction of one kernel type's latency from plain arrays: physical base times boosted trees."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ..errors import PredictorError
from .features import FEATURE_NAMES, Columns, FloatArray, base_names, base_terms, residual_features
from .lowering import RuntimeKernel

SCHEMA = 1
# A base of nothing at all would make the residual infinite.
_LEAST_US = 1e-3


@dataclass(frozen=True)
class Trees:
    """Boosted regression trees as arrays of shape (trees, nodes); node 0 is a tree's root.

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
        # An infinite threshold is legal (all go left); any other odd number is damage.
        if np.isnan(self.threshold).any() or not np.isfinite(self.value).all():
            raise ValueError("the trees hold numbers that are not finite")
        if not np.isfinite(self.baseline).all():
            raise ValueError("the baseline is not finite")

    def predict(self, rows: FloatArray) -> FloatArray:
        """Sum over the trees, shape (n,), for rows of shape (n, features)."""
        tree = np.arange(len(self.feature))[None, :]
        node = np.zeros((len(rows), len(self.feature)), np.intp)
        sample = np.arange(len(rows))[:, None]
        for _ in range(int(self.depth)):
            goes_left = rows[sample, self.feature[tree, node]] <= self.threshold[tree, node]
            node = np.where(goes_left, self.left[tree, node], self.right[tree, node])
        return np.asarray(self.value[tree, node].sum(axis=1) + self.baseline)


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

    def base_us(self, columns: Columns) -> FloatArray:
        """The physical base in microseconds, shape (n,)."""
        # Summed by rows: a kernel's last bits must not depend on the kernels beside it.
        terms = base_terms(self.kind, columns) * self.weights
        return np.maximum(terms.sum(axis=1), _LEAST_US)

    def predict_us(self, kernels: Sequence[RuntimeKernel]) -> FloatArray:
        """Latency in microseconds of n kernels of this type, shape (n,)."""
        columns = Columns(kernels)
        base = self.base_us(columns)
        return np.asarray(base * np.exp(self.trees.predict(residual_features(columns, base))))

    def to_bytes(self) -> bytes:
        """Content of the `.npz` file; equal regressors give equal bytes."""
        arrays: dict[str, np.ndarray] = {
            "schema": np.array(SCHEMA),
            "kind": np.array(self.kind),
            "base_names": np.array(base_names(self.kind)),
            "feature_names": np.array(FEATURE_NAMES),
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
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise PredictorError(f"{where}: not a readable kernel regressor: {error}") from error

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray], kind: str) -> Regressor:
        expected = {
            "schema": np.array(SCHEMA),
            "kind": np.array(kind),
            "base_names": np.array(base_names(kind)),
            "feature_names": np.array(FEATURE_NAMES),
        }
        for name, value in expected.items():
            if not np.array_equal(arrays[name], value):
                raise ValueError(
                    f"{name} is {arrays[name].tolist()!r}, expected {value.tolist()!r}"
                )
        weights = np.asarray(arrays["weights"], np.float64)
        if weights.shape != (len(base_names(kind)),) or not np.isfinite(weights).all():
            raise ValueError("the base weights are not finite numbers, one per base term")
        trees = Trees(**{f.name: arrays[f"trees_{f.name}"] for f in fields(Trees)})
        trees.check(len(FEATURE_NAMES))
        return cls(kind, weights, trees)
