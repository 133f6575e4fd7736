from __future__ import annotations

import pytest
from full_disk import full_disk

from nni_spaceevo.errors import FileAccessError, PredictorError
from nni_spaceevo.latency.journal import Journal, Slot


def slot(key: str) -> Slot:
    return Slot(key=key, us=1.5, reference_us=20.0, seconds=0.01)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "deep" / "journal.jsonl"
    with Journal(path).writing() as pen:
        for key in "abc":
            pen.add(slot(key))
    return path


def test_what_was_written_is_read(path):
    assert Journal(path).slots == [slot(k) for k in "abc"]


def test_a_torn_last_line_is_dropped_wherever_it_tears(path):
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(1, last + 1):
        path.write_bytes(whole[:-cut])
        assert Journal(path).slots == [slot("a"), slot("b")]


def test_writing_goes_on_after_a_torn_line(path):
    path.write_bytes(path.read_bytes()[:-5])
    with Journal(path).writing() as pen:
        pen.add(slot("d"))
    assert Journal(path).slots == [slot(k) for k in "abd"]


def test_a_damaged_line_in_the_middle_is_named(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"key": 3}\n' + lines[2])
    with pytest.raises(PredictorError, match=r"journal\.jsonl: line 2 is damaged"):
        Journal(path)


def test_an_unusable_path_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileAccessError, match="file"):
        Journal(tmp_path / "file" / "journal.jsonl")


def test_a_full_disk_is_one_clear_error_and_loses_nothing(path):
    before = path.read_bytes()
    with (
        full_disk(len(before) + 10),
        pytest.raises(FileAccessError, match=r"journal\.jsonl: cannot write"),
        Journal(path).writing() as pen,
    ):
        pen.add(slot("d"))
    assert Journal(path).slots == [slot(k) for k in "abc"]
