"""Predictors of devices whose block latencies were published, fitted, tried and stored.

Three fits are made: one that never sees a fifth of the blocks, one that never sees the blocks that
only held-out rows have, both for the report; and the one on all blocks that is stored.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PredictorError
from ..files import write_atomically
from ..hyperspace import Hyperspace, load_hyperspace
from .block_fit import (
    estimating_regressor,
    fit_block_regressor,
    predict_blocks_us,
    robust_weights,
)
from .features import FloatArray
from .lowering import BLOCK, Lowering, RuntimeKernel
from .machine import Machine
from .predictor import AS_THEY_ARE, FittedKernel, LatencyPredictor, Provenance
from .published_data import (
    PublishedRows,
    fixed_blocks,
    read_published_blocks,
    read_published_rows,
    searchable_blocks,
)
from .published_report import (
    BLOCKS,
    FRESH_ROWS,
    ROWS,
    draw_report,
    goal_failures,
    report_notes,
)
from .regressor import Regressor
from .report import error_statistics

BoolArray = NDArray[np.bool_]
REPORT_PICTURE = "report.png"
_HELD_OUT_BLOCKS, _HELD_OUT_ROWS = 0.2, 0.1
_FOLDS = 10


@dataclass(frozen=True)
class Source:
    """What is known of a device whose latencies were published.

    Attributes
    ----------
    blocks, rows : names of its files in the folder of the published data
    hyperspace : the preset whose rows were published
    noisy : whether the latencies scatter from run to run; see `fit_block_regressor`
    machine : the device
    """

    blocks: str
    rows: str
    hyperspace: str
    noisy: bool
    machine: Machine


def _machine(cpu: str, flags: tuple[str, ...], runtime: str) -> Machine:
    # Zero cores and threads: their number was not published.
    return Machine(
        cpu=cpu,
        cores=0,
        flags=flags,
        vnni=bool(flags),
        governor=None,
        runtime=runtime,
        threads=0,
        kernel_options={},
        network_options={},
        protocol="latencies of single blocks published by SpaceEvo's authors, not measured here",
    )


SOURCES: dict[str, Source] = {
    "xeon": Source(
        blocks="blocks_vnni_ort_int8.json.gz",
        rows="block_lut_onnxw.csv.gz",
        hyperspace="onnxw",
        noisy=True,
        machine=_machine("Intel Xeon with VNNI", ("avx512_vnni",), "ONNX Runtime"),
    ),
    "pixel4": Source(
        blocks="blocks_pixel4_tflite_int8.json.gz",
        rows="block_lut_mobilew.csv.gz",
        hyperspace="mobilew",
        noisy=False,
        machine=_machine("Pixel 4", (), "TFLite 2.7"),
    ),
}


@dataclass(frozen=True)
class _Blocks:
    """Blocks with latencies in microseconds, shape (n,), and others that may be asked for."""

    blocks: list[RuntimeKernel]
    us: FloatArray
    others: list[RuntimeKernel]
    noisy: bool
    seed: int

    @property
    def kinds(self) -> list[str]:
        return sorted({b.type for b in self.blocks})

    def places(self, kind: str) -> NDArray[np.int64]:
        return np.array([i for i, b in enumerate(self.blocks) if b.type == kind])

    def fit(self, use: BoolArray) -> dict[str, Regressor]:
        """Regressors of all types, fitted to the blocks marked in `use`, shape (n,)."""
        regressors = {}
        for kind in self.kinds:
            rows = self.places(kind)
            chosen, left = rows[use[rows]], rows[~use[rows]]
            others = [self.blocks[i] for i in left] + [b for b in self.others if b.type == kind]
            regressors[kind] = fit_block_regressor(
                kind,
                [self.blocks[i] for i in chosen],
                self.us[chosen],
                self.seed,
                others if self.noisy else None,
            )
        return regressors


def fit_published(device: str, folder: Path, output: Path, seed: int = 0) -> LatencyPredictor:
    """Fit, try and store the predictor of a device whose latencies were published.

    Parameters
    ----------
    device : one of `SOURCES`
    folder : of the published data
    output, seed : as `fit_source` takes them

    Raises
    ------
    PredictorError
        An unknown name, or a damaged entry of a file; names it.
    FileAccessError
        A file cannot be read or written.
    """
    if device not in SOURCES:
        raise PredictorError(f"published device {device!r}: expected one of {', '.join(SOURCES)}")
    source = SOURCES[device]
    return fit_source(source, folder, load_hyperspace(source.hyperspace), output, seed)


def fit_source(
    source: Source, folder: Path, hyperspace: Hyperspace, output: Path, seed: int
) -> LatencyPredictor:
    """Fit, try and store a predictor from files of block latencies and of their sums.

    Parameters
    ----------
    source : the files, and whose they are
    folder : of the files
    hyperspace : the one whose rows the file has
    output : the predictor's folder, and by its name the predictor's; a picture of the errors is put
        beside its report
    seed : of what is held out, and of the boosting

    Raises as `fit_published`.
    """
    started = time.monotonic()
    known = read_published_blocks(folder / source.blocks)
    rows = read_published_rows(folder / source.rows, hyperspace)
    others = sorted((searchable_blocks(hyperspace) | set(rows.blocks)) - known.keys())
    us = np.fromiter(known.values(), np.float64)
    data = _Blocks(list(known), us, others, source.noisy, seed)
    report, pairs = _try(data, rows)
    regressors, extra = _fit_all(data, hyperspace)
    report |= extra | {"seconds": round(time.monotonic() - started, 1)}
    provenance = _provenance(output.resolve().name, source, hyperspace, report)
    predictor = _predictor(provenance, hyperspace, output, regressors, known, report)
    predictor.save(output)
    write_atomically(output / REPORT_PICTURE, draw_report(provenance.name, pairs))
    return predictor


def _fit_all(data: _Blocks, hyperspace: Hyperspace) -> tuple[dict[str, Regressor], dict[str, Any]]:
    """Regressors of all types a hyperspace needs, and what the report says of estimated ones."""
    regressors = data.fit(np.ones(len(data.us), bool))
    estimated = sorted({b.type for b in fixed_blocks(hyperspace)} - regressors.keys())
    weights = _searched_weights(data, hyperspace)
    regressors |= {kind: estimating_regressor(kind, weights) for kind in estimated}
    return regressors, {
        "estimated": estimated,
        "estimating": _try_estimating(data, hyperspace, weights),
        "noisy": data.noisy,
        "blocks": len(data.us),
    }


# ---- trying -----------------------------------------------------------------------------------


Pairs = tuple[FloatArray, FloatArray]


def _try(data: _Blocks, rows: PublishedRows) -> tuple[dict[str, Any], dict[str, Pairs]]:
    """Errors by protocol, and what was predicted and published in milliseconds."""
    held = _held_out_blocks(data)
    regressors = data.fit(~held)
    kernels, pairs = _try_blocks(data, regressors, held)
    fresh = _mark(rows, {b for b, out in zip(data.blocks, held, strict=True) if out})
    touched = rows.sums(fresh.astype(np.float64)) > 0
    fresh_rows = _row_pairs(rows, regressors, touched)
    drawn_rows, about_drawn = _try_rows(data, rows)
    report: dict[str, Any] = {
        "kernels": kernels,
        ROWS: error_statistics(*drawn_rows) | about_drawn,
        FRESH_ROWS: error_statistics(*fresh_rows) | {"held_out_blocks": int(fresh.sum())},
    }
    return report, {BLOCKS: pairs, ROWS: drawn_rows, FRESH_ROWS: fresh_rows}


def _try_blocks(
    data: _Blocks, regressors: Mapping[str, Regressor], held: BoolArray
) -> tuple[dict[str, dict[str, float | int]], Pairs]:
    """Errors of held-out blocks by type, and their predicted and published milliseconds."""
    predicted = predict_blocks_us(regressors, data.blocks)
    errors = {}
    for kind in data.kinds:
        mine = data.places(kind)
        mine = mine[held[mine]]
        errors[kind] = error_statistics(predicted[mine], data.us[mine])
    errors |= _cross_validated_small_types(data)
    return errors, (predicted[held] / 1e3, data.us[held] / 1e3)


def _try_rows(data: _Blocks, rows: PublishedRows) -> tuple[Pairs, dict[str, int]]:
    """A tenth of the rows, by regressors that never saw a block which no other row has."""
    drawn = np.zeros(len(rows.ms), bool)
    order = np.random.default_rng(data.seed).permutation(len(drawn))
    drawn[order[: round(len(drawn) * _HELD_OUT_ROWS)]] = True
    elsewhere = {rows.blocks[i] for i in np.unique(rows.block[~drawn[rows.owner]])}
    of_drawn = [rows.blocks[i] for i in np.unique(rows.block[drawn[rows.owner]])]
    exclusive = set(of_drawn) - elsewhere
    fitted = np.array([b not in exclusive for b in data.blocks])
    known = set(data.blocks) - exclusive
    about = {
        "distinct_blocks": len(of_drawn),
        "blocks_fitted": sum(b in known for b in of_drawn),
    }
    return _row_pairs(rows, data.fit(fitted), drawn), about


def _held_out_blocks(data: _Blocks) -> BoolArray:
    """A fifth of each type's blocks, drawn by the seed, shape (n,)."""
    held = np.zeros(len(data.us), bool)
    for kind in data.kinds:
        rows = data.places(kind)
        order = np.random.default_rng([data.seed, zlib.crc32(kind.encode())]).permutation(rows)
        held[order[: int(len(order) * _HELD_OUT_BLOCKS)]] = True
    return held


