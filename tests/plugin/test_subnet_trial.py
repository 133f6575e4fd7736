"""A trial of a subnet search, without NNI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jobs.small_job import SPACE, write_small_job
from msgspec.structs import asdict

from nni_spaceevo.hyperspace import SubnetCode
from nni_spaceevo.jobs import subnets
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.plugin import seam, subnet_trial
from nni_spaceevo.testing import synthetic_hyperspace

from .stand_in import Evaluator, Trial, accuracy

HYPERSPACE = synthetic_hyperspace()
SUBNET = HYPERSPACE.largest_subnet(HYPERSPACE.space(SPACE))
PARAMETERS = asdict(
    subnet_trial.parameters_of(HYPERSPACE, HYPERSPACE.space(SPACE), 5, SUBNET, 1.25)
)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(seam, "ThisTrial", Trial)
    Trial.begin(**PARAMETERS)
    return write_small_job(tmp_path)


def test_a_trial_reports_its_subnet(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    class Noting(Evaluator):
        def __init__(self, *given: Any) -> None:
            asked.append(given[1:])

        def __call__(self, code: SubnetCode) -> subnets.SubnetResult:
            asked.append(code)
            return super().__call__(code)

    monkeypatch.setattr(subnets, "SubnetEvaluator", Noting)
    assert subnet_trial.main(["--job", str(job.path)]) == 0
    assert asked == [(HYPERSPACE.space(SPACE), 5), SUBNET]
    (final,) = Trial.final
    assert final == {
        "default": accuracy(str(SUBNET)),
        "loss": 0.5,
        "subnet": PARAMETERS["subnet"],
        "predicted_ms": 1.25,
        "mflops": PARAMETERS["mflops"],
        "mparams": PARAMETERS["mparams"],
        "supernet": "supernet",
    }
    # NNI's page cannot show anything else, and its reader drops what follows a `#`.
    assert all(isinstance(v, str | int | float) for v in final.values())
    assert "#" not in f"{final} {PARAMETERS}"
    assert f"{SUBNET}: accuracy 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subnet": "d1_r8"}, "d1_r8"),
        ({"space": "vgg-1-1"}, "vgg"),
        ({"seed": "one"}, "seed"),
        ({"layers": 3}, "field `layers`"),
        ({}, "no such supernet; train it first"),
    ],
)
def test_wrong_parameters_are_one_clear_line(
    job: Job, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    Trial.begin(**{**PARAMETERS, **changes})
    assert subnet_trial.main(["--job", str(job.path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("SpaceEvo: ")
    assert message in error
    assert error.count("\n") == 1
    assert Trial.final == []


def test_parameters_of_another_tuner_are_told(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    Trial.begin(subnet=PARAMETERS["subnet"])
    assert subnet_trial.main(["--job", str(job.path)]) == 1
    assert "the experiment's tuner must be SpaceEvoSubnets" in capsys.readouterr().err


def test_nothing_heavy_is_imported_before_evaluation() -> None:
    code = (
        "import sys, nni_spaceevo.plugin.subnet_trial; "
        "assert not {'torch', 'nni'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
