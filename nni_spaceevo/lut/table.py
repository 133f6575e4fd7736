"""The quantized LUT: loss and INT8 latency of sampled sub-stages (SpaceEvo, section 4.3).

One file, an npz without objects: a JSON header and one array a column, rows sorted by cell =
(stage, block type, width window, resolution). Losses come from distillation, latencies from a
device's predictor; the two are kept apart, so that a LUT can be priced anew for another device.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from ..errors import ConfigError, LUTError
from ..files import UNREADABLE_ARCHIVE, Record, convert, digest, exclusive, plain, write_atomically
from ..hyperspace import (
    BlockChoice,
    Chain,
    Hyperspace,
    SpaceCode,
    load_hyperspace,
    mflops,
    mparams,
    presets,
)
from ..latency.line import network_line
from .pricing import LatencyModel, OtherStages, RowBlocks

SCHEMA = 3
_COLUMNS = {
    "stage": np.uint8,
    "block": np.uint8,
    "window": np.uint8,
    "resolution": np.uint16,
    "cin": np.uint16,
    "depth": np.uint8,
    "kernel_sizes": np.uint8,
    "widths": np.uint16,
    "expands": np.float64,
    "loss": np.float32,
    "loss_error": np.float32,
    "paired_error": np.float32,
    "mflops": np.float32,
    "mparams": np.float32,
    "latency_ms": np.float32,
}

_ROW = ("stage", "block", "window", "resolution", "cin")
# NaN where they are not known.
_ERRORS = ("loss_error", "paired_error")
_LEVEL = 1


class LUTHeader(Record, frozen=True):
    """Where a LUT comes from.

    Attributes
    ----------
    schema : version of the file format
    hyperspace, hyperspace_fingerprint : what the rows are sub-stages of
    teacher : name and fingerprint of the distillation's teacher, or the source of imported rows
    made_with : fingerprint of the settings it was built with; empty for imported rows
    held_out_images : how many each loss is the mean over; 0 where that is not known
    device, device_fingerprint : name and fingerprint of the latency predictor that priced the rows;
        for rows imported with their latencies, a name for their device and a hash of the rows;
        empty while unpriced
    other_ms : latency of stem, head and the network's constant by resolution, in milliseconds
    other_ms_source : where `other_ms` comes from: a latency predictor, not always the rows' own,
        or figures that the user gave; empty while unpriced
    """

    schema: int
    hyperspace: str
    hyperspace_fingerprint: str
    teacher: str
    made_with: str = ""
    held_out_images: int = 0
    device: str = ""
    device_fingerprint: str = ""
    other_ms: dict[str, float] = msgspec.field(default_factory=dict)
    other_ms_source: str = ""


@dataclass(frozen=True)
class Row:
    """One sampled sub-stage with its quantized NSR loss.

    Attributes
    ----------
    stage, block, window : indices of the cell (searchable stage, block type, width window)
    resolution : image size in pixels
    cin : channels entering the stage
    chain : the sub-stage's blocks
    loss : NSR loss on held-out data
    loss_error : standard error of `loss`; None where it is not known
    paired_error : that of `loss` less the mean loss of all rows on the same images, those of its
        (stage, block type, resolution); None where it is not known
    """

    stage: int
    block: int
    window: int
    resolution: int
    cin: int
    chain: Chain
    loss: float
    loss_error: float | None = None
    paired_error: float | None = None


@dataclass(frozen=True, eq=False)
class QuantizedLUT:
    """A LUT in memory; build with `from_rows` or `from_columns`, read with `load`.

    Attributes
    ----------
    header : provenance
    columns : arrays of equal length n, sorted by cell; block choices are (n, deepest stage), padded
        with zeros
    """

    header: LUTHeader
    columns: dict[str, np.ndarray]
    hyperspace: Hyperspace

    def __post_init__(self) -> None:
        _check(self)

    def __len__(self) -> int:
        return len(self.columns["loss"])

    # ---- building -----------------------------------------------------------------------------

    @classmethod
    def from_rows(
        cls,
        hyperspace: Hyperspace,
        rows: Sequence[Row],
        teacher: str,
        made_with: str = "",
        held_out_images: int = 0,
    ) -> QuantizedLUT:
        """Build an unpriced LUT; the rows' order does not matter. See `LUTHeader`."""
        columns = _columns_of(rows, max(s.depths[-1] for s in hyperspace.searchable))
        blocks = RowBlocks.of(hyperspace, columns)
        kernels = [block.kernels for block in blocks.distinct]
        columns["mflops"] = blocks.sums([mflops(k) for k in kernels])
        columns["mparams"] = blocks.sums([mparams(k) for k in kernels])
        columns["latency_ms"] = np.zeros(len(rows))
        header = LUTHeader(
            schema=SCHEMA,
            hyperspace=hyperspace.name,
            hyperspace_fingerprint=hyperspace.fingerprint,
            teacher=teacher,
            made_with=made_with,
            held_out_images=held_out_images,
        )
        return cls.from_columns(hyperspace, columns, header)

    @classmethod
    def from_columns(
        cls, hyperspace: Hyperspace, columns: Mapping[str, np.ndarray], header: LUTHeader
    ) -> QuantizedLUT:
        """Build a LUT from arrays, one a column, whose rows are sub-stages of the hyperspace.

        The rows' order does not matter; a column's type may be wider than the file's. Errors of
        losses may be left out, and are then not known.

        Raises
        ------
        LUTError
            A cell has no rows, or a loss or latency is not finite and at least 0.
        """
        unknown = dict.fromkeys(_ERRORS, np.full(len(columns["loss"]), np.nan))
        given = {**unknown, **columns}
        typed = {name: np.asarray(given[name], dtype) for name, dtype in _COLUMNS.items()}
        order = _order(typed)
        return cls(header, {name: values[order] for name, values in typed.items()}, hyperspace)

    def priced(self, device: LatencyModel) -> QuantizedLUT:
        """The same losses with the latencies of a device."""
        line = slope, _ = network_line(self.hyperspace, device)
        other = OtherStages.predicted(self.hyperspace, device, line)
        header = msgspec.structs.replace(
            self.header,
            device=device.name,
            device_fingerprint=device.fingerprint,
            other_ms=other.ms,
            other_ms_source=other.source,
        )
        chains = RowBlocks.of(self.hyperspace, self.columns).chains()
        latency = np.asarray(slope * device.chain_ms(chains), _COLUMNS["latency_ms"])
        return replace(self, header=header, columns={**self.columns, "latency_ms": latency})

    # ---- reading rows -------------------------------------------------------------------------

    def row(self, i: int) -> Row:
        """Row `i` as a value."""
        c = self.columns
        chain = tuple(
            BlockChoice(
                int(c["kernel_sizes"][i, j]), int(c["widths"][i, j]), float(c["expands"][i, j])
            )
            for j in range(c["depth"][i])
        )
        stage, block, window, resolution, cin = (int(c[k][i]) for k in _ROW)
        loss, *errors = (float(c[k][i]) for k in ("loss", *_ERRORS))
        known = (None if np.isnan(e) else e for e in errors)
        return Row(stage, block, window, resolution, cin, chain, loss, *known)

    @cached_property
    def _starts(self) -> dict[tuple[int, ...], tuple[int, int]]:
        c = self.columns
        keys = np.stack([c[k].astype(np.int64) for k in _ROW[:4]], 1)
        change = np.flatnonzero(np.any(keys[1:] != keys[:-1], axis=1)) + 1
        bounds = [0, *change.tolist(), len(keys)] if len(keys) else [0]
        cells = [tuple(row) for row in keys[bounds[:-1]].tolist()]
        return dict(zip(cells, pairwise(bounds), strict=True))

    def cell(
        self, stage: int, block: int, window: int, resolution: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Losses and latencies of one cell, two arrays of equal length."""
        a, b = self._starts[stage, block, window, resolution]
        return self.columns["loss"][a:b], self.columns["latency_ms"][a:b]

    def other_ms(self, resolution: int) -> float:
        """Latency of stem, head and the network's constant, in milliseconds."""
        return self.header.other_ms[str(resolution)]

    @cached_property
    def _spans(self) -> dict[tuple[int, ...], tuple[float, float]]:
        """Least and largest latency of each cell, in ms."""
        latency = self.columns["latency_ms"].astype(np.float64)
        starts = [a for a, _ in self._starts.values()]
        spans = (np.minimum.reduceat(latency, starts), np.maximum.reduceat(latency, starts))
        return dict(zip(self._starts, zip(*(v.tolist() for v in spans), strict=True), strict=True))

    def latency_range(self, code: SpaceCode) -> tuple[float, float]:
        """Latency of the fastest and the slowest subnet of a space, by the rows, in ms."""
        choices = list(enumerate(zip(code.blocks, code.windows, strict=True)))
        spans = []
        for resolution in self.hyperspace.distill_resolutions:
            cells = [self._spans[s, block, window, resolution] for s, (block, window) in choices]
            other = self.other_ms(resolution)
            spans.append((other + sum(v[0] for v in cells), other + sum(v[1] for v in cells)))
        return min(low for low, _ in spans), max(high for _, high in spans)

    @cached_property
    def latency_span(self) -> tuple[float, float]:
        """Latency of the fastest and the slowest subnet of the whole hyperspace, in ms."""
        low, high = [], []
        c = self.columns
        for resolution in self.hyperspace.distill_resolutions:
            here = c["resolution"] == resolution
            stages = [
                c["latency_ms"][here & (c["stage"] == s)]
                for s in range(len(self.hyperspace.searchable))
            ]
            low.append(self.other_ms(resolution) + sum(float(v.min()) for v in stages))
            high.append(self.other_ms(resolution) + sum(float(v.max()) for v in stages))
        return min(low), max(high)

    @cached_property
    def rows_fingerprint(self) -> str:
        """Hash of the rows."""
        return digest(*(np.ascontiguousarray(self.columns[name]).tobytes() for name in _COLUMNS))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of header and rows."""
        return digest(json.dumps(plain(self.header), sort_keys=True), self.rows_fingerprint)

    # ---- file ---------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises
        ------
        LockedError
            Another process is writing this LUT.
        FileAccessError
            The folder cannot be written.
        """
        header = json.dumps({**plain(self.header), "fingerprint": self.fingerprint}).encode()
        content = _packed({"header": np.frombuffer(header, np.uint8), **self.columns})
        with exclusive(path):
            write_atomically(path, content)

    @classmethod
    def load(cls, path: Path | str, hyperspace: Hyperspace | None = None) -> QuantizedLUT:
        """Read a LUT made for `hyperspace`; without it, for the preset that the file names.

        Raises
        ------
        LUTError
            Missing, truncated or altered file, another hyperspace, a missing cell, or a value that
            is not finite and positive; names the file and what is wrong.
        ConfigError
            No hyperspace is given, and the file names none of the presets.
        """
        path = Path(path)
        header, columns, fingerprint = _read(path)
        if hyperspace is None:
            if header.hyperspace not in presets():
                raise ConfigError(
                    f"{path}: made for hyperspace {header.hyperspace!r}, which is no preset "
                    f"({', '.join(presets())}); give its YAML file as well"
                )
            hyperspace = load_hyperspace(header.hyperspace)
        if header.hyperspace_fingerprint != hyperspace.fingerprint:
            raise LUTError(
                f"{path}: made for hyperspace {header.hyperspace!r} "
                f"({header.hyperspace_fingerprint}), expected {hyperspace.name!r} "
                f"({hyperspace.fingerprint}); build the LUT anew"
            )
        try:
            lut = cls(header, columns, hyperspace)
        except LUTError as error:
            raise LUTError(f"{path}: {error}") from error
        if lut.fingerprint != fingerprint:
            raise LUTError(
                f"{path}: contents do not match the file's own hash; restore or rebuild it"
            )
        return lut


def _columns_of(rows: Sequence[Row], deepest: int) -> dict[str, np.ndarray]:
    """Cell, input, blocks and losses of rows; blocks padded with zeros to `deepest`."""

    def padded(values: list[list[float]]) -> np.ndarray:
        return np.array([v + [0] * (deepest - len(v)) for v in values]).reshape(-1, deepest)

    columns = {
        **{name: [getattr(r, name) for r in rows] for name in (*_ROW, "loss", *_ERRORS)},
        "depth": [len(r.chain) for r in rows],
        "kernel_sizes": padded([[b.kernel_size for b in r.chain] for r in rows]),
        "widths": padded([[b.width for b in r.chain] for r in rows]),
        "expands": padded([[b.expand for b in r.chain] for r in rows]),
    }
    return {name: np.asarray(values, _COLUMNS[name]) for name, values in columns.items()}


def _order(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """The order by cell, input, blocks, loss and latency: the same rows give the same LUT."""
    choices = ("kernel_sizes", "widths", "expands")
    blocks = zip(*(columns[name].T for name in choices), strict=True)
    keys = [
        *(columns[name] for name in _ROW),
        *(key for block in blocks for key in block),
        columns["loss"],
        columns["latency_ms"],
    ]
    return np.lexsort(keys[::-1])


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An npz file of arrays, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, values in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, values, allow_pickle=False)
            # A `ZipInfo` of its own has a fixed date.
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED, _LEVEL
            )
    return buffer.getvalue()


