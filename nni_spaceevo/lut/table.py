"""The quantized LUT: loss and INT8 latency of sampled sub-stages (SpaceEvo, section 4.3).

One file, an uncompressed npz without objects: a JSON header and one array a column, rows sorted by
cell = (stage, block type, width window, resolution). Losses come from distillation, latencies from
a device's predictor; the two are kept apart, so that a LUT can be priced anew for another device.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from ..errors import ConfigError, LUTError
from ..files import Record, convert, digest, exclusive, plain, write_atomically
from ..hyperspace import (
    BlockChoice,
    BlockConfig,
    Chain,
    ElasticStage,
    Hyperspace,
    PlacedBlock,
    SpaceCode,
    chain_kernels,
    mflops,
    mparams,
    place,
)

SCHEMA = 1
_COLUMNS = {
    "stage": np.uint8,
    "block": np.uint8,
    "window": np.uint8,
    "resolution": np.uint16,
    "cin": np.uint16,
    "depth": np.uint8,
    "kernel_sizes": np.uint8,
    "widths": np.uint16,
    "expands": np.float32,
    "loss": np.float32,
    "mflops": np.float32,
    "mparams": np.float32,
    "latency_ms": np.float32,
}

_ROW = ("stage", "block", "window", "resolution", "cin")


class LatencyModel(Protocol):
    """What the LUT asks of a latency predictor."""

    @property
    def name(self) -> str:
        """Name of the device, kept with the LUT."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that latencies depend on."""

    @property
    def network_overhead_ms(self) -> float:
        """Milliseconds that a whole network costs beyond its blocks."""

    def chain_ms(self, chains: Sequence[Sequence[PlacedBlock]]) -> np.ndarray:
        """Latency of each list of blocks, without the per-network constant."""
        ...


