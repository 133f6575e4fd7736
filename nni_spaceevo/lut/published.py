"""Import of the LUTs that SpaceEvo's authors published (microsoft/Moonlit), as CSV.

Two layouts are read, plain or `.gz`: theirs, a file without header for each (stage, block type,
width window), named `stage1_0_0.csv` and so on; and all of them in one file with a header, in which
the cell is three columns more. Every row is checked against the hyperspace; stages count from 1.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import CodeError, LUTError
from ..files import read_text
from ..hyperspace import BlockChoice, ElasticStage, Hyperspace, parse_chain
from .pricing import OtherStages
from .table import SCHEMA, LUTHeader, QuantizedLUT

TEACHER = "published LUT (EfficientNet-B5)"
FIGURES = ("nsr_loss", "mflops", "mparams", "latency_ms")
CELL = ("stage", "block", "width_window")
JOINED = (*CELL, "substage", "cin", "hw", *FIGURES)
_HEADER = ",".join(JOINED)
_CELL_FILE = re.compile(r"stage(\d+)_(\d+)_(\d+)\.csv(\.gz)?")
_CELL_COLUMNS = ("substage", "1xCxHxH", *FIGURES)
_SHAPE = re.compile(r"1x(\d+)x(\d+)x\2")
_TOLD = 3

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def import_published(
    sources: Sequence[Path], hyperspace: Hyperspace, other: OtherStages, device: str = ""
) -> QuantizedLUT:
    """Make a LUT of published rows, with the losses and latencies that they give.

    Parameters
    ----------
    sources : files of either layout, or folders of them; see `published_files`
    hyperspace : what the rows are sub-stages of
    other : latency of stem and head, which the files lack
    device : name of the rows' device; empty stands for `published:<hyperspace>`

    Raises
    ------
    LUTError
        A row does not fit the hyperspace or has a figure that is not positive, a cell is in two
        files or in none; names file and line, or the cell.
    FileAccessError
        A file cannot be read or unpacked.
    """
    rows = PublishedRows.read(published_files(sources, hyperspace))
    header = LUTHeader(
        schema=SCHEMA,
        hyperspace=hyperspace.name,
        hyperspace_fingerprint=hyperspace.fingerprint,
        teacher=TEACHER,
        device=device or f"published:{hyperspace.name}",
        other_ms=other.ms,
        other_ms_source=other.source,
    )
    columns = _Check(rows, hyperspace).columns()
    try:
        lut = QuantizedLUT.from_columns(hyperspace, columns, header)
    except LUTError as error:
        others = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
        raise LUTError(f"{sources[0]}{others}: {error}") from error
    # Known only now that the rows are in order, which the files' order must not change.
    header = msgspec.structs.replace(header, device_fingerprint=lut.rows_fingerprint)
    return replace(lut, header=header)


def published_files(sources: Iterable[Path], hyperspace: Hyperspace) -> list[Path]:
    """Files to import.

    Parameters
    ----------
    sources : files, taken as they are, and folders, of which files named
        `stage<s>_<b>_<w>.csv` or `block_lut_<hyperspace>.csv` are taken, with or without `.gz`
    hyperspace : the one that is asked for

    Raises
    ------
    LUTError
        A folder has no such file.
    """
    joined = f"block_lut_{hyperspace.name}.csv"
    files: list[Path] = []
    for source in sources:
        if not source.is_dir():
            files.append(source)
            continue
        names = (joined, f"{joined}.gz")
        found = [p for p in source.glob("*") if p.name in names or _CELL_FILE.fullmatch(p.name)]
        if not found:
            raise LUTError(
                f"{source}: holds neither stage<s>_<b>_<w>.csv nor {joined}, plain or .gz"
            )
        files += sorted(found)
    return files


# ---- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PublishedRows:
    """Rows as they stand in the files.

    Attributes
    ----------
    texts : fields of all rows by column of `JOINED`
    files : where they come from
    starts, first_lines : of each file, its first row's place in `texts` and its line
    broken : what is wrong with rows of another number of columns; their fields are empty
    """

    texts: dict[str, Sequence[str]]
    files: list[Path]
    starts: list[int]
    first_lines: list[int]
    broken: dict[int, str]

    @classmethod
    def read(cls, files: list[Path]) -> PublishedRows:
        """Read files of either layout; raises as `import_published`."""
        rows: list[list[str]] = []
        starts, first_lines = [], []
        broken: dict[int, str] = {}
        for path in files:
            first_line, found, wrong = _read(path)
            broken |= {len(rows) + i: words for i, words in wrong.items()}
            starts.append(len(rows))
            first_lines.append(first_line)
            rows += found
        columns = zip(*rows, strict=True) if rows else ((),) * len(JOINED)
        texts: dict[str, Sequence[str]] = dict(zip(JOINED, columns, strict=True))
        return cls(texts, files, starts, first_lines, broken)

    def __len__(self) -> int:
        return len(self.texts["substage"])

    def where(self, i: int) -> str:
        """File and line of row `i`."""
        file = bisect_right(self.starts, i) - 1
        return f"{self.files[file]}, line {i - self.starts[file] + self.first_lines[file]}"


def _read(path: Path) -> tuple[int, list[list[str]], dict[int, str]]:
    """First row's line, rows in the joined layout, and what is wrong with broken ones."""
    lines = read_text(path).splitlines()
    cell = _CELL_FILE.fullmatch(path.name)
    expected: tuple[str, ...]
    if lines and lines[0] == _HEADER:
        first_line, expected, place = 2, JOINED, None
    elif cell:
        first_line, expected, place = 1, _CELL_COLUMNS, cell.groups()[:3]
    else:
        raise LUTError(
            f"{path}: neither named stage<s>_<b>_<w>.csv nor begun by the header {_HEADER}"
        )
    rows = [line.split(",") for line in lines[first_line - 1 :]]
    broken = {
        i: f"{len(row)} columns; expected {','.join(expected)}"
        for i, row in enumerate(rows)
        if len(row) != len(expected)
    }
    for i in broken:
        rows[i] = [""] * len(expected)
    if place:
        rows = [[*place, row[0], *_input(row[1]), *row[2:]] for row in rows]
    return first_line, rows, broken


