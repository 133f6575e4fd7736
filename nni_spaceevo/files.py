"""Files that survive: atomic writes, locks, strict YAML and JSON, hashes, packed data folders.

Records are `msgspec.Struct` types, so an unknown key or a wrong type is refused with its path.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .errors import ConfigError, FileAccessError, LockedError

T = TypeVar("T")
# What zipfile raises of a damaged archive: `RuntimeError` where a header asks for another version,
# method or encryption.
UNREADABLE_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    OSError,
    RuntimeError,
)


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every configuration and stored record: frozen, and strict about its keys."""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees either the old content or the new, never half.

    Raises
    ------
    FileAccessError
        The folder cannot be written or the disk is full; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            # mkstemp makes files private; results are for sharing, like any file the user writes.
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
    finally:
        # Gone already after success; left by a failure or by Ctrl-C.
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def require_writable(path: Path) -> None:
    """Refuse what `write_atomically` would refuse, before the work whose result it is to be.

    Raises
    ------
    FileAccessError
        The folder cannot be written, or the path is a folder.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileAccessError(
            f"{path}: cannot write ({error.strerror or error}); nothing was changed"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def exclusive(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the only right to write `path`; the lock dies with the process.

    Parameters
    ----------
    path : what is going to be written
    wait : wait for another holder instead of refusing

    Raises
    ------
    LockedError
        Another process holds it; the message names its process id.
    """
    import fcntl

    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("a+")
    except OSError as error:
        raise FileAccessError(f"{path}: cannot write ({error.strerror})") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read().strip() or "unknown"
            raise LockedError(
                f"{path}: process {owner} is writing it; wait for it to finish or stop it"
            ) from None
        stream.seek(0)
        stream.truncate()
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def read_text(path: Path) -> str:
    """Read a text file, packed if its name ends in `.gz`, or raise `FileAccessError` naming it."""
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as stream:
            return str(stream.read())
    except UnicodeDecodeError as error:
        raise FileAccessError(f"{path}: cannot read (it is not UTF-8 text)") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileAccessError(f"{path}: cannot read ({reason})") from error


def read_yaml(path: Path, record: type[T]) -> T:
    """Read a YAML file as a record.

    Raises
    ------
    ConfigError
        Unknown or missing key, or a value of the wrong type; names file, key and what is allowed.
    """
    import yaml

    # libyaml's loader is as safe, and ten times as fast.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        data = loader(read_text(path)).get_single_data()
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2020-99-99
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    return convert(data, record, str(path))


def read_json(path: Path, record: type[T]) -> T:
    """Read a JSON file as a record; errors as `read_yaml`."""
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    return convert(data, record, str(path))


def convert(data: Any, record: type[T], where: str) -> T:
    """Turn plain data into a record, or raise `ConfigError` starting with `where`."""
    try:
        return msgspec.convert(data, record)
    except msgspec.ValidationError as error:
        message = str(error)
        allowed = _allowed_keys(record, message)
        raise ConfigError(f"{where}: {message}{allowed}") from error


def _allowed_keys(record: Any, message: str) -> str:
    if "unknown field" not in message:
        return ""
    kind = msgspec.inspect.type_info(record)
    path = message.rpartition("at `$")[2].rstrip("`") if "at `$" in message else ""
    for key in re.sub(r"\[[^]]*\]", ".[]", path).split("."):
        kind = _descend(kind, key) if key else kind
    fields = getattr(kind, "fields", ())
    return f"; allowed keys: {', '.join(f.encode_name for f in fields)}" if fields else ""


def _descend(kind: Any, key: str) -> Any:
    if key == "[]":
        kind = getattr(kind, "item_type", getattr(kind, "value_type", kind))
    else:
        kind = next((f.type for f in getattr(kind, "fields", ()) if f.encode_name == key), kind)
    options = [t for t in getattr(kind, "types", ()) if not isinstance(t, msgspec.inspect.NoneType)]
    return options[0] if options else kind


def plain(record: Any) -> Any:
    """Turn a record into dicts, lists and scalars."""
    return msgspec.to_builtins(record)


def to_json(data: Any) -> str:
    """Indented JSON of a record or plain data, ending with a newline."""
    return json.dumps(plain(data), indent=1, allow_nan=False) + "\n"


def to_yaml(data: Any) -> str:
    """YAML of a record or plain data, keys in their own order."""
    import yaml

    return yaml.safe_dump(plain(data), sort_keys=False, default_flow_style=None, width=100)


def digest(*parts: bytes | str) -> str:
    """First 16 hexadecimal digits of SHA-256 over the parts."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()[:16]


def packed_folder(name: str) -> Path:
    """Folder of data that travels with the package: `latency_predictors` or `examples`.

    In a wheel it lies inside the package, in a checkout beside it.
    """
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parent.parent / name
