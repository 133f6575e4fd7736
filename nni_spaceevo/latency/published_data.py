"""The authors' published latencies: blocks with their milliseconds, and rows that are sums of them.

Blocks come as JSON, `Name_hw_cin_cout_k_e_stride_act` to milliseconds or to milliseconds and their
standard error; rows are those of the published LUTs.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CodeError, FileAccessError, PredictorError
from ..hyperspace import (
    BLOCK_TYPES,
    BlockConfig,
    BlockOption,
    Hyperspace,
    PlacedBlock,
    Stage,
    parse_chain,
)
from ..hyperspace.recipe import ACTIVATIONS
from .features import FloatArray
from .lowering import RuntimeKernel, whole_block

_NAMES = {f"{block.title}Block": block.name for block in BLOCK_TYPES.values()} | {
    "FirstConvBlock": "conv",
    "FinalExpandBlock": "conv",
}
_ROW_COLUMNS = ("stage", "block", "substage", "cin", "hw", "latency_ms")


@dataclass(frozen=True)
class PublishedRows:
    """Rows of a published LUT.

    Attributes
    ----------
    blocks : the n distinct blocks of the rows, published or not
    owner, block : of every block in every row, its row and its place in `blocks`, shape (m,)
    ms : latencies of the rows in milliseconds, shape (rows,)
    """

    blocks: list[RuntimeKernel]
    owner: NDArray[np.int64]
    block: NDArray[np.int64]
    ms: FloatArray

    def sums(self, of_blocks: FloatArray) -> FloatArray:
        """Sum over the blocks of each row, shape (rows,), of values of shape (n,)."""
        weights = of_blocks[self.block]
        return np.asarray(np.bincount(self.owner, weights, len(self.ms)), np.float64)


def read_published_blocks(path: Path) -> dict[RuntimeKernel, float]:
    """Blocks and their latencies in microseconds.

    Raises
    ------
    PredictorError
        An entry that is not a known block with a positive latency; names file and key.
    FileAccessError
        The file cannot be read.
    """
    try:
        entries = json.loads(_unpacked(path))
    except ValueError as error:
        raise PredictorError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise PredictorError(f"{path}: expected block names and their milliseconds")
    blocks: dict[RuntimeKernel, float] = {}
    for key, value in entries.items():
        try:
            block, ms = _block(key), _milliseconds(value)
        except ValueError as error:
            raise PredictorError(f"{path}: block {key!r}: {error}") from error
        if block in blocks:
            raise PredictorError(f"{path}: block {key!r} is given twice")
        blocks[block] = ms * 1e3
    return blocks


def _unpacked(path: Path) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise FileAccessError(f"{path}: cannot read ({error})") from error


def _block(key: str) -> RuntimeKernel:
    name, *fields = key.split("_")
    if name not in _NAMES:
        raise ValueError(f"unknown name {name!r}; known: {', '.join(sorted(_NAMES))}")
    try:
        hw, cin, cout, k, stride = (int(v) for v in (*fields[:4], fields[5]))
        expand = 0.0 if fields[4] == "None" else float(fields[4])
        (activation,) = fields[6:]
    except (ValueError, IndexError):
        raise ValueError("expected Name_hw_cin_cout_k_e_stride_act") from None
    if min(hw, cin, cout) < 1 or min(k, stride) < 0 or not 0 <= expand < math.inf:
        raise ValueError("sizes must be positive")
    # A fully connected layer is written with kernel size and stride 0 and an activation it lacks.
    kind, k, stride = _NAMES[name], max(1, k), max(1, stride)
    activation = "none" if kind == "linear" else activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    return _whole(kind, hw, cin, cout, k, stride, activation, expand)


def _whole(
    kind: str, hw: int, cin: int, cout: int, k: int, stride: int, activation: str, expand: float
) -> RuntimeKernel:
    config = BlockConfig(kind, cin, cout, k, expand or None, stride, activation)
    return whole_block(PlacedBlock(config, hw))


def _milliseconds(value: Any) -> float:
    ms = value[0] if isinstance(value, list) and value else value
    if not isinstance(ms, (int, float)) or isinstance(ms, bool):
        raise ValueError(f"expected milliseconds, given {value!r}")
    if not (math.isfinite(ms) and ms > 0):
        raise ValueError(f"expected a positive finite latency, given {ms}")
    return float(ms)


def read_published_rows(path: Path, hyperspace: Hyperspace) -> PublishedRows:
    """Rows of a published LUT with a header line.

    Raises
    ------
    PredictorError
        A row that is not a sub-stage of the hyperspace with a positive latency; names the line.
    FileAccessError
        The file cannot be read.
    """
    reader = csv.DictReader(_unpacked(path).splitlines())
    missing = set(_ROW_COLUMNS) - set(reader.fieldnames or ())
    if missing:
        raise PredictorError(f"{path}: columns {', '.join(sorted(missing))} are missing")
    places, owner, block, ms = _Places(hyperspace), [], [], []
    for i, row in enumerate(reader):
        try:
            mine = places.of_row(row)
            ms.append(_milliseconds(float(row["latency_ms"])))
        except (ValueError, IndexError, TypeError, CodeError) as error:
            raise PredictorError(f"{path}, line {i + 2}: {error}") from error
        block += mine
        owner += [i] * len(mine)
    return PublishedRows(
        list(places.blocks), np.array(owner, np.int64), np.array(block, np.int64), np.array(ms)
    )


class _Places:
    """Numbers the distinct blocks of rows; rows share most of them, so each is made once."""

    def __init__(self, hyperspace: Hyperspace) -> None:
        self.hyperspace = hyperspace
        self.blocks: dict[RuntimeKernel, int] = {}
        self._known: dict[tuple[str, int, int, int, str], tuple[int, int, int]] = {}

    def of_row(self, row: dict[str, str]) -> list[int]:
        """Numbers of a row's blocks, in order."""
        cin, hw = int(row["cin"]), int(row["hw"])
        stride = self.hyperspace.searchable[int(row["stage"]) - 1].stride
        places = []
        for text in row["substage"].split("_"):
            key = (row["block"], hw, cin, stride, text)
            if key not in self._known:
                self._known[key] = self._number(*key)
            place, cin, hw = self._known[key]
            places.append(place)
            stride = 1
        return places

    def _number(
        self, option: str, hw: int, cin: int, stride: int, text: str
    ) -> tuple[int, int, int]:
        """Number, output width and output size of a block."""
        (choice,) = parse_chain(text)
        block = _of_option(
            self.hyperspace.block_types[int(option)],
            *(hw, cin, choice.width, choice.kernel_size, stride, choice.expand),
        )
        return self.blocks.setdefault(block, len(self.blocks)), choice.width, block.hw_out


