"""Distilled rows of several machines, merged into one LUT.

Each (stage, block type) is one file, `<stage>_<block type>.json`, written whole or not at all. Any
order, any split and any repetition of merges end with the same folder, and the same folder gives
the same LUT, byte for byte.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ConfigError, LUTError, SpaceEvoError
from ..files import Record, convert, exclusive, read_json, to_json, write_atomically
from ..hyperspace import Hyperspace, format_chain, parse_chain
from .table import QuantizedLUT, Row

SCHEMA = 2
Cell = tuple[int, int]
PlainRow = tuple[int, int, int, int, int, str, float, float | None, float | None]
# A task of a published hyperspace unpacks to less than 1 MB; nothing of ours comes near this.
_MOST_BYTES = 1 << 26


def task_cells(hyperspace: Hyperspace) -> dict[str, Cell]:
    """All (stage, block type) pairs: their names, as in file names, and their indices."""
    return {
        f"{stage.name}_{option.type}": (s, b)
        for s, stage in enumerate(hyperspace.searchable)
        for b, option in enumerate(hyperspace.block_types)
    }


class StageRows(Record, frozen=True):
    """The LUT rows of one (stage, block type), and what they were made with.

    Attributes
    ----------
    schema : version of the file format
    task : stage and block type, such as `stage1_mbv2_res`
    made_with : fingerprint of the job's settings
    teacher : fingerprint of the teacher
    images : fingerprint of the images; empty in files of before
    made_for : fingerprint of all that the rows depend on, images and task included
    held_out_images : how many each loss is the mean over
    rows : stage, block, window, resolution, cin, chain, loss and its two errors of each; see `Row`
    """

    schema: int
    task: str
    made_with: str
    teacher: str
    made_for: str
    held_out_images: int
    rows: tuple[PlainRow, ...]
    images: str = ""

    def __post_init__(self) -> None:
        _check_schema(self.schema)
        figures = (value for row in self.rows for value in row[6:] if value is not None)
        if not self.rows or not all(0 <= value < math.inf for value in figures):
            raise ConfigError(
                f"{self.task}: no rows, or a loss or error that is not finite and at least 0"
            )

    @classmethod
    def of(
        cls,
        task: str,
        rows: Iterable[Row],
        *,
        made_with: str,
        teacher: str,
        made_for: str,
        held_out_images: int,
        images: str = "",
    ) -> StageRows:
        """The rows of a task as a record."""
        plain = tuple(
            (
                *(r.stage, r.block, r.window, r.resolution, r.cin, format_chain(r.chain)),
                *(float(r.loss), r.loss_error, r.paired_error),
            )
            for r in rows
        )
        return cls(
            schema=SCHEMA,
            task=task,
            made_with=made_with,
            teacher=teacher,
            made_for=made_for,
            held_out_images=held_out_images,
            rows=plain,
            images=images,
        )

    def values(self) -> list[Row]:
        """The rows as values."""
        return [Row(*row[:5], parse_chain(row[5]), *row[6:]) for row in self.rows]

    @property
    def losses(self) -> list[float]:
        """The quantized NSR losses."""
        return [row[6] for row in self.rows]

    @property
    def mean_loss(self) -> float:
        """Mean quantized NSR loss."""
        return math.fsum(self.losses) / len(self.rows)

    @property
    def outcome(self) -> str:
        """What came out, in a few words."""
        return f"{self.task}: INT8 NSR loss {self.mean_loss:.3f}"

    def packed(self) -> str:
        """The record as a line of text, about 30 bytes a row."""
        # NNI cuts what it receives at `#` and at `//`, taking them for comments, also within text.
        return base64.urlsafe_b64encode(zlib.compress(msgspec.json.encode(self), 9)).decode()

    @classmethod
    def unpacked(cls, text: str, where: str) -> StageRows:
        """Undo `packed`; raises `LUTError`, starting with `where`, for any other text."""
        try:
            unzip = zlib.decompressobj()
            packed = base64.b64decode(text, altchars=b"-_", validate=True)
            content = unzip.decompress(packed, _MOST_BYTES)
            return msgspec.json.decode(content, type=cls)
        except (ValueError, TypeError, binascii.Error, zlib.error, msgspec.MsgspecError) as error:
            raise LUTError(f"{where}: not the rows of a task ({error})") from error


class RowsFolder:
    """A folder with the rows of a job's tasks.

    Parameters
    ----------
    path : the folder, made when the first rows come
    hyperspace : gives the tasks
    made_with : fingerprint of the job's settings, which rows must share
    """

    def __init__(self, path: Path, hyperspace: Hyperspace, made_with: str) -> None:
        self.path, self.hyperspace, self.made_with = path, hyperspace, made_with
        self.tasks = task_cells(hyperspace)

    def file(self, task: str) -> Path:
        """Where a task's rows are, or shall be."""
        return self.path / f"{task}.json"

    def find(self, task: str) -> StageRows | None:
        """A task's rows; None where there are none, or only rows made with other settings.

        Raises
        ------
        LUTError
            The file is damaged.
        """
        path = self.file(task)
        if not path.is_file():
            return None
        found = _read(path)
        if found.made_with != self.made_with:
            return None
        self._check(found, str(path))
        return found

    def missing(self) -> list[str]:
        """Tasks that have no rows yet; raises as `find`."""
        found = self._found()
        return [task for task in self.tasks if task not in found]

    def _found(self) -> dict[str, StageRows]:
        """The rows that are there, by task; each file is read once. Raises as `find`."""
        return {task: rows for task in self.tasks if (rows := self.find(task)) is not None}

    def add(self, rows: StageRows, origin: str) -> bool:
        """Keep a task's rows, after another process that is writing here.

        Parameters
        ----------
        rows : of any task
        origin : where they come from, for messages

        Returns
        -------
        is_new : whether they were not there yet

        Raises
        ------
        LUTError
            They do not fit the job or the rows that are there; nothing was changed.
        """
        with exclusive(self.path, wait=True):
            return bool(self._add([(origin, rows)]))

    def merge(self, sources: Sequence[Path]) -> list[str]:
        """Take the rows of other folders, all or none.

        Parameters
        ----------
        sources : folders like this one, such as another machine's `work/rows`

        Returns
        -------
        tasks : those whose rows were not there yet

        Raises
        ------
        LUTError
            A source has no rows; rows are damaged, of another hyperspace, made with other
            settings, another teacher or other images, or differ from rows of the same task. Nothing
            was changed.
        LockedError
            Another process is writing this folder.
        """
        found = [(str(path), _read(path)) for source in sources for path in _files(source)]
        with exclusive(self.path):
            return self._add(found)

    def complete(self) -> list[StageRows]:
        """The rows of all tasks; raises as `lut`."""
        found = self._found()
        if missing := [task for task in self.tasks if task not in found]:
            raise LUTError(f"{self.path}: no rows yet for {', '.join(missing)}")
        _check_alike([(str(self.file(task)), rows) for task, rows in found.items()])
        return list(found.values())

    def lut(self, images: str, made_with: str) -> QuantizedLUT:
        """The unpriced LUT of all tasks.

        Parameters
        ----------
        images : name of the data set, for the LUT's header
        made_with : fingerprint of the LUT's settings

        Raises
        ------
        LUTError
            Rows are missing, damaged, or of different teachers or images.
        """
        complete = self.complete()
        rows = [row for part in complete for row in part.values()]
        source = f"{images} teacher {complete[0].teacher}"
        images_a_loss = complete[0].held_out_images
        return QuantizedLUT.from_rows(self.hyperspace, rows, source, made_with, images_a_loss)

    def _add(self, found: list[tuple[str, StageRows]]) -> list[str]:
        kept = self._found()
        origins = {task: str(self.file(task)) for task in kept}
        new = []
        for where, rows in found:
            self._check(rows, where)
            if rows.task not in kept:
                kept[rows.task], origins[rows.task] = rows, where
                new.append(rows.task)
            elif rows != kept[rows.task]:
                origin = origins[rows.task]
                _check_alike([(origin, kept[rows.task]), (where, rows)])
                raise LUTError(
                    f"{origin} and {where}: two different results for {rows.task}; "
                    "delete the one that shall not count"
                )
        _check_alike([(origins[task], rows) for task, rows in kept.items()])
        for task in new:
            write_atomically(self.file(task), to_json(kept[task]))
        return new

    def _check(self, rows: StageRows, where: str) -> None:
        """Refuse rows that are not of this job."""
        if rows.task not in self.tasks:
            raise LUTError(
                f"{where}: rows of {rows.task!r}, which hyperspace {self.hyperspace.name!r} "
                f"does not have; its tasks are {', '.join(self.tasks)}"
            )
        if rows.made_with != self.made_with:
            raise LUTError(
                f"{where}: {rows.task} was distilled with other settings than this job has "
                f"({rows.made_with}, expected {self.made_with}); distil it with this job file"
            )
        if any(row[:2] != self.tasks[rows.task] for row in rows.rows):
            raise LUTError(f"{where}: has rows that are not of {rows.task}")


