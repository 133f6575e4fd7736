"""Files that survive: atomic writes, locks, strict records."""

from __future__ import annotations

import errno
import gzip
import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nni_spaceevo
from nni_spaceevo.errors import ConfigError, FileAccessError, LockedError
from nni_spaceevo.files import (
    Record,
    convert,
    digest,
    exclusive,
    packed_folder,
    plain,
    read_json,
    read_text,
    read_yaml,
    require_writable,
    to_json,
    to_yaml,
    write_atomically,
)


class Inner(Record, frozen=True):
    """A nested record with a check of its own."""

    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"size must be positive, given {self.size}")


class Outer(Record, frozen=True):
    """A record with every kind of nesting."""

    name: str
    one: Inner = Inner()
    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    table: dict[str, Inner] = msgspec.field(default_factory=dict)


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


# ---- atomic writes ----------------------------------------------------------------------------


def test_a_write_creates_folders_and_replaces_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.txt"
    write_atomically(path, "first")
    write_atomically(path, "zweitens: ä")
    assert path.read_text(encoding="utf-8") == "zweitens: ä"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["file.txt"]


def test_a_written_file_can_be_shared_like_any_other(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", "x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["mkstemp", "fsync", "chmod", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.mkstemp" if call == "mkstemp" else f"os.{call}", full)
    message = "cannot write (No space left on device); nothing was changed"
    with pytest.raises(FileAccessError, match=re.escape(f"{path}: {message}")):
        write_atomically(path, "new" * 1000)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.json"]


def test_a_write_broken_off_by_the_user_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", "new")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    # Root may write into read-only folders, so the folder here is one that nobody can write into.
    (tmp_path / "file").write_text("old")
    path = tmp_path / "file" / "below.json"
    with pytest.raises(FileAccessError, match=re.escape(f"{path}: cannot write (")):
        write_atomically(path, "new")
    with (
        pytest.raises(FileAccessError, match=re.escape(f"{path}: cannot write (")),
        exclusive(path),
    ):
        pass
    assert (tmp_path / "file").read_text() == "old"


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder without write permission; for root, who may write anywhere, by being nobody."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "file").write_text("old")
        folder.chmod(0o555)
        try:
            if user == 0:
                os.seteuid(65534)
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o700)


def test_a_read_only_folder_is_named(read_only: Path) -> None:
    path = read_only / "file"
    message = re.escape(f"{path}: cannot write (Permission denied)")
    with pytest.raises(FileAccessError, match=message):
        write_atomically(path, "new")
    with pytest.raises(FileAccessError, match=message):
        require_writable(path)
    with pytest.raises(FileAccessError, match=message), exclusive(path):
        pass
    assert path.read_text() == "old"
    assert names(read_only) == ["file"]


@pytest.mark.parametrize("write", [lambda p: write_atomically(p, "new"), require_writable])
def test_a_folder_in_the_way_is_left_as_it_is(tmp_path: Path, write: Callable) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(FileAccessError, match=r"cannot write \(Is a directory\)"):
        write(tmp_path / "file")
    assert names(tmp_path) == ["file"]


def test_what_can_be_written_is_not_touched_before(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    require_writable(path)
    assert names(path.parent) == []
    path.write_text("old")
    require_writable(path)
    assert path.read_text() == "old"


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", {"a" * 100_000, "b" * 200_000}
    write_atomically(path, "a" * 100_000)
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        for content in contents:
            write_atomically(path, content)
    done.set()
    reader.join()
    assert seen <= contents


# ---- locks ------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from nni_spaceevo.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
TRY = """
import sys
from pathlib import Path
from nni_spaceevo.errors import LockedError
from nni_spaceevo.files import exclusive
try:
    with exclusive(Path(sys.argv[1])):
        print("free")
except LockedError as error:
    print(error)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `lut.json` until its input ends."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lut.json")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_with_the_first_ones_id(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    path = tmp_path / "lut.json"
    message = re.escape(f"{path}: process {holder.pid} is writing it; wait")
    with pytest.raises(LockedError, match=message), exclusive(path):
        pytest.fail("two processes hold the same lock")
    with exclusive(tmp_path / "other.json"):
        pass


def test_a_lock_is_free_after_its_process_was_killed(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.kill()  # SIGKILL: nothing of the process runs any more.
    holder.wait()
    with exclusive(tmp_path / "lut.json"):
        pass


def test_this_process_keeps_others_out_and_lets_them_in_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lut.json"

    def attempt() -> str:
        command = [sys.executable, "-c", TRY, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with pytest.raises(RuntimeError, match="inside"), exclusive(path):
        assert f"process {os.getpid()} is writing it" in attempt()
        raise RuntimeError("inside")
    assert attempt() == "free"


def test_a_lock_writes_nothing_but_its_own_hidden_file(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lut.json"):
        assert names(tmp_path) == [".lut.json.lock"]


# ---- reading ----------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    message = re.escape(f"{missing}: cannot read (No such file or directory)")
    for read in (read_text, lambda p: read_yaml(p, Outer), lambda p: read_json(p, Outer)):
        with pytest.raises(FileAccessError, match=message):
            read(missing)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileAccessError, match=r"binary: cannot read \(it is not UTF-8 text\)"):
        read_text(binary)
    with pytest.raises(FileAccessError, match=r"cannot read \(Is a directory\)"):
        read_text(tmp_path)


def test_a_packed_text_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "text.csv.gz"
    path.write_bytes(gzip.compress("zweitens: ä".encode()))
    assert read_text(path) == "zweitens: ä"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"text" * 99, mtime=0)[:-12], "end-of-stream"),
        (b"text", "Not a gzipped file"),
        (gzip.compress(b"text" * 99, mtime=0)[:10] + b"\xff" * 30, "invalid"),
        (gzip.compress(b"\xff\xfe", mtime=0), "it is not UTF-8 text"),
    ],
)
def test_a_damaged_packed_text_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "text.gz"
    path.write_bytes(content)
    with pytest.raises(FileAccessError, match=rf"text\.gz: cannot read \(.*{words}"):
        read_text(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae: x", "unknown field `nmae`; allowed keys: name, one, maybe, many, table"),
        ("{name: x, one: {sise: 2}}", "`sise` - at `$.one`; allowed keys: size"),
        ("{name: x, maybe: {sise: 2}}", "`sise` - at `$.maybe`; allowed keys: size"),
        ("{name: x, many: [{}, {sise: 2}]}", "`sise` - at `$.many[1]`; allowed keys: size"),
        ("{name: x, table: {a: {sise: 2}}}", "`sise` - at `$.table[...]`; allowed keys: size"),
        ("{name: x, one: {size: 0}}", "size must be positive, given 0 - at `$.one`"),
        ("{name: x, one: {size: big}}", "Expected `int`, got `str` - at `$.one.size`"),
        ("{name: x, one: {size: 1.5}}", "Expected `int`, got `float` - at `$.one.size`"),
        ("{one: {}}", "Object missing required field `name`"),
        ("", "Expected `object`, got `null`"),
        ("- name", "Expected `object`, got `array`"),
        ("1: 2", "Expected `str`"),
        ("name: [", "not valid YAML: "),
        ("name: 'x", "not valid YAML: "),
        ("name: 2020-99-99", "not valid YAML: "),
        ("name: !!python/object/apply:os.getpid []", "not valid YAML: could not determine"),
    ],
    ids=[
        "key",
        "nested",
        "optional",
        "list-item",
        "table-entry",
        "own-check",
        "kind",
        "fraction",
        "missing",
        "empty",
        "array",
        "key-kind",
        "bracket",
        "quote",
        "date",
        "python-object",
    ],
)
def test_a_wrong_yaml_file_gives_one_error_with_file_and_key(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path, Outer)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"nmae": 1}', "unknown field `nmae`; allowed keys: name, one, maybe, many, table"),
        ('{"name": "x", "many": [{"sise": 1}]}', "at `$.many[0]`; allowed keys: size"),
        ('{"name": "x", ', "not valid JSON: "),
        ("", "not valid JSON: "),
    ],
    ids=["key", "nested", "truncated", "empty"],
)
def test_a_wrong_json_file_gives_one_error_with_file_and_key(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_json(path, Outer)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


records = st.builds(
    Outer,
    name=st.text(st.characters(exclude_categories=["Cs"])),
    maybe=st.none() | st.builds(Inner, size=st.integers(1, 9)),
    many=st.lists(st.builds(Inner, size=st.integers(1, 9))).map(tuple),
)


@given(record=records)
def test_a_record_survives_json(record: Outer, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "record.json"
    write_atomically(path, to_json(record))
    assert read_json(path, Outer) == record
    assert convert(plain(record), Outer, "here") == record


@given(record=records)
def test_a_record_survives_yaml(record: Outer, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "record.yaml"
    write_atomically(path, to_yaml(record))
    assert read_yaml(path, Outer) == record


def test_json_holds_no_number_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"loss": float("nan")})
    assert to_json([1]) == "[\n 1\n]\n"


def test_yaml_keeps_the_order_of_keys() -> None:
    assert list(plain(Outer(name="x"))) == ["name", "one", "maybe", "many", "table"]
    assert to_yaml({"b": 1, "a": 2}).split() == ["{b:", "1,", "a:", "2}"]


# ---- digests and packed folders ---------------------------------------------------------------


def test_a_digest_is_sixteen_digits_that_depend_on_every_part() -> None:
    assert re.fullmatch("[0-9a-f]{16}", digest("a", "b"))
    assert digest("a", "b") == digest(b"a", b"b")
    assert len({digest("ab"), digest("a", "b"), digest("b", "a"), digest("ab", ""), digest()}) == 5
    assert digest("a", "b") == "cf6ab613e3942391", "stored files carry digests: never change them"


@pytest.mark.parametrize("name", ["latency_predictors", "examples"])
def test_a_packed_folder_is_found_beside_or_inside_the_package(name: str) -> None:
    package = Path(nni_spaceevo.__file__).parent
    folder = packed_folder(name)
    assert folder.is_dir()
    assert folder in (package / name, package.parent / name)


def test_the_folder_inside_the_package_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nni_spaceevo.files.__file__", str(tmp_path / "package" / "files.py"))
    (tmp_path / "examples").mkdir()
    assert packed_folder("examples") == tmp_path / "examples"
    (tmp_path / "package" / "examples").mkdir(parents=True)
    assert packed_folder("examples") == tmp_path / "package" / "examples"


def test_a_waiting_writer_gets_its_turn_when_the_holder_is_done(tmp_path):
    import threading

    order = []

    def waits():
        with exclusive(tmp_path / "a", wait=True):
            order.append("waiter")

    with exclusive(tmp_path / "a"):
        thread = threading.Thread(target=waits)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        order.append("holder")
    thread.join(10)
    assert order == ["holder", "waiter"]
