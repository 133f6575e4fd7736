from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from nni_spaceevo.errors import (
    CheckpointError,
    ConfigError,
    ConstraintError,
    LockedError,
    LUTError,
    SpaceEvoError,
)
from nni_spaceevo.files import packed_folder
from nni_spaceevo.hyperspace import Hyperspace, SpaceCode
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.results import SearchResults
from nni_spaceevo.plugin import seam, tuner
from nni_spaceevo.plugin.seam import ExperimentError, Trial
from nni_spaceevo.plugin.tuner import SpaceEvoTuner
from nni_spaceevo.reports import job_report
from nni_spaceevo.testing import synthetic_lut

from .nni_experiments import write_job

ARGS = {"population_size": 8, "sample_size": 4}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    checkpoint = tmp_path / "expid" / "checkpoint"
    checkpoint.mkdir(parents=True)
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(checkpoint))
    return write_job(tmp_path / "job")


def make(of: Job, **changes: Any) -> SpaceEvoTuner:
    return SpaceEvoTuner(**{"job": str(of.path), **ARGS, **changes})


def ask(searcher: SpaceEvoTuner, parameter_id: int) -> SpaceCode:
    (parameters,) = searcher.generate_multiple_parameters([parameter_id])
    return searcher.job.hyperspace.from_parameters(parameters)


def score(code: SpaceCode) -> float:
    return 1 + sum(code.blocks) + 0.01 * sum(code.windows)


def tell(searcher: SpaceEvoTuner, parameter_id: int, code: SpaceCode) -> None:
    value = {"default": score(code), "space": str(code)}
    searcher.receive_trial_result(parameter_id, {}, value)


def close(searcher: SpaceEvoTuner) -> None:
    """What the end of the process does: let go of the lock."""
    searcher._results.close()


# ---- class args and checks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"population": 3},
            r"tuner classArgs: .*`population`; allowed keys: "
            "job, population_size, sample_size, evolve, seed",
        ),
        ({"population_size": "many"}, r"tuner classArgs: Expected `int`.*`\$.population_size`"),
        ({"population_size": 1, "sample_size": 1}, "population_size must be at least 2, given 1"),
        ({"sample_size": 9}, r"sample_size must be 1 to population_size \(8\), given 9"),
        ({"job": "nowhere.yaml"}, "nowhere.yaml: cannot read"),
    ],
)
def test_wrong_class_args_are_one_line_on_standard_error(
    job: Job, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpaceEvoError, match=message) as caught:
        make(job, **changes)
    assert f"SpaceEvo: {caught.value}\n" in capsys.readouterr().err


def test_a_missing_job_argument_is_named() -> None:
    with pytest.raises(ConfigError, match="missing required field `job`"):
        SpaceEvoTuner(population_size=8)


@pytest.mark.parametrize(
    ("constraint", "where"), [(0.01, "below the fastest"), (99.0, "above the slowest")]
)
def test_a_constraint_that_tells_nothing_apart_is_refused(
    job: Job, constraint: float, where: str
) -> None:
    strict = write_job(job.path.parent, search={"constraints_ms": [constraint]})
    with pytest.raises(ConstraintError, match=f"T = {constraint:g} ms is {where} subnet"):
        make(strict)


def test_a_truncated_lut_is_refused(job: Job) -> None:
    job.lut_path.write_bytes(job.lut_path.read_bytes()[:1000])
    with pytest.raises(LUTError, match="truncated"):
        make(job)


def test_without_a_lut_the_first_trial_will_build_it(job: Job) -> None:
    job.lut_path.unlink()
    assert make(job)._constraints == (1.5,)


