"""The tuner of a subnet search between NNI's calls and NNI's records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nni as nni_package
import pytest
import yaml
from jobs.small_job import SPACE, write_small_job

from nni_spaceevo.errors import ConfigError, ConstraintError, LockedError, SpaceEvoError
from nni_spaceevo.files import convert, packed_folder, read_json
from nni_spaceevo.hyperspace import SubnetCode
from nni_spaceevo.jobs import subnets
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.subnets import SubnetEvaluator, SubnetResults, search_subnets, subnets_folder
from nni_spaceevo.plugin import seam, subnet_tuner
from nni_spaceevo.plugin.seam import ExperimentError
from nni_spaceevo.plugin.subnet_trial import code_of, task_of
from nni_spaceevo.plugin.subnet_tuner import SubnetTuner
from nni_spaceevo.testing import MACsLatency

from .manager import Manager
from .stand_in import Evaluator, accuracy

SUBNETS = {
    "constraint_quantiles": [0.3, 0.8],
    "evolution": {"population": 8, "mutations": 2, "crossovers": 2, "generations": 2},
    "surrogate": {"first": 6, "rounds": 2, "candidates": 2},
}


def result(task: str, supernet: str = "supernet") -> dict[str, Any]:
    value = accuracy(code_of(task))
    return {"default": value, "loss": 0.5, "subnet": task, "supernet": supernet}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(subnets, "SubnetEvaluator", Evaluator)
    monkeypatch.setattr("nni_spaceevo.search.subnets._LOOK", 16)
    for module in (subnets, subnet_tuner):
        monkeypatch.setattr(module, "prepared_predictor", lambda job: MACsLatency(1e7))
    return write_small_job(tmp_path / "job", subnets=SUBNETS)


@pytest.fixture
def nni(job: Job, monkeypatch: pytest.MonkeyPatch) -> Manager:
    manager = Manager(lambda: SubnetTuner(job=str(job.path), space=SPACE), result, {})
    manager.replace_nni(monkeypatch)
    manager.start()
    return manager


def finish(nni: Manager) -> None:
    """Trials in parallel until there is nothing to do."""
    while not nni.finished_with:
        nni.ask(9)
        for i, trial in enumerate(nni.trials):
            if trial.status == "RUNNING":
                nni.succeed(i)


def found(job: Job, seed: int = 0) -> SubnetResults:
    folder = subnets_folder(job, job.hyperspace.space(SPACE), seed)
    return read_json(folder / "subnets.json", SubnetResults)


# ---- from start to end --------------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False])
def test_it_finds_what_the_command_finds(
    nni: Manager, job: Job, tmp_path: Path, told: bool
) -> None:
    nni.ask(2)
    i = 0
    while not nni.finished_with:
        # The later one of two first, as trials may end.
        for j in sorted(range(i, len(nni.trials)), reverse=True):
            nni.succeed(j, told=told)
            i += 1
        nni.ask(2)
    alone = write_small_job(tmp_path / "alone", subnets=SUBNETS)
    assert found(job) == search_subnets(alone, alone.hyperspace.space(SPACE))
    tasks = [nni.task(trial) for trial in nni.trials]
    assert len(set(tasks)) == len(tasks) == len(found(job).evaluated)
    assert nni.finished_with == [len(tasks)]
    # The supernet is free for another experiment, which finds nothing to do.
    nni.start()
    assert nni.ask(4) == []
    assert nni.finished_with == [len(tasks)] * 2


def test_a_trial_is_told_what_its_subnet_costs(nni: Manager, job: Job) -> None:
    finish(nni)
    evaluated = {t.parameters["predicted_ms"] for t in nni.trials}
    assert evaluated == {round(ms, 6) for ms, _ in found(job).evaluated}
    costs = {code_of(t.parameters["subnet"]): t.parameters for t in nni.trials}
    for best in found(job).best:
        given = costs[best.subnet]
        code = SubnetCode.parse(best.subnet)
        assert (given["mflops"], given["mparams"]) == (best.mflops, best.mparams)
        assert (given["space"], given["seed"]) == (SPACE, 0)
        assert given["resolution"] == code.resolution
        assert given["blocks"] == sum(len(chain) for chain in code.stages)


def test_parameters_go_through_nnis_reader(nni: Manager) -> None:
    (task,) = nni.ask()
    parameters = nni.trials[0].parameters
    assert nni_package.load(nni_package.dump(parameters)) == parameters
    assert task_of(SubnetCode.parse(code_of(task))) == task


def test_those_who_find_nothing_to_do_are_told_when_there_is(nni: Manager) -> None:
    first = nni.ask(99)
    assert nni.ask(1) == []
    for i in range(len(first)):
        assert len(nni.trials) == len(first)
        nni.succeed(i)
    more = nni.trials[len(first) :]
    assert more
    assert [t.parameter_id for t in more] == [*range(len(first), len(first) + len(more))]


def test_a_result_counts_for_the_subnet_that_it_names(nni: Manager, job: Job) -> None:
    """NNI may have handed one trial's subnet to another."""
    first, second = nni.ask(2)
    for i, ran in enumerate([second, first]):
        trial = nni.record(i, "SUCCEEDED", result(ran))
        nni.tuner.receive_trial_result(trial.parameter_id or 0, {}, trial.metrics)
        nni.tuner.trial_end(trial.parameter_id or 0, True)
    finish(nni)
    assert {a for _, a in found(job).evaluated} == {
        accuracy(code_of(nni.task(t))) for t in nni.trials
    }


