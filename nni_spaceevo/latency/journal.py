"""Measurements on disk: one JSON line each, so that a killed profiling run loses at most one."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import msgspec

from ..errors import FileAccessError, PredictorError
from ..files import Record


class Slot(Record, frozen=True):
    """One visit to one model.

    Attributes
    ----------
    key : what was measured
    us : least time of a run in microseconds, all copies and the call included
    reference_us : least time of the reference kernel just before
    seconds : what the visit cost, building the session included
    """

    key: str
    us: float
    reference_us: float
    seconds: float


_DECODER = msgspec.json.Decoder(Slot)


class Journal:
    """Append-only file of slots. A last line without its end, left by a kill, is dropped.

    Parameters
    ----------
    path : the file; created when missing

    Raises
    ------
    PredictorError
        A line before the last is damaged; names file and line.
    FileAccessError
        The file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                with path.open("r+b") as stream:
                    stream.truncate(len(whole))
        except OSError as error:
            raise FileAccessError(f"{path}: cannot use ({error.strerror})") from error
        self.slots = [self._decode(n, line) for n, line in enumerate(whole.splitlines(), 1)]

    def _decode(self, number: int, line: bytes) -> Slot:
        try:
            return _DECODER.decode(line)
        except msgspec.DecodeError as error:
            raise PredictorError(
                f"{self.path}: line {number} is damaged ({error}); delete the file to measure again"
            ) from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[_Pen]:
        """Hold the file open for appending."""
        try:
            # Without a buffer, which would be written once more when a full disk has failed it.
            stream = self.path.open("ab", buffering=0)
        except OSError as error:
            raise FileAccessError(f"{self.path}: cannot write ({error.strerror})") from error
        with stream:
            yield _Pen(self, stream)


class _Pen:
    def __init__(self, journal: Journal, stream: FileIO) -> None:
        self._journal, self._stream = journal, stream

    def add(self, slot: Slot) -> None:
        """Append one slot; it survives a kill from here on."""
        try:
            line = msgspec.json.encode(slot) + b"\n"
            if self._stream.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise FileAccessError(
                f"{self._journal.path}: cannot write ({error.strerror}); "
                "what was measured so far is kept"
            ) from error
        self._journal.slots.append(slot)
