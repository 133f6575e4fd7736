"""The teacher's features of training batches, kept on disk.

All block types of a stage see the same batches, so features that were computed once serve them all.
They lie in `<stage>/<key>/`, one file a batch; the key tells those of one teacher, seed and so on
from those of another. Several processes read and write at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import CacheWarning, FileAccessError, LockedError
from ..files import exclusive
from .task import Features

_CHECKSUM_BYTES = 4


class FeatureCache:
    """Features of one stage's training batches; use it as a context.

    Parameters
    ----------
    folder : of all stages' features
    stage : its name
    key : fingerprint of all that decides the features
    gigabytes : that all features together may take; 0 keeps none
    """

    def __init__(self, folder: Path, stage: str, key: str, gigabytes: float) -> None:
        self._all, self._own = folder, folder / stage / key
        self._budget = round(gigabytes * 1e9)
        self._is_on = self._has_room = self._budget > 0
        self._held = contextlib.ExitStack()

    def __enter__(self) -> FeatureCache:
        with self._or_off():
            if self._is_on:
                self._held.enter_context(_in_use(self._own))
                with self._ledger() as ledger:
                    ledger.count()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def get(self, epoch: int, batch: int) -> Features | None:
        """The features of a batch, on the CPU; None if they are not there, or damaged."""
        path = self._path(epoch, batch)
        with self._or_off():
            try:
                return _unpacked(path.read_bytes()) if self._is_on else None
            except FileNotFoundError:
                return None
            except ValueError:
                _warn(f"{path}: damaged; the teacher's features are computed again")
                with self._ledger() as ledger:
                    ledger.remove(path)
        return None

    def put(self, epoch: int, batch: int, features: Features) -> None:
        """Keep the features of a batch, if there is room or another stage's can make room."""
        if not (self._is_on and self._has_room):
            return
        # What is not finite is a fault, which shall not outlive its cause.
        if not all(feature.isfinite().all() for feature in features):
            return
        path, content = self._path(epoch, batch), _packed(features)
        # Whoever writes holds the ledger, so the budget holds however many processes there are.
        with self._or_off(), self._ledger() as ledger:
            if path.is_file():
                return
            self._has_room = ledger.make_room(len(content), self._own)
            if self._has_room:
                ledger.write(path, content)

    def _path(self, epoch: int, batch: int) -> Path:
        return self._own / f"e{epoch:03d}_b{batch:06d}.npy"

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[_Ledger]:
        with exclusive(self._all / "used", wait=True):
            yield _Ledger(self._all, self._budget)

    @contextlib.contextmanager
    def _or_off(self) -> Iterator[None]:
        """Go on without a cache where the disk is full or does not let us."""
        try:
            yield
        except (OSError, FileAccessError) as error:
            self._is_on = False
            _warn(f"{self._all}: the teacher's features are cached no more ({error})")


class _Ledger:
    """How many bytes all features take, for whoever has the lock.

    It is a file, so that not every batch counts all files; each process counts them as it starts,
    so that a process that was killed, or a user who deletes files, leaves nothing wrong for long.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder, self._budget = folder, budget
        self._path = folder / "used"

    @property
    def used(self) -> int:
        """Bytes that all features take."""
        try:
            return int(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return self.count()

    def count(self) -> int:
        """Count all files anew."""
        # Who holds the ledger writes nothing now, so these are of processes that were killed.
        for unfinished in self._folder.glob("*/*/.*.part"):
            unfinished.unlink()
        return self._set(sum(map(_bytes, self._folder.glob("*/*"))))

    def _set(self, used: int) -> int:
        self._path.write_text(str(used))
        return used

    def make_room(self, wanted: int, own: Path) -> bool:
        """Whether `wanted` bytes fit; others' features, those not used for longest first, go."""
        used = self.used
        if wanted > self._budget:
            return False
        others = (p for p in self._folder.glob("*/*") if p.is_dir() and p != own)
        for other in sorted(others, key=_last_used):
            if used + wanted <= self._budget:
                break
            # Features that a process is using now stay.
            with contextlib.suppress(LockedError), exclusive(other):
                freed = _bytes(other)
                shutil.rmtree(other)
                used = self._set(used - freed)
        return used + wanted <= self._budget

    def write(self, path: Path, content: bytes) -> None:
        """Write a file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            # No fsync: a file that a power failure has halved is found by its checksum.
            part.write_bytes(content)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        self._set(self.used + len(content))

    def remove(self, path: Path) -> None:
        """Remove a file, if another process has not done so."""
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self._set(self.used - size)


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Keep others from removing a folder; its lock's time says when it was last used."""
    # The lock that `exclusive` takes, but shared: all processes of a stage have it.
    lock = folder.with_name(f".{folder.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        os.utime(stream.fileno())
        try:
            yield
        finally:
            os.utime(stream.fileno())


def _last_used(folder: Path) -> float:
    try:
        return folder.with_name(f".{folder.name}.lock").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.glob("*.npy"))


def _packed(features: Features) -> bytes:
    stream = io.BytesIO()
    for feature in features:
        np.save(stream, _array(feature.cpu()), allow_pickle=False)
    content = stream.getvalue()
    return content + zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")


def _unpacked(packed: bytes) -> Features:
    content, checksum = packed[:-_CHECKSUM_BYTES], packed[-_CHECKSUM_BYTES:]
    if not content or zlib.crc32(content) != int.from_bytes(checksum, "little"):
        raise ValueError("wrong checksum")
    stream = io.BytesIO(content)
    before, after = (_tensor(np.load(stream, allow_pickle=False)) for _ in range(2))
    return before, after


# numpy has no bfloat16: its bits are kept as integers, which features never are.


def _array(feature: Tensor) -> np.ndarray:
    return (feature.view(torch.int16) if feature.dtype == torch.bfloat16 else feature).numpy()


def _tensor(array: np.ndarray) -> Tensor:
    feature = torch.from_numpy(array)
    return feature.view(torch.bfloat16) if feature.dtype == torch.int16 else feature


def _warn(message: str) -> None:
    warnings.warn(message, CacheWarning, stacklevel=3)
