"""Verbs about a whole job, beyond those that other tests of the rooms below use."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs.small_job import SUPERNET, write_small_job

from nni_spaceevo.cli import main

SPACE = "synthetic-012-201"


def test_train_tells_each_epoch_and_where_the_supernet_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_small_job(tmp_path, supernet=SUPERNET)
    arguments = ["train", "--job", str(job.path), "--space", SPACE, "--seed", "4"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    path = job.supernets_path / "seed4" / f"{SPACE}.pt"
    assert path.is_file()
    lines = first.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["epoch 1, fp32", "epoch 2, int8"]
    assert lines[2] == f"{SPACE}, seed 4 -> {path}"
    # Again: there is nothing left to do, and the same is told.
    assert main(arguments) == 0
    assert capsys.readouterr().out == first


def test_train_wants_a_search_or_a_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_small_job(tmp_path)
    assert main(["train", "--job", str(job.path)]) == 1
    error = capsys.readouterr().err
    assert f"search first (`spaceevo search --job {job.path}`)" in error
    assert "space 'best'" in error
    assert "or give a space code" in error
