"""Trials that export and measure a subnet's file, without NNI."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs.small_job import SPACE, SUBNETS, SUPERNET, write_small_job

from nni_spaceevo.jobs.export import export_subnet
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.subnets import search_subnets, subnets_folder
from nni_spaceevo.jobs.supernets import supernet_path, train_supernet
from nni_spaceevo.plugin import bench_trial, export_trial, seam
from nni_spaceevo.plugin.subnet_trial import task_of
from nni_spaceevo.supernet.weights import load_supernet, save_supernet

from .stand_in import Trial

TWO = {**SUBNETS, "constraint_quantiles": [0.3, 0.9]}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """With a trained and searched supernet."""
    made = write_small_job(tmp_path_factory.mktemp("job"), supernet=SUPERNET, subnets=TWO)
    train_supernet(made, SPACE)
    search_subnets(made, made.hyperspace.space(SPACE))
    return made


@pytest.fixture(autouse=True)
def without_nni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seam, "ThisTrial", Trial)


@pytest.mark.parametrize("name", ["smallest", "seqnet2", "code"])
def test_a_trial_exports_a_subnet_and_reports_its_file(job: Job, name: str) -> None:
    space = job.hyperspace.space(SPACE)
    code = job.hyperspace.smallest_subnet(space)
    Trial.begin(space=SPACE, subnet=task_of(code) if name == "code" else name)
    assert export_trial.main(["--job", str(job.path)]) == 0
    (final,) = Trial.final
    path = Path(final["file"])
    assert path.parent == job.exported_path
    # The same file under the name that the command line takes.
    told = export_subnet(job, str(code) if name == "code" else name, space=SPACE)
    assert told.file == path.name
    assert final["default"] == told.agreement.accuracy
    # NNI's page cannot show anything else.
    assert all(isinstance(v, str | int | float) for v in final.values())


def test_a_trial_measures_both_precisions(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    Trial.begin(space=SPACE, subnet="largest", format="onnx")
    assert bench_trial.main(["--job", str(job.path)]) == 0
    (final,) = Trial.final
    assert final["default"] > 0 < final["fp32_ms"]
    assert final["predicted_ms"] > 0
    assert 0 < final["accuracy"] < 1
    assert final["file"].endswith("-largest.int8.onnx")
    assert all(isinstance(v, str | int | float) for v in final.values())
    assert "-largest.float32.onnx" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"file": "x"}, "searchSpace: "),
        ({"subnet": "largest", "format": "pt"}, "format"),
        (
            {"subnet": "seqnet9", "space": SPACE},
            "expected seqnet1 to seqnet2",
        ),
        ({"subnet": "largest", "space": SPACE, "seed": 9}, "no such supernet"),
        ({"subnet": "largest"}, "space 'best': no "),
    ],
)
@pytest.mark.parametrize("trial", [export_trial, bench_trial])
def test_wrong_parameters_are_one_clear_line(
    job: Job,
    trial: object,
    capsys: pytest.CaptureFixture[str],
    parameters: dict[str, object],
    message: str,
) -> None:
    Trial.begin(**parameters)
    assert trial.main(["--job", str(job.path)]) == 1  # type: ignore[attr-defined]
    error = capsys.readouterr().err
    assert error.startswith("SpaceEvo: ")
    assert message in error
    assert error.count("\n") == 1
    assert Trial.final == []


def test_a_seqnet_needs_a_search(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    found = subnets_folder(job, job.hyperspace.space(SPACE)) / "subnets.json"
    away = found.rename(found.with_suffix(".away"))
    Trial.begin(space=SPACE, subnet="seqnet1")
    assert export_trial.main(["--job", str(job.path)]) == 1
    assert "search the supernet's subnets first (`spaceevo subnets" in capsys.readouterr().err
    away.rename(found)


def test_a_seqnet_of_a_supernet_trained_since_needs_another_search(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    path = supernet_path(job, job.hyperspace.space(SPACE))
    before = path.read_bytes()
    supernet = load_supernet(path, job.hyperspace, SPACE)
    next(supernet.parameters()).data.mul_(1.1)
    try:
        save_supernet(path, supernet)
        Trial.begin(space=SPACE, subnet="seqnet1")
        assert export_trial.main(["--job", str(job.path)]) == 1
        assert "found in another supernet" in capsys.readouterr().err
    finally:
        path.write_bytes(before)
