"""The distillation tuner between NNI's calls and NNI's records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs.small_job import write_small_job

from nni_spaceevo.errors import ConfigError, LockedError, LUTError, SpaceEvoError
from nni_spaceevo.files import convert, packed_folder, to_json
from nni_spaceevo.hyperspace import Hyperspace
from nni_spaceevo.jobs.distillation import rows_folder
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.lut.merge import StageRows, task_cells
from nni_spaceevo.plugin import distill_tuner, seam
from nni_spaceevo.plugin.distill_trial import metrics_of
from nni_spaceevo.plugin.distill_tuner import DistillTuner, distill_search_space
from nni_spaceevo.plugin.seam import ExperimentError
from nni_spaceevo.testing import synthetic_stage_rows

from .manager import Manager


def rows(job: Job, task: str) -> StageRows:
    return synthetic_stage_rows(job.hyperspace, task, rows_folder(job).made_with)


def result(job: Job, task: str) -> dict[str, Any]:
    return metrics_of(rows(job, task))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return write_small_job(tmp_path / "job")


@pytest.fixture
def nni(job: Job, monkeypatch: pytest.MonkeyPatch) -> Manager:
    def make() -> DistillTuner:
        return DistillTuner(job=str(job.path))

    space = distill_search_space(job.hyperspace)
    manager = Manager(make, lambda task: result(job, task), space)
    manager.replace_nni(monkeypatch)
    manager.start()
    return manager


# ---- from start to end --------------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False])
def test_each_task_is_handed_out_once_and_the_lut_is_built(
    nni: Manager, job: Job, told: bool
) -> None:
    tasks = list(task_cells(job.hyperspace))
    begun = nni.ask(2)
    for i in range(len(tasks)):
        assert nni.finished_with == []
        nni.succeed(i, told=told)
        begun += nni.ask()
    assert begun == tasks
    assert nni.ask() == []
    assert nni.finished_with == [len(tasks)]
    lut = QuantizedLUT.load(job.lut_path, job.hyperspace)
    assert len(lut) == sum(len(rows(job, t).rows) for t in tasks)
    assert lut.header.teacher == "digits teacher synthetic"
    # The job is free for another experiment, which finds nothing to do.
    nni.start()
    assert nni.ask(4) == []
    assert nni.finished_with == [len(tasks)] * 2


def test_finished_tasks_are_not_handed_out_again(nni: Manager, job: Job) -> None:
    nni.ask(2)
    nni.succeed(1)
    nni.stop()
    nni.trials.clear()
    nni.start()
    assert nni.ask(9) == [t for t in task_cells(job.hyperspace) if t != "stage1_mbv2_res"]


def test_a_result_counts_for_the_task_that_it_names(nni: Manager, job: Job) -> None:
    """NNI may have handed one trial's task to another; both results arrive, nothing is repeated."""
    first, second = nni.ask(2)
    for i, ran in enumerate([second, first]):
        trial = nni.record(i, "SUCCEEDED", result(job, ran))
        nni.tuner.receive_trial_result(trial.parameter_id or 0, {}, trial.metrics)
        nni.tuner.trial_end(trial.parameter_id or 0, True)
    assert {first, second}.isdisjoint(nni.ask(9))


def test_a_swapped_trial_that_fails_is_repeated(nni: Manager, job: Job) -> None:
    first, second = nni.ask(2)
    trial = nni.record(1, "SUCCEEDED", result(job, first))
    nni.tuner.receive_trial_result(1, {}, trial.metrics)
    nni.tuner.trial_end(1, True)
    # Trial 0 is still at work, on `second`.
    assert second not in nni.ask()
    nni.fail(0)
    assert nni.ask() == [second]


# ---- failures -----------------------------------------------------------------------------------


def test_a_failed_task_comes_again_at_once(nni: Manager) -> None:
    (task,) = nni.ask()
    nni.fail(0)
    assert nni.ask() == [task]


@pytest.mark.parametrize("status", ["USER_CANCELED", "SYS_CANCELED"])
def test_a_task_lost_with_its_machine_comes_again(nni: Manager, status: str) -> None:
    (task,) = nni.ask()
    nni.fail(0, status)
    assert nni.ask(9)[-1] == task