@lru_cache(maxsize=1000)
def _input(shape: str) -> tuple[str, str]:
    """Channels and size of `1xCxHxH`; another shape stands for both, and will not be a number."""
    match = _SHAPE.fullmatch(shape)
    return (match[1], match[2]) if match else (shape, shape)


@dataclass(frozen=True)
class Substages:
    """Sub-stages as arrays.

    Attributes
    ----------
    depth : blocks of each of n sub-stages, shape (n,)
    token : which of the distinct blocks each one is, sub-stage after sub-stage, shape
        (depth.sum(),)
    kernel_size, width, expand : of the distinct blocks, shape (m,); a text that is no block has
        kernel size 0
    """

    depth: IntArray
    token: IntArray
    kernel_size: IntArray
    width: IntArray
    expand: NDArray[np.float64]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Substages:
        """Read `k#w#e_k#w#e…`; there are few distinct blocks, and each is read once."""
        tokens = _Tokens()
        flat = "_".join(texts).split("_") if texts else []
        depth = np.fromiter((text.count("_") + 1 for text in texts), np.int64, len(texts))
        token = np.fromiter(map(tokens.__getitem__, flat), np.int64, len(flat))
        choices = tokens.choices
        return cls(
            depth,
            token,
            np.array([c.kernel_size for c in choices], np.int64),
            np.array([c.width for c in choices], np.int64),
            np.array([c.expand for c in choices], np.float64),
        )


class _Tokens(dict[str, int]):
    """Numbers the texts of blocks as they are met."""

    def __init__(self) -> None:
        super().__init__()
        self.choices: list[BlockChoice] = []

    def __missing__(self, text: str) -> int:
        try:
            (choice,) = parse_chain(text)
        except CodeError:
            choice = BlockChoice(0, 0, 0.0)
        self[text] = len(self.choices)
        self.choices.append(choice)
        return self[text]


# ---- checking ---------------------------------------------------------------------------------


