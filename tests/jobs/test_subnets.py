"""Subnets of a trained supernet: searched, continued, exported and measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nni_spaceevo.cli import main
from nni_spaceevo.errors import CheckpointError, ConfigError, ConstraintError, LockedError
from nni_spaceevo.files import exclusive, read_json
from nni_spaceevo.jobs.job import Job, SubnetsConfig
from nni_spaceevo.jobs.predictors import prepared_predictor
from nni_spaceevo.jobs.subnets import (
    SubnetEvaluator,
    SubnetResults,
    new_search,
    search_subnets,
    subnets_folder,
)
from nni_spaceevo.jobs.supernets import train_supernet
from nni_spaceevo.search.priced import PricedSubnets
from nni_spaceevo.search.subnets import latency_span

from .small_job import SPACE, SUPERNET, write_small_job

SUBNETS = {
    "constraint_quantiles": [0.3, 0.8],
    "evolution": {"population": 8, "mutations": 2, "crossovers": 2, "generations": 2},
    "surrogate": {"first": 4, "rounds": 1, "candidates": 1},
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job whose supernet is trained."""
    folder = tmp_path_factory.mktemp("subnets")
    made = write_small_job(folder, supernet=SUPERNET, subnets=SUBNETS)
    train_supernet(made, SPACE)
    return made


def test_the_command_finds_exports_and_measures(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["subnets", "--job", str(job.path), "--space", SPACE, "--rounds", "1"]) == 0
    space = job.hyperspace.space(SPACE)
    folder = subnets_folder(job, space)
    results = read_json(folder / "subnets.json", SubnetResults)
    assert (results.space, results.seed, len(results.best)) == (SPACE, 0, 2)
    for T, found in zip(results.constraints_ms, results.best, strict=True):
        assert found.predicted_ms <= T
        job.hyperspace.subnet(space, found.subnet)
        assert (folder / f"within_{T:g}ms.onnx").is_file()
        # The same weights and statistics judge the file, on all images.
        export = json.loads((folder / f"within_{T:g}ms.onnx.json").read_text())
        assert export["subnet"] == found.subnet
        assert found.unseen_accuracy is not None
        both_halves = (found.accuracy * 223 + found.unseen_accuracy * 222) / 445
        assert export["agreement"]["network_accuracy"] == pytest.approx(both_halves)
    text, report = capsys.readouterr().out, (folder / "report.md").read_text()
    assert f"{SPACE}, seed 0: {len(results.evaluated)} subnets evaluated" in text
    assert "within_" in text
    for found in results.best:
        assert f"`{found.subnet}`" in report
    assert (folder / "subnets.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_evaluated_is_not_evaluated_again(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = job.hyperspace.space(SPACE)
    whole = search_subnets(job, space)
    path = subnets_folder(job, space) / "evaluations.json"
    kept = json.loads(path.read_text())
    # As a kill leaves it: some are on disk.
    path.write_text(json.dumps({**kept, "subnets": kept["subnets"][:3]}))
    evaluate, asked = SubnetEvaluator.__call__, []

    def counted(self, code):
        asked.append(str(code))
        return evaluate(self, code)

    monkeypatch.setattr(SubnetEvaluator, "__call__", counted)
    assert search_subnets(job, space) == whole
    first = [entry["subnet"] for entry in kept["subnets"][:3]]
    assert len(asked) == len(kept["subnets"]) - 3
    assert not {*asked} & {*first}
    # Those of another supernet do not count.
    path.write_text(json.dumps({**kept, "made_for": "another"}))
    asked.clear()
    assert search_subnets(job, space) == whole
    assert len(asked) == len(whole.evaluated)


def test_constraints_are_given_or_those_of_the_job(job: Job) -> None:
    space, device = job.hyperspace.space(SPACE), prepared_predictor(job)
    of_job = new_search(job, space, device)
    low, high = of_job.constraints_ms
    ms = of_job.subnets.ms(of_job.subnets.random(2000, np.random.default_rng(0)))
    assert np.mean(ms <= low) == pytest.approx(0.3, abs=0.05)
    assert np.mean(ms <= high) == pytest.approx(0.8, abs=0.05)
    assert new_search(job, space, device, (high, low, high)).constraints_ms == (low, high)
    with pytest.raises(
        ConstraintError, match=r"T = 0\.001 ms is below the fastest subnet of synth"
    ):
        new_search(job, space, device, (low, 0.001))


def test_a_supernet_that_cannot_be_searched_is_refused(job: Job, tmp_path: Path) -> None:
    space = job.hyperspace.space(SPACE)
    with pytest.raises(ConfigError, match="no such supernet; train it first"):
        search_subnets(job, job.hyperspace.space("synthetic-000-000"))
    with pytest.raises(ConfigError, match="no such supernet"):
        search_subnets(job, space, seed=9)
    with (
        exclusive(subnets_folder(job, space) / "evaluations.json"),
        pytest.raises(LockedError, match=r"evaluations\.json"),
    ):
        search_subnets(job, space)
    only_floats = {**SUPERNET, "int8": {"epochs": 0, "learning_rate": 0.1}}
    floats = write_small_job(tmp_path, supernet=only_floats)
    train_supernet(floats, SPACE)
    with pytest.raises(CheckpointError, match=r"synthetic-012-201\.pt: .* no INT8 subnets"):
        search_subnets(floats, space)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"constraints_ms": (1.0,), "constraint_quantiles": (0.5,)}, "give either"),
        ({"constraints_ms": (-1.0,)}, "constraints_ms must be above 0"),
        ({"constraint_quantiles": (1.5,)}, "constraint_quantiles must be above 0, up to 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SubnetsConfig(**settings)


@pytest.mark.parametrize(
    ("search", "subnets", "constraints", "quantiles"),
    [
        ({"constraint_quantiles": [0.3]}, {}, (), (0.25, 0.5, 0.75)),
        ({"constraints_ms": [3, 4]}, {}, (3, 4), (0.25, 0.5, 0.75)),
        ({"constraints_ms": [3, 4]}, {"constraints_ms": [5]}, (5,), (0.25, 0.5, 0.75)),
        ({"constraints_ms": [3, 4]}, {"constraint_quantiles": [0.5]}, (), (0.5,)),
    ],
)
def test_subnets_keep_within_the_searchs_milliseconds_unless_they_have_their_own(
    tmp_path: Path, search: dict, subnets: dict, constraints: tuple, quantiles: tuple
) -> None:
    config = write_small_job(tmp_path, search=search, subnets=subnets).config
    assert (config.subnet_constraints_ms, config.subnet_quantiles) == (constraints, quantiles)


def test_a_t_of_the_search_that_no_subnet_meets_is_left_out(job: Job, tmp_path: Path) -> None:
    space, device = job.hyperspace.space(SPACE), prepared_predictor(job)
    low, high = latency_span(PricedSubnets(job.hyperspace, space, device), 0)
    tight, loose = low / 2, (low + high) / 2
    searched = write_small_job(tmp_path, search={"constraints_ms": [tight, loose]})
    assert new_search(searched, space, device).constraints_ms == (loose,)
    own = write_small_job(tmp_path, subnets={"constraints_ms": [tight, loose]})
    with pytest.raises(ConstraintError, match="below the fastest subnet"):
        new_search(own, space, device)