def test_a_trial_lost_before_it_took_its_task_costs_no_second_distillation(
    nni: Manager, job: Job
) -> None:
    """NNI keeps that task in its queue, so each later trial does the task of the one before."""
    nni.ask()
    nni.fail(0, "USER_CANCELED")
    ran = []
    for before in range(9):
        assert len(nni.ask()) == 1
        # NNI gives the task of the trial before, and joins the result to that trial.
        task = nni.trials[before].parameters["task"]
        ran.append(task)
        nni.record(before + 1, "SUCCEEDED")
        nni.record(before, nni.trials[before].status, result(job, task))
        nni.tuner.receive_trial_result(before, {}, result(job, task))
        nni.tuner.trial_end(before + 1, True)
    assert sorted(ran) == sorted(task_cells(job.hyperspace))
    assert nni.ask() == []
    assert job.lut_path.is_file()


def test_a_task_lost_at_the_end_goes_to_whom_nothing_was_left(nni: Manager, job: Job) -> None:
    tasks = nni.ask(9)
    assert nni.ask(2) == []
    nni.fail(4)
    assert [t.parameters["task"] for t in nni.trials[9:]] == [tasks[4]]
    assert nni.trials[9].parameter_id == 9


def test_the_third_failure_of_a_task_ends_the_experiment_with_its_log(
    nni: Manager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "trial.stderr"
    log.write_text("loading\nSpaceEvo: no such weights\n")
    monkeypatch.setattr(seam, "trial_log", lambda trial: log)
    for i in range(2):
        assert nni.ask() == ["stage1_mbv1_dual"]
        nni.fail(i)
    nni.ask()
    with pytest.raises(
        ExperimentError,
        match=r"stage1_mbv1_dual: 3 trials have ended without a result; its last line is "
        r"'SpaceEvo: no such weights'; see .*trial\.stderr; `nnictl stop` and `nnictl resume`",
    ):
        nni.fail(2)
    assert nni.errors[0].startswith("SpaceEvo: stage1_mbv1_dual: 3 trials have ended")


def test_a_task_that_fails_three_times_leaves_the_others_alone(
    nni: Manager, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(seam, "trial_log", lambda trial: tmp_path / "none")
    tasks = list(task_cells(job.hyperspace))
    nni.ask()
    nni.succeed(0)
    for i in range(1, 4):
        assert nni.ask() == [tasks[1]]
        nni.fail(i)
    assert nni.errors == []
    for i in range(4, 4 + len(tasks) - 3):
        nni.ask()
        nni.succeed(i)
    assert nni.ask() == [tasks[-1]]
    with pytest.raises(ExperimentError, match=rf"^{tasks[1]}: 3 trials .* `nnictl resume` try"):
        nni.succeed(len(tasks) + 1)
    assert rows_folder(job).missing() == [tasks[1]]
    assert nni.finished_with == []
    assert not job.lut_path.exists()


def test_rows_that_do_not_fit_end_the_experiment(nni: Manager, job: Job) -> None:
    nni.ask()
    foreign = metrics_of(synthetic_stage_rows(job.hyperspace, "stage1_resnet", "elsewhere"))
    with pytest.raises(LUTError, match=r"the trial of stage1_resnet: .* with other settings"):
        nni.tuner.receive_trial_result(0, {}, foreign)
    assert len(nni.errors) == 1


@pytest.mark.parametrize("value", [0.5, {"default": 0.5}, {"task": "stage1_resnet"}])
def test_foreign_results_end_the_experiment(nni: Manager, value: Any) -> None:
    nni.ask()
    message = "without its rows; trialCommand must be `python3 -m nni_spaceevo.plugin.distill_trial"
    with pytest.raises(ExperimentError, match=message):
        nni.tuner.receive_trial_result(0, {}, value)


# ---- stop and resume ----------------------------------------------------------------------------


def test_resuming_leaves_restarted_trials_alone_and_repeats_the_failed(
    nni: Manager, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, failed, restarted = nni.ask(3)
    nni.succeed(0)
    nni.fail(1)
    (again,) = nni.ask()
    assert again == failed
    nni.record(3, "USER_CANCELED")
    nni.resume(monkeypatch)
    # NNI counts on from the largest parameter id of the trials that it starts again.
    nni.next_id = 3
    nni.record(2, "ADD_RESUMED")
    begun = nni.ask(9)
    assert failed in begun
    assert restarted not in begun
    assert len(begun) == 7
    # NNI tells the tuner of a restarted trial's result, but not of its end.
    nni.record(2, "FAILED")
    assert nni.ask() == [restarted]


def test_results_that_the_tuner_has_missed_are_taken_from_nni(
    nni: Manager, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = nni.ask()
    nni.record(0, "SUCCEEDED", result(job, task))
    nni.resume(monkeypatch)
    assert task not in nni.ask(9)
    assert rows_folder(job).find(task) == rows(job, task)


def test_imported_results_are_merged(
    nni: Manager, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"parameter": {}, "value": result(job, "stage2_resnet")}
    nni.tuner.import_data([{"parameter": {}, "value": 0.5}, good, good])
    assert rows_folder(job).find("stage2_resnet") == rows(job, "stage2_resnet")
    assert "stage2_resnet" not in nni.ask(9)
    assert "SpaceEvo: imported result left out: a trial reported '0.5'" in capsys.readouterr().err


# ---- checks -------------------------------------------------------------------------------------


def test_the_examples_search_space_is_its_hyperspace(digits: Hyperspace) -> None:
    text = (packed_folder("examples") / "digits" / "distill.yml").read_text()
    config = yaml.safe_load(text)
    assert config["searchSpace"] == distill_search_space(digits)
    assert len(task_cells(digits)) == 16
    class_args = config["tuner"]["classArgs"]
    assert convert(class_args, distill_tuner.DistillTunerArgs, "").job == "spaceevo.yaml"
    assert config["trialCommand"] == f"{distill_tuner.TRIAL_COMMAND} spaceevo.yaml"


def test_another_search_space_is_refused(nni: Manager, job: Job) -> None:
    space = distill_search_space(job.hyperspace)
    nni.tuner.update_search_space(space)
    space["task"]["_value"] = ["stage1_resnet"]
    with pytest.raises(ConfigError, match=r"key 'task': given .*, expected .*'stage3_resnet'"):
        nni.tuner.update_search_space(space)


def test_a_second_experiment_with_the_job_is_refused(nni: Manager, job: Job) -> None:
    with pytest.raises(LockedError, match="another experiment is distilling with this job"):
        DistillTuner(job=str(job.path))


@pytest.mark.usefixtures("nni")
@pytest.mark.parametrize(
    ("class_args", "message"),
    [
        ({}, "tuner classArgs: Object missing required field `job`"),
        (
            {"job": "x", "population": 3},
            "unknown field `population`; allowed keys: job, optimize_mode",
        ),
        ({"job": "nowhere.yaml"}, "nowhere.yaml: cannot read"),
    ],
)
def test_wrong_class_args_are_one_line(
    capsys: pytest.CaptureFixture[str], class_args: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpaceEvoError, match=message) as caught:
        DistillTuner(**class_args)
    assert f"SpaceEvo: {caught.value}\n" in capsys.readouterr().err


def test_damaged_rows_are_named_at_once(nni: Manager, job: Job) -> None:
    nni.stop()
    job.rows_path.mkdir(parents=True)
    (job.rows_path / "stage1_resnet.json").write_text("{")
    with pytest.raises(LUTError, match=r"stage1_resnet\.json: not valid JSON"):
        nni.start()


@pytest.mark.parametrize(
    ("service", "checked"),
    [
        ({"platform": "local"}, True),
        ({"platform": "remote"}, False),
        ([{"platform": "local"}], False),
    ],
)
def test_only_a_local_trials_python_is_looked_for_here(
    nni: Manager, job: Job, monkeypatch: pytest.MonkeyPatch, service: Any, checked: bool
) -> None:
    nni.stop()
    config = {"trainingService": service, "trialCommand": "python9 -m x"}
    monkeypatch.setattr(seam, "experiment_config", lambda: config)
    outcome: Callable[[], Any] = nni.start
    if checked:
        with pytest.raises(ConfigError, match="no 'python9' on PATH"):
            outcome()
    else:
        outcome()


def test_a_lut_of_other_settings_is_refused_at_once(nni: Manager, job: Job) -> None:
    for i in range(9):
        nni.ask()
        nni.succeed(i)
    write_small_job(job.path.parent, seed=7)
    with pytest.raises(LUTError, match="made with other settings"):
        nni.start()


def test_rows_of_other_settings_are_distilled_again(nni: Manager, job: Job) -> None:
    nni.stop()
    stale = synthetic_stage_rows(job.hyperspace, "stage1_resnet", "before")
    job.rows_path.mkdir(parents=True)
    (job.rows_path / "stage1_resnet.json").write_text(to_json(stale))
    nni.start()
    assert "stage1_resnet" in nni.ask(9)
