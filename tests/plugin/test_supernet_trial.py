"""A trial of a supernet experiment, without NNI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from jobs.small_job import SUPERNET, write_small_job

from nni_spaceevo.jobs.job import Job
from nni_spaceevo.plugin import seam, supernet_trial

from .stand_in import Trial

SPACE = "synthetic-012-201"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(seam, "ThisTrial", Trial)
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path / "trial"))
    Trial.begin(space=SPACE, seed=5)
    return write_small_job(tmp_path, supernet=SUPERNET)


def test_a_trial_reports_its_curve_and_its_supernet(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert supernet_trial.main(["--job", str(job.path)]) == 0
    first, last = Trial.curve
    assert (first["precision"], last["precision"]) == ("fp32", "int8")
    assert first["default"] == first["fp32_random"]  # No other numbers yet.
    assert first.keys() == last.keys()  # The web page draws what the first point has.
    (final,) = Trial.final
    assert last.items() <= final.items()
    assert (final["space"], final["seed"]) == (SPACE, 5)
    assert Path(final["file"]).is_file()
    # NNI's page cannot show anything else.
    assert all(isinstance(v, str | int | float) for v in final.values())
    assert list((tmp_path / "trial" / "tensorboard").glob("events.*"))
    assert "epoch 2, int8: loss" in capsys.readouterr().out
    # Once more: NNI sees the same.
    assert supernet_trial.main(["--job", str(job.path)]) == 0
    assert Trial.curve == [first, last] * 2
    assert Trial.final == [final] * 2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"task": "x"}, "searchSpace, key 'task'; a supernet's are space, seed"),
        ({"space": "vgg-1-1"}, "vgg"),
        ({"space": SPACE, "seed": -1}, "seed must be at least 0, given -1"),
        ({"space": SPACE, "seed": "one"}, "seed: expected a whole number, given 'one'"),
        ({}, "space 'best': no "),
    ],
)
def test_wrong_parameters_are_one_clear_line(
    job: Job, capsys: pytest.CaptureFixture[str], parameters: dict[str, object], message: str
) -> None:
    Trial.begin(**parameters)
    assert supernet_trial.main(["--job", str(job.path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("SpaceEvo: ")
    assert message in error
    assert error.count("\n") == 1
    assert Trial.final == []
    assert not job.supernets_path.exists()


def test_nothing_heavy_is_imported_before_training() -> None:
    code = (
        "import sys, nni_spaceevo.plugin.supernet_trial; "
        "assert not {'torch', 'nni'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
