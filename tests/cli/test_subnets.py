"""What cannot be searched, exported or measured is one line that says what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs.small_job import SPACE, SUBNETS, SUPERNET, write_small_job

from nni_spaceevo.cli import main
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.supernets import train_supernet

FLOATS = "synthetic-012-200"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job with a supernet, and one in FP32 alone."""
    folder = tmp_path_factory.mktemp("job")
    only_floats = {**SUPERNET, "int8": {"epochs": 0, "learning_rate": 0.1}}
    train_supernet(write_small_job(folder, supernet=only_floats), FLOATS)
    job = write_small_job(folder, supernet=SUPERNET, subnets=SUBNETS)
    train_supernet(job, SPACE)
    return job


def error(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a command ends with; warnings may stand before it."""
    assert main([str(argument) for argument in arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    (told,) = (line for line in lines if not line.startswith("spaceevo: warning: "))
    assert told.startswith("spaceevo: ")
    return told


def test_no_subnet_is_as_fast(trained: Job, capsys: pytest.CaptureFixture[str]) -> None:
    command = "subnets", "--job", trained.path, "--space", SPACE, "--constraint-ms", "1e-4"
    told = error(capsys, *command)
    assert f"T = 0.0001 ms is below the fastest subnet of {SPACE}" in told


@pytest.mark.parametrize("verb", [("subnets",), ("export", "--subnet", "largest")])
def test_a_supernet_without_an_int8_phase(
    trained: Job, verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    told = error(capsys, *verb, "--job", trained.path, "--space", FLOATS)
    assert f"{FLOATS}.pt: " in told and "without an LSQ+ phase has no INT8 subnets" in told


def test_a_subnet_of_another_space(trained: Job, capsys: pytest.CaptureFixture[str]) -> None:
    h = trained.hyperspace
    other = str(h.largest_subnet(h.space("synthetic-000-000")))
    command = "export", "--job", trained.path, "--space", SPACE, "--subnet", other
    told = error(capsys, *command)
    assert f"no subnet of {SPACE}: stage1 (mbv1_dual): width 16; allowed [24, 32]" in told


def test_a_path_that_cannot_be_written(
    trained: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "file" / "x.onnx"
    command = "export", "--job", trained.path, "--space", SPACE, "--subnet", "largest"
    assert f"{path}: cannot write" in error(capsys, *command, "--output", path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07" * 100])
def test_a_corrupted_file(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    assert f"{path}: " in error(capsys, "bench", path)
