"""A trial of a profiling experiment, without NNI."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs.small_job import write_small_job

from nni_spaceevo.hyperspace import Hyperspace
from nni_spaceevo.jobs import predictors
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.latency import find_predictor, load_predictor
from nni_spaceevo.latency.devices.device import Device
from nni_spaceevo.plugin import profile_trial, seam

from .stand_in import Trial


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(seam, "ThisTrial", Trial)
    Trial.begin(device="ort-x86-fp32")
    return write_small_job(tmp_path)


def test_a_trial_profiles_a_device_once_and_reports_its_gate(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def profile_device(
        device: Device, hyperspace: Hyperspace, output: Path, options: object, force: bool
    ) -> None:
        """Keeps one of the package's, which takes no minutes."""
        asked.append((device.name, hyperspace.name, output, force))
        load_predictor(find_predictor("x86_vnni_ort_int8")).save(output)

    monkeypatch.setattr("nni_spaceevo.latency.profile.profile_device", profile_device)
    for _ in range(2):
        assert profile_trial.main(["--job", str(job.path)]) == 0
    folder = job.work / "latency_predictors" / "ort_x86_fp32"
    assert asked == [("ort-x86-fp32", "synthetic", folder, True)]
    final = Trial.final[0]
    assert Trial.final == [final] * 2
    assert final["default"] == final["within_5"] > 90
    assert final["gate"] == "passed"
    assert {"bias_of_smallest", "bias_of_largest", "kendall_tau"} < final.keys()
    # NNI's page cannot show anything else.
    assert all(isinstance(v, str | int | float) for v in final.values())
    assert str(folder) in capsys.readouterr().out


def test_the_int8_predictor_of_a_job_is_what_it_then_searches_by(job: Job) -> None:
    folder = predictors.profile_folder(job, predictors.JOB_DEVICE)
    load_predictor(find_predictor("x86_vnni_ort_int8")).save(folder)
    named = job.path.read_text()
    job.path.write_text(named.replace("predictor: x86_vnni_ort_int8\n", ""))
    assert Job(job.path).config.predictor is None
    assert (
        predictors.prepared_predictor(Job(job.path)).fingerprint
        == load_predictor(folder).fingerprint
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "searchSpace: expected the key 'device' alone"),
        ({"device": 1}, "searchSpace: expected the key 'device' alone"),
        ({"device": "abacus"}, "device 'abacus': expected one of ort-x86-int8"),
    ],
)
def test_wrong_parameters_are_one_clear_line(
    job: Job, capsys: pytest.CaptureFixture[str], parameters: dict[str, object], message: str
) -> None:
    Trial.begin(**parameters)
    assert profile_trial.main(["--job", str(job.path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("SpaceEvo: ")
    assert message in error
    assert error.count("\n") == 1
    assert Trial.final == []
