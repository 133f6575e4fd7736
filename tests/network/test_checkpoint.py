"""Checkpoints come back as they were, or are refused by name."""

import pickle

import pytest
import torch

from nni_spaceevo.errors import CheckpointError
from nni_spaceevo.network.checkpoint import load_checkpoint, save_checkpoint


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


def test_a_truncated_checkpoint_is_refused_by_name(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, "x", {"weights": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:700])
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
