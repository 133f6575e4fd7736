"""Checkpoints come back as they were, or are refused by name."""

import pickle

import pytest
import torch
from full_disk import full_disk

from nni_spaceevo.errors import CheckpointError, FileAccessError
from nni_spaceevo.network.checkpoint import load_checkpoint, save_checkpoint, settings


def test_contents_come_back(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, "x", {"weights": torch.arange(4.0), "epoch": 3})
    content = load_checkpoint(path, "x")
    assert torch.equal(content["weights"], torch.arange(4.0))
    assert content["epoch"] == 3


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path):
    save_checkpoint(tmp_path / "a.pt", "x", {})
    with pytest.raises(CheckpointError, match=r"a\.pt.*made for other settings"):
        load_checkpoint(tmp_path / "a.pt", "y")


def test_what_differs_is_named(tmp_path):
    made_for = {"teacher": "1", **settings("distill", {"epochs": 5, "batch_size": 64})}
    save_checkpoint(tmp_path / "a.pt", made_for, {})
    assert load_checkpoint(tmp_path / "a.pt", dict(reversed(made_for.items()))) == {}
    now = {**made_for, "teacher": "2", "distill.epochs": "6"}
    expected = r"made for other settings \(teacher 1, expected 2; distill\.epochs 5, expected 6\)"
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path / "a.pt", now)
    with pytest.raises(CheckpointError, match=r"\(seed unknown, expected 3\)"):
        load_checkpoint(tmp_path / "a.pt", {**made_for, "seed": "3"})


def test_of_many_differences_the_first_are_named(tmp_path):
    save_checkpoint(tmp_path / "a.pt", dict.fromkeys("abcde", "1"), {})
    with pytest.raises(CheckpointError, match=r"a 1, expected 2; b 1, .*; c 1, expected 2; …\)"):
        load_checkpoint(tmp_path / "a.pt", dict.fromkeys("abcde", "2"))


def test_a_checkpoint_that_names_nothing_is_of_another_version(tmp_path):
    save_checkpoint(tmp_path / "a.pt", "x", {})
    with pytest.raises(CheckpointError, match=r"settings \(by another version of this package"):
        load_checkpoint(tmp_path / "a.pt", {"teacher": "1"})


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, "x", {"epoch": 1})
    with full_disk(20_000), pytest.raises(FileAccessError, match=r"a\.pt: cannot write .*nothing"):
        save_checkpoint(path, "x", {"epoch": 2, "weights": torch.zeros(100_000)})
    assert load_checkpoint(path, "x") == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_truncated_checkpoint_is_refused_by_name(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, "x", {"weights": torch.zeros(1000)})
    for content in (path.read_bytes()[:700], b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.pt: truncated"):
            load_checkpoint(path, "x")


class Malicious:
    def __reduce__(self):
        return (print, ("a pickle was run",))


def test_code_in_a_checkpoint_is_never_run(tmp_path, capsys):
    path = tmp_path / "a.pt"
    torch.save({"schema": 1, "made_for": "x", "content": Malicious()}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path, "x")
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError):
        load_checkpoint(path, "x")
    assert capsys.readouterr().out == ""