def _cross_validated_small_types(data: _Blocks) -> dict[str, dict[str, float | int]]:
    """Errors of stem and head: their few values are held out in turn."""
    errors = {}
    for kind in data.kinds:
        rows = data.places(kind)
        if len(rows) * _HELD_OUT_BLOCKS >= 2 * _FOLDS:
            continue
        predicted = np.full(len(data.us), np.nan)
        for fold in np.array_split(rows, min(_FOLDS, len(rows))):
            rest = [i for i in rows if i not in fold]
            if rest:
                blocks = [data.blocks[i] for i in rest]
                fitted = fit_block_regressor(kind, blocks, data.us[rest], data.seed)
                predicted[fold] = fitted.predict_us([data.blocks[i] for i in fold])
        found = rows[np.isfinite(predicted[rows])]
        errors[kind] = error_statistics(predicted[found], data.us[found])
    return errors


def _mark(rows: PublishedRows, chosen: set[RuntimeKernel]) -> BoolArray:
    """Which distinct blocks of the rows are among the chosen, shape (len(rows.blocks),)."""
    return np.array([b in chosen for b in rows.blocks])


def _row_pairs(
    rows: PublishedRows, regressors: Mapping[str, Regressor], chosen: BoolArray
) -> Pairs:
    """Predicted and published milliseconds of the chosen rows."""
    needed = np.zeros(len(rows.blocks), bool)
    needed[rows.block[chosen[rows.owner]]] = True
    us = np.zeros(len(needed))
    wanted = [rows.blocks[i] for i in np.flatnonzero(needed)]
    us[needed] = predict_blocks_us(regressors, wanted)
    return rows.sums(us)[chosen] / 1e3, rows.ms[chosen]