def test_the_job_is_relative_to_the_trial_code_directory(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = {"trialCodeDirectory": str(job.path.parent), "maxTrialNumber": 3}
    monkeypatch.setattr(seam, "experiment_config", lambda: folder)
    assert SpaceEvoTuner(job="spaceevo.yaml").job.path == job.path


def test_the_seed_is_the_jobs_unless_given(job: Job) -> None:
    first = make(write_job(job.path.parent, seed=3))
    assert first._config.seed == 3
    close(first)
    assert make(job, seed=4)._config.seed == 4


def test_a_second_search_with_the_job_is_refused(job: Job) -> None:
    first = make(job)
    with pytest.raises(LockedError, match="another experiment is searching with this job"):
        make(job)
    close(first)
    close(make(job))


# ---- search space -------------------------------------------------------------------------------


def test_the_examples_search_space_is_its_hyperspace(digits: Hyperspace) -> None:
    text = (packed_folder("examples") / "digits" / "search_space.yml").read_text()
    tuner.check_search_space(digits, yaml.safe_load(text)["searchSpace"])


def test_the_examples_class_args_are_valid() -> None:
    text = (packed_folder("examples") / "digits" / "search_space.yml").read_text()
    class_args = yaml.safe_load(text)["tuner"]["classArgs"]
    assert tuner.convert(class_args, tuner.TunerArgs, "").job == "spaceevo.yaml"


def _without(space: dict[str, Any]) -> None:
    del space["stage2/width_window"]


def _with(space: dict[str, Any]) -> None:
    space["stage9/block_type"] = {"_type": "choice", "_value": ["resnet"]}


def _with_less(space: dict[str, Any]) -> None:
    space["stage1/block_type"]["_value"] = ["resnet"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, "key 'stage2/width_window': given nothing, expected {'_type': 'choice'"),
        (_with, "key 'stage9/block_type': given .* expected no such key"),
        (_with_less, "key 'stage1/block_type': given .*'resnet'.*, expected .*'mbv1_dual'"),
    ],
)
def test_another_search_space_is_refused(
    job: Job, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    space = json.loads(json.dumps(job.hyperspace.search_space()))
    searcher = make(job)
    searcher.update_search_space(space)
    change(space)
    with pytest.raises(ConfigError, match=message):
        searcher.update_search_space(space)


@pytest.mark.parametrize("space", [None, [], {}])
def test_a_missing_search_space_is_refused(job: Job, space: Any) -> None:
    with pytest.raises(ConfigError, match="key 'stage1/block_type': given nothing"):
        tuner.check_search_space(job.hyperspace, space)


# ---- trial command ------------------------------------------------------------------------------


def test_the_trials_python_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner.check_trial_python(f"{sys.executable} -m nni_spaceevo.plugin.trial")
    tuner.check_trial_python("bash run.sh")
    fake = tmp_path / "python3"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot import nni_spaceevo; activate the virtual env"):
        tuner.check_trial_python("python3 -m nni_spaceevo.plugin.trial --job spaceevo.yaml")
    fake.unlink()
    with pytest.raises(ConfigError, match="no 'python3' on PATH; activate the virtual env"):
        tuner.check_trial_python("python3 -m nni_spaceevo.plugin.trial --job spaceevo.yaml")


# ---- asking and telling -------------------------------------------------------------------------


def test_results_count_for_the_space_that_the_trial_names(job: Job) -> None:
    searcher = make(job)
    first, second = ask(searcher, 0), ask(searcher, 1)
    # NNI's parameter swap: the metric of one space under the parameters of the other.
    swapped = job.hyperspace.parameters(first)
    value = {"default": 0.7, "space": str(second)}
    searcher.receive_trial_result(0, swapped, value)
    assert searcher.evolution.scores == {second: 0.7}


def test_results_file_has_everything_in_order(job: Job) -> None:
    searcher = make(job)
    codes = []
    for i in range(4):
        codes.append(ask(searcher, i))
        tell(searcher, i, codes[-1])
    results = SearchResults.load(job.search_path)
    assert [s.space for s in results.spaces] == [str(c) for c in codes]
    assert results.experiment == "expid"
    assert results.constraints_ms == (1.5,)
    assert results.hyperspace_fingerprint == job.hyperspace.fingerprint
    best, best_score = searcher.evolution.best
    assert (results.best.space, results.best.score) == (str(best), best_score)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "without its space; trialCommand must be `python3 -m nni_spaceevo.plugin.trial"),
        ({"default": 0.5}, "without its space"),
        ({"default": 0.5, "space": "synthetic-000-111"}, "was never handed out"),
        ({"default": 0.5, "space": "synthetic-009-000"}, "stage3 block type 9; allowed 0 to 2"),
        ({"default": "high"}, "without its space"),
    ],
)
def test_foreign_results_end_the_experiment(job: Job, value: Any, message: str) -> None:
    class Dispatcher:
        errors: ClassVar[list[str]] = []

        def send(self, id_: int, parameters: Any) -> None: ...

        def report_error(self, error: str) -> None:
            self.errors.append(error)

    dispatcher, searcher = Dispatcher(), make(job)
    dispatcher.errors.clear()
    searcher.generate_multiple_parameters([0], st_callback=dispatcher.send)
    with pytest.raises(SpaceEvoError, match=message):
        searcher.receive_trial_result(0, {}, value)
    assert len(dispatcher.errors) == 1
    assert dispatcher.errors[0].startswith("SpaceEvo: ")
    assert not searcher.evolution.scores