def _files(source: Path) -> list[Path]:
    files = sorted(p for p in source.glob("*.json") if not p.name.startswith("."))
    if not files:
        raise LUTError(f"{source}: no rows; expected a folder of <stage>_<block type>.json")
    return files


def _check_schema(given: Any) -> None:
    if given != SCHEMA:
        raise ConfigError(f"rows schema {given!r}; this version reads {SCHEMA}")


def _read(path: Path) -> StageRows:
    try:
        data = read_json(path, dict[str, Any])
        # Before anything else, which another version may have otherwise.
        _check_schema(data.get("schema"))
        found = convert(data, StageRows, str(path))
    except SpaceEvoError as error:
        raise LUTError(f"{error}; copy it again, or delete it and distil it again") from error
    if found.task != path.stem:
        raise LUTError(f"{path}: has the rows of {found.task}; a file is named after its task")
    return found


def _check_alike(found: list[tuple[str, StageRows]]) -> None:
    """Losses against different teachers or on different images cannot be compared."""
    for where, rows in found[1:]:
        if rows.images != found[0][1].images and rows.images and found[0][1].images:
            raise LUTError(
                f"{where}: distilled on other images ({rows.images}) than {found[0][0]} "
                f"({found[0][1].images}); give all machines the same images, and delete the rows "
                "of the other"
            )
        images = found[0][1].held_out_images
        if rows.held_out_images != images:
            raise LUTError(
                f"{where}: losses on {rows.held_out_images} held-out images, but {found[0][0]} on "
                f"{images}; give all machines the same images, and delete the rows of the other"
            )
        if rows.teacher != found[0][1].teacher:
            raise LUTError(
                f"{where}: distilled from teacher {rows.teacher}, but {found[0][0]} from "
                f"{found[0][1].teacher}; give all machines one teacher.pt before they start, and "
                "delete the rows of the other"
            )