# ---- types that nobody measured ---------------------------------------------------------------


def _searched_weights(
    data: _Blocks, hyperspace: Hyperspace, without: str | None = None
) -> FloatArray:
    """Costs of the base terms by blocks of the searchable stages, but one type."""
    kinds = {f"{BLOCK}{option.type}" for option in hyperspace.block_types} - {without}
    rows = [i for i, b in enumerate(data.blocks) if b.type in kinds]
    return robust_weights([data.blocks[i] for i in rows], data.us[rows])


def _try_estimating(
    data: _Blocks, hyperspace: Hyperspace, weights: FloatArray
) -> dict[str, dict[str, float | int]]:
    """Errors of estimates where the truth is known: each type from all the others."""
    errors = {}
    searched = {f"{BLOCK}{option.type}" for option in hyperspace.block_types}
    for kind in data.kinds:
        rows = data.places(kind)
        mine = _searched_weights(data, hyperspace, kind) if kind in searched else weights
        blocks = [data.blocks[i] for i in rows]
        predicted = estimating_regressor(kind, mine).predict_us(blocks)
        errors[kind] = error_statistics(predicted, data.us[rows])
    return errors


# ---- storing ----------------------------------------------------------------------------------


def _provenance(
    name: str, source: Source, hyperspace: Hyperspace, report: dict[str, Any]
) -> Provenance:
    return Provenance(
        name=name,
        device="published",
        precision="int8",
        machine=source.machine,
        hyperspaces={hyperspace.name: hyperspace.fingerprint},
        failures=goal_failures(report),
        notes=report_notes(report),
    )


def _predictor(
    provenance: Provenance,
    hyperspace: Hyperspace,
    output: Path,
    regressors: Mapping[str, Regressor],
    known: Mapping[RuntimeKernel, float],
    report: dict[str, Any],
) -> LatencyPredictor:
    by_kind: dict[str, list[RuntimeKernel]] = {}
    # Estimates and interpolations are meant for stem and head: these are within the range.
    for block in [*known, *fixed_blocks(hyperspace)]:
        by_kind.setdefault(block.type, []).append(block)
    kernels = {
        kind: FittedKernel.of(regressor, by_kind[kind]) for kind, regressor in regressors.items()
    }
    lowering = Lowering(whole_blocks=True)
    # Published latencies are sums of blocks; nothing comes on top.
    return LatencyPredictor(provenance, lowering, AS_THEY_ARE, kernels, report, output)