@pytest.mark.parametrize("default", [None, "high", True, float("nan")])
def test_a_score_must_be_a_finite_number(job: Job, default: Any) -> None:
    searcher = make(job)
    code = ask(searcher, 0)
    with pytest.raises(ExperimentError, match="expected a finite score"):
        searcher.receive_trial_result(0, {}, {"default": default, "space": str(code)})


def test_a_small_hyperspace_is_handed_out_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(job.hyperspace), "num_spaces", 5)
    searcher = make(job)
    codes = []
    for i in range(5):
        codes.append(ask(searcher, i))
        tell(searcher, i, codes[-1])
    assert len(set(codes)) == 5
    assert searcher.generate_multiple_parameters([5, 6]) == []


def test_the_report_is_written_when_the_last_result_is_in(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seam, "experiment_config", lambda: {"maxTrialNumber": 2})
    reported: list[int] = []
    monkeypatch.setattr(
        job_report,
        "write_report",
        lambda job: reported.append(len(SearchResults.load(job.search_path).spaces)),
    )
    searcher = make(job)
    for i in range(2):
        assert reported == []
        tell(searcher, i, ask(searcher, i))
    assert reported == [2]
    # The job is free again, and comes back with the next space.
    other = make(job)
    with pytest.raises(LockedError):
        ask(searcher, 2)
    close(other)
    ask(searcher, 2)