def _of_option(
    option: BlockOption, hw: int, cin: int, cout: int, k: int, stride: int, expand: float
) -> RuntimeKernel:
    return _whole(option.type, hw, cin, cout, k, stride, option.activation, expand)


def searchable_blocks(hyperspace: Hyperspace) -> set[RuntimeKernel]:
    """All blocks that subnets of a hyperspace can have in its searchable stages."""
    return {
        block
        for stage in hyperspace.searchable
        for window in stage.windows
        for option in hyperspace.block_types
        for block in _stage_blocks(hyperspace, stage, option, window)
    }


def fixed_blocks(hyperspace: Hyperspace) -> set[RuntimeKernel]:
    """All blocks that subnets of a hyperspace can have in its stem and head."""
    return {
        block
        for stage in hyperspace.stages
        if stage.block is not None
        for block in _stage_blocks(hyperspace, stage, stage.block, stage.widths)
    }


def _stage_blocks(
    hyperspace: Hyperspace, stage: Stage, option: BlockOption, widths: Sequence[int]
) -> Iterator[RuntimeKernel]:
    shapes: set[tuple[int, int, int, int]] = set()
    for resolution in hyperspace.resolutions:
        hw = hyperspace.input_hw(stage, resolution)
        firsts = hyperspace.input_widths(stage)
        shapes |= {(hw, cin, cout, stage.stride) for cin in firsts for cout in widths}
        if stage.depths[-1] > 1:
            inner = -(-hw // stage.stride)
            shapes |= {(inner, cin, cout, 1) for cin in widths for cout in widths}
    for hw, cin, cout, stride in shapes:
        for k in option.kernel_sizes:
            for expand in option.expand_choices:
                yield _of_option(option, hw, cin, cout, k, stride, float(expand or 0))