# ---- failures -----------------------------------------------------------------------------------


def test_a_failed_subnet_comes_again_and_the_third_failure_ends_the_experiment(
    nni: Manager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "trial.stderr"
    log.write_text("SpaceEvo: no such supernet\n")
    monkeypatch.setattr(seam, "trial_log", lambda trial: log)
    (task,) = nni.ask()
    for i in range(2):
        nni.fail(i)
        assert nni.ask() == [task]
    with pytest.raises(
        ExperimentError,
        match=r"3 trials have ended without a result; its last line is 'SpaceEvo: no such "
        r"supernet'; see .*trial\.stderr; `nnictl stop` and `nnictl resume` try again",
    ):
        nni.fail(2)
    assert nni.errors[0].startswith(f"SpaceEvo: {task}: 3 trials have ended")


@pytest.mark.parametrize("value", [0.5, {"default": 0.5}, {"default": 0.5, "subnet": "d1"}])
def test_foreign_results_end_the_experiment(nni: Manager, value: Any) -> None:
    nni.ask()
    message = "without its subnet; trialCommand must be `python3 -m nni_spaceevo.plugin.subnet"
    with pytest.raises(ExperimentError, match=message):
        nni.tuner.receive_trial_result(0, {}, value)


def test_a_result_of_another_supernet_ends_the_experiment(nni: Manager, job: Job) -> None:
    (task,) = nni.ask()
    with pytest.raises(ExperimentError, match="of another supernet, or on other images"):
        nni.tuner.receive_trial_result(0, {}, result(task, "another"))
    assert len(nni.errors) == 1
    with pytest.raises(ConfigError, match=r"a trial's result: .*accuracy"):
        nni.tuner.receive_trial_result(0, {}, {**result(task), "default": "high"})


# ---- stop, kill and resume ----------------------------------------------------------------------


def test_a_killed_search_ends_as_an_undisturbed_one(
    nni: Manager, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nni.ask(4)
    nni.succeed(1)
    nni.fail(2)
    # Reported, but the tuner has not heard of it.
    nni.record(3, "SUCCEEDED", result(nni.task(nni.trials[3])))
    restarted = nni.task(nni.trials[0])
    nni.resume(monkeypatch)
    nni.record(0, "ADD_RESUMED")
    begun = nni.ask(99)
    assert not {restarted, nni.task(nni.trials[1]), nni.task(nni.trials[3])} & {*begun}
    assert nni.task(nni.trials[2]) in begun
    # NNI tells the tuner of a restarted trial's result, but not of its end.
    trial = nni.record(0, "SUCCEEDED", result(restarted))
    nni.tuner.receive_trial_result(0, {}, trial.metrics)
    finish(nni)
    assert nni.finished_with
    alone = write_small_job(tmp_path / "alone", subnets=SUBNETS)
    assert found(job) == search_subnets(alone, alone.hyperspace.space(SPACE))


def test_what_was_evaluated_is_not_a_trial(nni: Manager, job: Job) -> None:
    finish(nni)
    path = subnets_folder(job, job.hyperspace.space(SPACE)) / "evaluations.json"
    kept = json.loads(path.read_text())
    assert len(kept["subnets"]) == len(nni.trials)
    path.write_text(json.dumps({**kept, "subnets": kept["subnets"][:-3]}))
    before, nni.next_id = found(job), 0
    nni.trials.clear()
    nni.finished_with.clear()
    nni.start()
    finish(nni)
    assert [code_of(nni.task(t)) for t in nni.trials] == [s["subnet"] for s in kept["subnets"][-3:]]
    assert found(job) == before


def test_imported_results_are_kept_unless_of_another_supernet(
    nni: Manager, capsys: pytest.CaptureFixture[str]
) -> None:
    stale, good = nni.ask(2)
    values = [result(stale, "another"), result(good)]
    nni.stop()
    nni.start()
    nni.tuner.import_data([{"parameter": {}, "value": value} for value in values])
    begun = nni.ask(99)
    assert stale in begun
    assert good not in begun
    assert "SpaceEvo: imported result left out: a trial evaluated" in capsys.readouterr().err


# ---- checks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["digits", "fashion_mnist"])
def test_the_examples_class_args_are_read(dataset: str) -> None:
    text = (packed_folder("examples") / dataset / "subnets.yml").read_text()
    config = yaml.safe_load(text)
    args = convert(config["tuner"]["classArgs"], subnet_tuner.SubnetTunerArgs, "")
    assert args == subnet_tuner.SubnetTunerArgs(job="spaceevo.yaml")
    assert config["trialCommand"] == f"{subnet_tuner.TRIAL_COMMAND} spaceevo.yaml"
    assert config["searchSpace"] == {}


def test_another_search_space_is_refused(nni: Manager) -> None:
    nni.tuner.update_search_space({})
    message = r"key 'subnet': given .*, expected no such key as a subnet search, whose space is"
    with pytest.raises(ConfigError, match=message):
        nni.tuner.update_search_space({"subnet": {"_type": "choice", "_value": []}})


def test_a_second_search_of_the_supernet_is_refused(nni: Manager, job: Job) -> None:
    assert nni.ask()
    holder = nni.tuner
    nni.start()
    with pytest.raises(LockedError, match="another experiment is searching subnets with this job"):
        nni.ask()
    assert len(nni.errors) == 1
    # Another supernet of the job is another search.
    nni.make = lambda: SubnetTuner(job=str(job.path), space=SPACE, seed=1)
    nni.start()
    assert nni.ask()
    holder._held.close()


@pytest.mark.usefixtures("nni")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rounds": 3}, ConfigError, "allowed keys: job, space, seed, constraints_ms"),
        ({"job": "nowhere.yaml"}, SpaceEvoError, "nowhere.yaml: cannot read"),
        ({"space": "best"}, ConfigError, "space 'best': no .*search.json"),
    ],
)
def test_wrong_class_args_are_one_line(
    job: Job,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    error: type[SpaceEvoError],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as caught:
        SubnetTuner(**{"job": str(job.path), "space": SPACE, **changes})
    assert f"SpaceEvo: {caught.value}\n" in capsys.readouterr().err


def test_constraints_replace_those_of_the_job(nni: Manager, job: Job) -> None:
    nni.ask()
    (T,) = nni.tuner.search.constraints_ms[1:]
    nni.stop()
    nni.trials.clear()
    nni.make = lambda: SubnetTuner(job=str(job.path), space=SPACE, constraints_ms=[T])
    nni.start()
    finish(nni)
    assert found(job).constraints_ms == (T,)


def test_what_takes_seconds_to_find_out_is_told_before_the_first_trial(
    nni: Manager, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(seam, "tell_terminal", told.append)
    nni.make = lambda: SubnetTuner(job=str(job.path), space=SPACE, constraints_ms=[1e-6])
    nni.start()
    # As on a resume, where NNI tells old results first and asks afterwards.
    for call in (lambda: nni.tuner.import_data([]), nni.ask):
        with pytest.raises(ConstraintError, match="below the fastest subnet"):
            call()
    assert "below the fastest subnet" in nni.errors[0]
    assert "cannot start: latency constraint" in told[0]
    # What has failed holds nothing back.
    nni.make = lambda: SubnetTuner(job=str(job.path), space=SPACE)
    nni.start()
    assert nni.ask()


def test_a_supernet_that_is_not_there_is_told(
    nni: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subnets, "SubnetEvaluator", SubnetEvaluator)
    with pytest.raises(ConfigError, match="no such supernet; train it first"):
        nni.ask()