class _Check:
    """Checks rows column by column, and keeps for each bad row the first thing wrong with it.

    Parameters
    ----------
    rows : as read
    hyperspace : what they must fit
    """

    def __init__(self, rows: PublishedRows, hyperspace: Hyperspace) -> None:
        self.rows, self.hyperspace = rows, hyperspace
        self.bad = np.zeros(len(rows), np.bool_)
        self.words: dict[int, str] = {}

    def columns(self) -> dict[str, np.ndarray]:
        """The rows as columns of a LUT.

        Raises
        ------
        LUTError
            Some rows are bad: how many, and the first of them.
        """
        self._note(np.isin(np.arange(len(self.rows)), list(self.rows.broken)), self._broken)
        cell = self._cell()
        stage, block, window = cell
        resolution, cin = self._input(stage)
        substages = Substages.parse(self.rows.texts["substage"])
        self._check_substages(substages, *cell)
        loss, mflops, mparams, latency = (self._figure(name) for name in FIGURES)
        self._raise()
        self._check_files(*cell)
        return {
            "stage": stage,
            "block": block,
            "window": window,
            "resolution": resolution,
            "cin": cin,
            **self._choices(substages),
            "loss": loss,
            "mflops": mflops,
            "mparams": mparams,
            "latency_ms": latency,
        }

    def _note(self, wrong: BoolArray, words: Callable[[int], str]) -> None:
        new = np.flatnonzero(wrong & ~self.bad)
        self.bad[new] = True
        self.words |= {i: words(i) for i in new[:_TOLD].tolist()}

    def _raise(self) -> None:
        if not self.bad.any():
            return
        told = [f"{self.rows.where(i)}: {self.words[i]}" for i in sorted(self.words)[:_TOLD]]
        raise LUTError(
            f"{np.count_nonzero(self.bad)} of {len(self.rows)} rows do not fit hyperspace "
            f"{self.hyperspace.name!r}, the first: {' | '.join(told)}"
        )

    def _broken(self, i: int) -> str:
        return self.rows.broken[i]

    def _cell(self) -> tuple[IntArray, IntArray, IntArray]:
        """Indices of stage, block type and width window."""
        stages = self.hyperspace.searchable
        stage = self._index("stage", len(stages), first=1)
        block = self._index("block", len(self.hyperspace.block_types))
        windows = np.array([len(s.windows) for s in stages])[stage]
        return stage, block, self._index("width_window", windows)

    def _index(self, name: str, count: ArrayLike, first: int = 0) -> IntArray:
        """Whole numbers of a column, from `first` counted on, as indices; 0 where bad."""
        values, counts = self._numbers(name) - first, np.broadcast_to(count, len(self.rows))
        right = (values >= 0) & (values < counts) & (values == np.floor(values))
        self._note(
            ~right,
            lambda i: f"{name} {self._text(name, i)}; expected {first} to {first + counts[i] - 1}",
        )
        return np.where(right, values, 0).astype(np.int64)

    def _input(self, stage: IntArray) -> tuple[IntArray, IntArray]:
        """Resolution, by the size of the stage's input, and channels."""
        h = self.hyperspace
        resolutions = np.array(h.distill_resolutions)
        sizes = [[h.input_hw(s, r) for r in h.distill_resolutions] for s in h.searchable]
        fits = self._numbers("hw")[:, None] == np.array(sizes)[stage]
        self._note(
            ~fits.any(axis=1),
            lambda i: (
                f"hw {self._text('hw', i)}; {h.searchable[stage[i]].name} has "
                f"{sizes[stage[i]]} at resolutions {list(h.distill_resolutions)}"
            ),
        )
        self._note(
            fits.sum(axis=1) > 1,
            lambda i: (
                f"hw {self._text('hw', i)} is that of more than one of the resolutions "
                f"{resolutions[fits[i]].tolist()}"
            ),
        )
        cin = self._numbers("cin")
        widths = [h.input_widths(s) for s in h.searchable]
        known = np.zeros((len(widths), len(self.rows)), np.bool_)
        for s, allowed in enumerate(widths):
            known[s] = np.isin(cin, allowed)
        right = known[stage, np.arange(len(self.rows))]
        self._note(
            ~right,
            lambda i: (
                f"cin {self._text('cin', i)}; {h.searchable[stage[i]].name} allows "
                f"{list(widths[stage[i]])}"
            ),
        )
        return resolutions[fits.argmax(axis=1)], np.where(right, cin, 0).astype(np.int64)

    def _check_substages(
        self, found: Substages, stage: IntArray, block: IntArray, window: IntArray
    ) -> None:
        stages, options = self.hyperspace.searchable, self.hyperspace.block_types
        deep = np.zeros(len(self.rows), np.bool_)
        for s, where in enumerate(stages):
            deep |= (stage == s) & np.isin(found.depth, where.depths)
        # Each distinct block is looked at once an option and once a window.
        by_option = np.array(
            [
                np.isin(found.kernel_size, o.kernel_sizes) & np.isin(found.expand, o.expand_choices)
                for o in options
            ]
        )
        first = np.cumsum([0, *(len(s.windows) for s in stages)])
        by_window = np.array([np.isin(found.width, w) for s in stages for w in s.windows])
        owner = np.repeat(np.arange(len(self.rows)), found.depth)
        right = (
            by_option[block[owner], found.token]
            & by_window[(first[stage] + window)[owner], found.token]
        )
        blocks_right = np.bincount(owner, right, len(self.rows)) == found.depth
        self._note(
            ~(deep & blocks_right),
            lambda i: self._why(i, int(stage[i]), int(block[i]), int(window[i])),
        )

    def _why(self, i: int, stage: int, block: int, window: int) -> str:
        """What is wrong with a sub-stage, in the words of the hyperspace."""
        where = self.hyperspace.searchable[stage]
        option = self.hyperspace.block_types[block]
        elastic = ElasticStage(stage=where, option=option, widths=where.windows[window])
        try:
            elastic.check(parse_chain(self._text("substage", i)))
        except CodeError as error:
            return str(error)
        raise AssertionError(f"{self.rows.where(i)}: {self._text('substage', i)} was refused")

    def _figure(self, name: str) -> NDArray[np.float64]:
        values = self._numbers(name)
        self._note(
            ~((values > 0) & (values < np.finfo(np.float32).max)),
            lambda i: f"{name} {self._text(name, i)}; expected a finite number above 0",
        )
        return values

    def _check_files(self, stage: IntArray, block: IntArray, window: IntArray) -> None:
        """Refuse a cell that two files hold: its rows would count twice."""
        files, stages = self.rows.files, self.hyperspace.searchable
        lengths = np.diff([*self.rows.starts, len(self.rows)])
        file = np.repeat(np.arange(len(files)), lengths)
        windows = max(len(s.windows) for s in stages)
        shape = (len(stages), len(self.hyperspace.block_types), windows, len(files))
        met = np.unique(np.ravel_multi_index((stage, block, window, file), shape))
        twice = np.flatnonzero(np.diff(met // len(files)) == 0)
        if len(twice):
            s, b, w, one = np.unravel_index(met[twice[0]], shape)
            where, other = stages[s], met[twice[0] + 1] % len(files)
            raise LUTError(
                f"{where.name}, {self.hyperspace.block_types[b].type}, window "
                f"{list(where.windows[w])}: rows in {files[one]} and again in {files[other]}"
            )

    def _choices(self, found: Substages) -> dict[str, np.ndarray]:
        """Blocks as a LUT has them: a row a sub-stage, padded with zeros."""
        deepest = max(s.depths[-1] for s in self.hyperspace.searchable)
        used = np.arange(deepest) < found.depth[:, None]
        columns = {}
        for name, values in (
            ("kernel_sizes", found.kernel_size),
            ("widths", found.width),
            ("expands", found.expand),
        ):
            columns[name] = np.zeros(used.shape, values.dtype)
            columns[name][used] = values[found.token]
        return {"depth": found.depth, **columns}

    def _text(self, name: str, i: int) -> str:
        return self.rows.texts[name][i]

    def _numbers(self, name: str) -> NDArray[np.float64]:
        """A column as numbers, NaN where it has none."""
        texts = self.rows.texts[name]
        try:
            return np.fromiter(map(float, texts), np.float64, len(texts))
        except ValueError:
            return np.array([_number(text) for text in texts])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
