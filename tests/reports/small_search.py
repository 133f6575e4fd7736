"""A search over a small LUT of known figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from nni_spaceevo.hyperspace import Hyperspace
from nni_spaceevo.jobs.local_search import search_lut
from nni_spaceevo.jobs.results import SearchResults
from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.search import EvolutionConfig, QTConfig
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

BEST = "synthetic-120-201"
SCORING = QTConfig(constraints_ms=(1.2, 1.5), seed=3)


def small_lut(hyperspace: Hyperspace | None = None, rows_per_cell: int = 8) -> QuantizedLUT:
    """A LUT in which `BEST` is the best space; latencies differ by block type."""
    hyperspace = hyperspace or synthetic_hyperspace()
    best = hyperspace.space(BEST.replace("synthetic", hyperspace.name))
    lut = synthetic_lut(hyperspace, best, rows_per_cell)
    c = lut.columns
    slower = 1 + 0.1 * (c["block"] != np.array(best.blocks)[c["stage"]])
    latency = (c["latency_ms"] * slower).astype(np.float32)
    return QuantizedLUT(lut.header, {**c, "latency_ms": latency}, hyperspace)


def with_header(lut: QuantizedLUT, **changes: object) -> QuantizedLUT:
    """The LUT with another provenance."""
    return replace(lut, header=msgspec.structs.replace(lut.header, **changes))


def with_latencies(lut: QuantizedLUT, latency_ms: np.ndarray) -> QuantizedLUT:
    """The LUT with other latencies, shape (n,)."""
    columns = {**lut.columns, "latency_ms": latency_ms.astype(np.float32)}
    return QuantizedLUT(lut.header, columns, lut.hyperspace)


def small_search(
    folder: Path, lut: QuantizedLUT, scoring: QTConfig = SCORING, evaluations: int = 150
) -> SearchResults:
    """Search the LUT, evolution first and then the neighbours of the best."""
    config = EvolutionConfig(population_size=20, sample_size=6, evolve=evaluations // 2)
    return search_lut(lut, scoring, config, evaluations, folder / "state.json")