def test_a_report_that_fails_does_not_spoil_the_search(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(job: Job) -> Path:
        raise ConfigError("no paper")

    monkeypatch.setattr(job_report, "write_report", fail)
    monkeypatch.setattr(seam, "experiment_config", lambda: {"maxTrialNumber": 1})
    searcher = make(job)
    tell(searcher, 0, ask(searcher, 0))
    assert "SpaceEvo: no report: no paper" in capsys.readouterr().err
    assert len(SearchResults.load(job.search_path).spaces) == 1


# ---- failing trials -----------------------------------------------------------------------------


def test_the_third_failure_in_a_row_ends_the_experiment(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "expid" / "environments" / "e" / "trials" / "T" / "trial.stderr"
    log.parent.mkdir(parents=True)
    log.write_text("loading\nSpaceEvo: no such file\n")
    status = "FAILED"
    monkeypatch.setattr(seam, "manager_port", lambda: None)
    searcher = make(job)
    monkeypatch.setattr(tuner, "_find_trial", lambda i: Trial("T", i, status, i, {}, None, ()))
    for i in (0, 1):
        ask(searcher, i)
        searcher.trial_end(i, success=False)
    status = "USER_CANCELED"
    ask(searcher, 2)
    searcher.trial_end(2, success=False)
    status = "FAILED"
    code = ask(searcher, 3)
    with pytest.raises(
        ExperimentError, match=rf"3 trials .* {code}; its last line is 'SpaceEvo: no such file'"
    ) as caught:
        searcher.trial_end(3, success=False)
    assert str(log) in str(caught.value)


def test_a_success_forgives_failures(job: Job) -> None:
    searcher = make(job)
    for i in range(4):
        code = ask(searcher, i)
        if i == 2:
            tell(searcher, i, code)
        searcher.trial_end(i, success=i == 2)
    assert searcher._failures == 1


# ---- stop and resume ----------------------------------------------------------------------------


def run_to(searcher: SpaceEvoTuner, first: int, last: int) -> None:
    for i in range(first, last):
        tell(searcher, i, ask(searcher, i))


def resumed(
    job: Job, monkeypatch: pytest.MonkeyPatch, restarted: list[SpaceCode], **changes: Any
) -> SpaceEvoTuner:
    """A tuner as NNI starts it on resume, with these spaces' trials started again."""
    trials = [
        Trial(f"T{i}", i, "ADD_RESUMED", i, job.hyperspace.parameters(c), None, ())
        for i, c in enumerate(restarted)
    ]
    monkeypatch.setenv("NNI_MODE", "resume")
    searcher = make(job, **changes)
    monkeypatch.setattr(seam, "manager_port", lambda: 1)
    monkeypatch.setattr(seam, "trials", lambda port: trials)
    return searcher


@pytest.fixture
def undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """History of 20 spaces searched in one go."""
    job = write_job(tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.delenv("NNI_CHECKPOINT_DIRECTORY", raising=False)
        run_to(make(job), 0, 20)
    return [s.space for s in SearchResults.load(job.search_path).spaces]


def test_a_resumed_search_waits_for_the_trial_that_nni_starts_again(
    job: Job, monkeypatch: pytest.MonkeyPatch, undisturbed: list[str]
) -> None:
    first = make(job)
    run_to(first, 0, 11)
    in_flight = ask(first, 11)
    close(first)
    second = resumed(job, monkeypatch, [in_flight])
    finished = [{"parameter": {}, "value": t.metrics} for t in first._told]
    second.import_data(finished)
    assert second.generate_multiple_parameters([12]) == []
    second.import_data(
        [{"parameter": {}, "value": {"default": score(in_flight), "space": str(in_flight)}}]
    )
    run_to(second, 12, 20)
    assert [s.space for s in SearchResults.load(job.search_path).spaces] == undisturbed


def test_a_space_that_nni_forgot_is_handed_out_again(
    job: Job, monkeypatch: pytest.MonkeyPatch, undisturbed: list[str]
) -> None:
    first = make(job)
    run_to(first, 0, 11)
    forgotten = ask(first, 11)
    close(first)
    second = resumed(job, monkeypatch, [])
    assert ask(second, 1) == forgotten
    tell(second, 1, forgotten)
    run_to(second, 2, 10)
    assert [s.space for s in SearchResults.load(job.search_path).spaces] == undisturbed


def test_a_result_that_the_tuner_never_saw_is_imported(
    job: Job, monkeypatch: pytest.MonkeyPatch, undisturbed: list[str]
) -> None:
    first = make(job)
    run_to(first, 0, 11)
    unseen = ask(first, 11)
    close(first)
    second = resumed(job, monkeypatch, [])
    second.import_data(
        [{"parameter": {}, "value": {"default": score(unseen), "space": str(unseen)}}]
    )
    run_to(second, 1, 9)
    assert [s.space for s in SearchResults.load(job.search_path).spaces] == undisturbed


def test_resuming_with_other_class_args_is_refused(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(job)
    run_to(first, 0, 3)
    close(first)
    with pytest.raises(CheckpointError, match=r"population_size=8.*population_size=9"):
        resumed(job, monkeypatch, [], population_size=9)


def test_scores_by_other_settings_are_never_mixed(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(job)
    run_to(first, 0, 3)
    code = ask(first, 3)
    settings = job.path.read_text()
    job.path.write_text(settings.replace("1.5", "1.6"))
    with pytest.raises(ExperimentError, match="has other settings than when this search began"):
        tell(first, 3, code)
    close(first)
    with pytest.raises(CheckpointError, match="undo the change or create a new experiment"):
        resumed(Job(job.path), monkeypatch, [code])


def test_resuming_with_a_lut_that_was_built_again_is_refused(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(job)
    run_to(first, 0, 3)
    close(first)
    synthetic_lut(job.hyperspace, job.hyperspace.space("synthetic-111-000")).save(job.lut_path)
    with pytest.raises(CheckpointError, match="its scores are by another LUT than"):
        resumed(job, monkeypatch, [])


def test_resuming_before_the_first_space_starts_afresh(
    job: Job, monkeypatch: pytest.MonkeyPatch, undisturbed: list[str]
) -> None:
    close(make(job))
    second = resumed(job, monkeypatch, [])
    run_to(second, 0, 20)
    assert [s.space for s in SearchResults.load(job.search_path).spaces] == undisturbed


def test_hand_written_imports_count_for_their_parameters(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    searcher = make(job)
    code = job.hyperspace.space("synthetic-012-201")
    good = {"parameter": job.hyperspace.parameters(code), "value": 0.25}
    searcher.import_data([{"parameter": {"lr": 1}, "value": 1.0}, good, good])
    assert searcher.evolution.scores == {code: 0.25}
    assert "SpaceEvo: imported result left out: stage1/block_type" in capsys.readouterr().err


def test_nni_and_torch_stay_out_of_the_results_module() -> None:
    code = "import sys, nni_spaceevo.jobs.results; assert not {'nni', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