class LUTHeader(Record, frozen=True):
    """Where a LUT comes from.

    Attributes
    ----------
    schema : version of the file format
    hyperspace, hyperspace_fingerprint : what the rows are sub-stages of
    teacher : name and fingerprint of the distillation's teacher, or the source of imported rows
    device, device_fingerprint : the latency predictor; empty while unpriced
    made_with : fingerprint of the settings it was built with; empty for imported rows
    other_ms : latency of stem, head and the network's constant by resolution, in milliseconds
    """

    schema: int
    hyperspace: str
    hyperspace_fingerprint: str
    teacher: str
    made_with: str = ""
    device: str = ""
    device_fingerprint: str = ""
    other_ms: dict[str, float] = msgspec.field(default_factory=dict)


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
    """

    stage: int
    block: int
    window: int
    resolution: int
    cin: int
    chain: Chain
    loss: float


@dataclass(frozen=True, eq=False)
class QuantizedLUT:
    """A LUT in memory; build with `from_rows`, read with `load`.

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
        cls, hyperspace: Hyperspace, rows: Sequence[Row], teacher: str, made_with: str = ""
    ) -> QuantizedLUT:
        """Build an unpriced LUT; the rows' order does not matter."""
        ordered = sorted(
            rows, key=lambda r: (r.stage, r.block, r.window, r.resolution, r.cin, r.chain, r.loss)
        )
        kernels = [chain_kernels(*_blocks_of(hyperspace, row)) for row in ordered]
        deepest = max(s.depths[-1] for s in hyperspace.searchable)

        def padded(values: list[list[float]]) -> np.ndarray:
            return np.array([v + [0] * (deepest - len(v)) for v in values]).reshape(-1, deepest)

        data = {
            **{
                k: [getattr(r, k) for r in ordered]
                for k in ("stage", "block", "window", "resolution", "cin", "loss")
            },
            "depth": [len(r.chain) for r in ordered],
            "kernel_sizes": padded([[b.kernel_size for b in r.chain] for r in ordered]),
            "widths": padded([[b.width for b in r.chain] for r in ordered]),
            "expands": padded([[b.expand for b in r.chain] for r in ordered]),
            "mflops": [mflops(k) for k in kernels],
            "mparams": [mparams(k) for k in kernels],
            "latency_ms": [0.0] * len(ordered),
        }
        columns = {name: np.asarray(data[name], dtype) for name, dtype in _COLUMNS.items()}
        header = LUTHeader(
            schema=SCHEMA,
            hyperspace=hyperspace.name,
            hyperspace_fingerprint=hyperspace.fingerprint,
            teacher=teacher,
            made_with=made_with,
        )
        return cls(header, columns, hyperspace)

    def priced(self, device: LatencyModel) -> QuantizedLUT:
        """The same losses with the latencies of a device.

        Stem and head are those of the smallest subnet, as the paper's code does; their latency and
        the network's constant go to `header.other_ms`.
        """
        chains = [place(*_blocks_of(self.hyperspace, self.row(i))) for i in range(len(self))]
        other = {}
        for resolution in self.hyperspace.distill_resolutions:
            stem_and_head = _other_blocks(self.hyperspace, resolution)
            other[str(resolution)] = (
                float(device.chain_ms([stem_and_head])[0]) + device.network_overhead_ms
            )
        header = LUTHeader(
            **{
                **plain(self.header),
                "device": device.name,
                "device_fingerprint": device.fingerprint,
                "other_ms": other,
            }
        )
        latency = np.asarray(device.chain_ms(chains), _COLUMNS["latency_ms"])
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
        return Row(stage, block, window, resolution, cin, chain, float(c["loss"][i]))

    @cached_property
    def _starts(self) -> dict[tuple[int, ...], tuple[int, int]]:
        c = self.columns
        keys = np.stack([c[k].astype(np.int64) for k in _ROW[:4]], 1)
        change = np.flatnonzero(np.any(keys[1:] != keys[:-1], axis=1)) + 1
        bounds = [0, *change.tolist(), len(keys)]
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

    def latency_range(self, code: SpaceCode) -> tuple[float, float]:
        """Latency of the fastest and the slowest subnet of a space, by the rows, in ms."""
        spans = []
        for resolution in self.hyperspace.distill_resolutions:
            cells = zip(range(len(code.blocks)), code.blocks, code.windows, strict=True)
            latencies = [self.cell(*cell, resolution)[1] for cell in cells]
            other = self.other_ms(resolution)
            spans.append(
                (other + sum(v.min() for v in latencies), other + sum(v.max() for v in latencies))
            )
        return float(min(s[0] for s in spans)), float(max(s[1] for s in spans))

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
            low.append(self.other_ms(resolution) + sum(v.min() for v in stages))
            high.append(self.other_ms(resolution) + sum(v.max() for v in stages))
        return float(min(low)), float(max(high))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of header and rows."""
        parts = [np.ascontiguousarray(self.columns[name]).tobytes() for name in _COLUMNS]
        return digest(json.dumps(plain(self.header), sort_keys=True), *parts)

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
        buffer = io.BytesIO()
        header = json.dumps({**plain(self.header), "fingerprint": self.fingerprint}).encode()
        np.savez(buffer, allow_pickle=False, header=np.frombuffer(header, np.uint8), **self.columns)
        with exclusive(path):
            write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path | str, hyperspace: Hyperspace) -> QuantizedLUT:
        """Read a LUT made for `hyperspace`.

        Raises
        ------
        LUTError
            Missing, truncated or altered file, another hyperspace, a missing cell, or a value that
            is not finite and positive; names the file and what is wrong.
        """
        path = Path(path)
        header, columns, fingerprint = _read(path)
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


def _read(path: Path) -> tuple[LUTHeader, dict[str, np.ndarray], str]:
    if not path.is_file():
        raise LUTError(f"{path}: no such LUT; build it with `spaceevo lut`")
    try:
        with np.load(path, allow_pickle=False) as archive:
            meta = json.loads(archive["header"].tobytes())
            columns = {name: archive[name] for name in _COLUMNS}
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        raise LUTError(f"{path}: truncated or not a LUT ({error})") from error
    if meta.get("schema") != SCHEMA:
        raise LUTError(f"{path}: LUT schema {meta.get('schema')!r}; this version reads {SCHEMA}")
    fingerprint = meta.pop("fingerprint", "")
    try:
        return convert(meta, LUTHeader, str(path)), columns, fingerprint
    except ConfigError as error:
        raise LUTError(str(error)) from error


def _check(lut: QuantizedLUT) -> None:
    """Every cell has rows, every value is finite and in range."""
    wrong = [k for k, dtype in _COLUMNS.items() if lut.columns[k].dtype != dtype]
    lengths = {len(v) for v in lut.columns.values()}
    if wrong or len(lengths) != 1:
        raise LUTError(f"columns {wrong or 'of unequal length'}: not the arrays of schema {SCHEMA}")
    for name, lowest in (("loss", 0.0), ("latency_ms", 0.0)):
        values = lut.columns[name]
        bad = np.flatnonzero(~np.isfinite(values) | (values < lowest))
        if len(bad):
            raise LUTError(
                f"row {bad[0]}: {name} is {values[bad[0]]}; expected a finite value >= 0"
            )
    for s, stage in enumerate(lut.hyperspace.searchable):
        for b, option in enumerate(lut.hyperspace.block_types):
            for w, window in enumerate(stage.windows):
                for resolution in lut.hyperspace.distill_resolutions:
                    if (s, b, w, resolution) not in lut._starts:
                        raise LUTError(
                            f"no rows for {stage.name}, {option.type}, window {list(window)}, "
                            f"resolution {resolution}"
                        )


def _blocks_of(hyperspace: Hyperspace, row: Row) -> tuple[tuple[BlockConfig, ...], int]:
    """Static blocks of a row and the size of their input, as `chain_kernels` takes them."""
    stage = hyperspace.searchable[row.stage]
    elastic = ElasticStage(
        stage=stage, option=hyperspace.block_types[row.block], widths=stage.windows[row.window]
    )
    return elastic.blocks(row.cin, row.chain), hyperspace.input_hw(stage, row.resolution)


def _other_blocks(hyperspace: Hyperspace, resolution: int) -> list[PlacedBlock]:
    """Blocks of stem and head in the smallest subnet of the first space."""
    zeros = (0,) * len(hyperspace.searchable)
    space = SpaceCode(hyperspace.name, zeros, zeros)
    searched = {s.name for s in hyperspace.searchable}
    stages = hyperspace.subnet_blocks(space, hyperspace.smallest_subnet(space))
    owners = [name for name, blocks in stages for _ in blocks]
    placed = place((block for _, blocks in stages for block in blocks), resolution)
    return [block for name, block in zip(owners, placed, strict=True) if name not in searched]
