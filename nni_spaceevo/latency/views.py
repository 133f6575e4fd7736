"""Which numbers a regressor sees of a kernel type: those of a kernel, or of a whole block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .block_features import (
    BLOCK_FEATURE_NAMES,
    BLOCK_TERMS,
    BlockColumns,
    block_features,
    block_terms,
)
from .features import (
    FEATURE_NAMES,
    Columns,
    FloatArray,
    base_names,
    base_terms,
    residual_features,
)
from .lowering import BLOCK, RuntimeKernel


@dataclass(frozen=True)
class View:
    """How kernels of one type become arrays.

    Attributes
    ----------
    columns : n kernels to what the other two take
    base_terms : physical base terms, shape (n, len(base_names))
    residual_features : with the base in microseconds, shape (n, len(feature_names))
    base_names, feature_names : names of their columns
    """

    columns: Callable[[Sequence[RuntimeKernel]], Any]
    base_terms: Callable[[Any], FloatArray]
    residual_features: Callable[[Any, FloatArray], FloatArray]
    base_names: tuple[str, ...]
    feature_names: tuple[str, ...]


_OF_BLOCKS = View(BlockColumns, block_terms, block_features, BLOCK_TERMS, BLOCK_FEATURE_NAMES)


def view_of(kind: str) -> View:
    """The view of a kernel type; types that start with `BLOCK` are whole blocks."""
    if kind.startswith(BLOCK):
        return _OF_BLOCKS
    return View(
        Columns,
        lambda columns: base_terms(kind, columns),
        residual_features,
        base_names(kind),
        FEATURE_NAMES,
    )