def _read(path: Path) -> tuple[LUTHeader, dict[str, np.ndarray], str]:
    if not path.is_file():
        raise LUTError(f"{path}: no such LUT; build it with `spaceevo lut build`")
    try:
        with zipfile.ZipFile(path) as archive:
            meta = json.loads(_unpacked(archive, "header").tobytes())
            if meta["schema"] != SCHEMA:
                raise LUTError(
                    f"{path}: LUT schema {meta['schema']!r}; this version reads {SCHEMA}; build or "
                    "import it again"
                )
            columns = {name: _unpacked(archive, name) for name in _COLUMNS}
    except (*UNREADABLE_ARCHIVE, KeyError) as error:
        raise LUTError(f"{path}: truncated or not a LUT ({error})") from error
    fingerprint = meta.pop("fingerprint", "")
    try:
        return convert(meta, LUTHeader, str(path)), columns, fingerprint
    except ConfigError as error:
        raise LUTError(str(error)) from error


def _unpacked(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    content = io.BytesIO(archive.read(f"{name}.npy"))
    return np.asarray(np.lib.format.read_array(content, allow_pickle=False))


def _check(lut: QuantizedLUT) -> None:
    """Every cell has rows, and they lie together; every value is finite and in range."""
    wrong = [k for k, dtype in _COLUMNS.items() if lut.columns[k].dtype != dtype]
    lengths = {len(v) for v in lut.columns.values()}
    if wrong or len(lengths) != 1:
        raise LUTError(f"columns {wrong or 'of unequal length'}: not the arrays of schema {SCHEMA}")
    for name in ("loss", *_ERRORS, "latency_ms"):
        values = lut.columns[name]
        wrong_values = ~np.isfinite(values) | (values < 0)
        if name in _ERRORS:
            wrong_values &= ~np.isnan(values)
        bad = np.flatnonzero(wrong_values)
        if len(bad):
            raise LUTError(
                f"row {bad[0]}: {name} is {values[bad[0]]}; expected a finite value >= 0"
            )
    if sum(b - a for a, b in lut._starts.values()) != len(lut):
        raise LUTError("rows of one cell do not lie together")
    for s, stage in enumerate(lut.hyperspace.searchable):
        for b, option in enumerate(lut.hyperspace.block_types):
            for w, window in enumerate(stage.windows):
                for resolution in lut.hyperspace.distill_resolutions:
                    if (s, b, w, resolution) not in lut._starts:
                        raise LUTError(
                            f"no rows for {stage.name}, {option.type}, window {list(window)}, "
                            f"resolution {resolution}"
                        )
