"""The strategy in one process, on NNI's sequential engine and on a stand-in for the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nni
import pytest
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.execution import ExecutionEngine, SequentialExecutionEngine
from nni.nas.execution.event import (
    FinalMetricEvent,
    IntermediateMetricEvent,
    ModelEventType,
    TrainingEndEvent,
)
from nni.nas.space import ModelStatus, SimplifiedModelSpace
from nni.nas.utils.serializer import TorchSerializer
from nni.runtime.tuner_command_channel import CommandType, TunerCommandChannel
from nni.runtime.tuner_command_channel.command_type import RequestTrialJobs

from nni_spaceevo import SpaceEvo as PublicSpaceEvo
from nni_spaceevo.errors import (
    CheckpointError,
    ConfigError,
    ConstraintError,
    LockedError,
    LUTError,
)
from nni_spaceevo.files import exclusive
from nni_spaceevo.hyperspace import SpaceCode
from nni_spaceevo.plugin import nas_seam
from nni_spaceevo.plugin.evaluator import SpaceScoreEvaluator
from nni_spaceevo.plugin.model_space import FrozenSpace, HyperspaceModelSpace
from nni_spaceevo.plugin.strategy import SpaceEvo
from nni_spaceevo.search import make_search
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace()
BEST = HYPERSPACE.space("synthetic-012-201")
LUT = synthetic_lut(HYPERSPACE, BEST)
SETTINGS: dict[str, Any] = {"population_size": 20, "sample_size": 6, "samples": 2000}


def strategy(evaluations: int = 300, **settings: Any) -> SpaceEvo:
    return SpaceEvo(LUT, [1.5], evaluations=evaluations, **{**SETTINGS, **settings})


def model_space(evaluator: Any = None) -> SimplifiedModelSpace:
    evaluator = evaluator or SpaceScoreEvaluator(LUT, [1.5], samples=2000, seed=0)
    return SimplifiedModelSpace.from_model(HyperspaceModelSpace(HYPERSPACE), evaluator)


def run(strategy: SpaceEvo, most: int | None = None, evaluator: Any = None) -> list[FrozenSpace]:
    """The models that became trials."""
    engine = SequentialExecutionEngine(max_model_count=most)
    strategy(model_space(evaluator), engine)
    return list(engine.list_models())


def undisturbed(evaluations: int) -> list[str]:
    """The spaces of the search, in order, computed here."""
    like = strategy(evaluations)
    search = make_search(HYPERSPACE, like._config)
    for _ in range(evaluations):
        code = search.ask()
        search.tell(code, like.scoring.score(code).score)
    return [str(code) for code in search.scores]


# ---- which spaces become trials -----------------------------------------------------------------


def test_it_is_a_public_name() -> None:
    assert PublicSpaceEvo is SpaceEvo


def test_incumbents_become_trials_and_the_last_is_the_known_best() -> None:
    search = strategy()
    models = run(search)
    assert search.best.code == BEST
    assert [str(m.code) for m in models] == [c.space for c in search.incumbents]
    assert models[-1].code == BEST
    scores = [m.metric for m in models]
    assert scores == sorted(set(scores)) == [c.score for c in search.incumbents]
    assert scores[-1] == search.best.score
    assert len(models) < 30


def test_the_intermediate_results_are_the_best_score_so_far() -> None:
    search = strategy()
    models = run(search)
    every = undisturbed(300)
    step = 300 // 50
    for model, incumbent in zip(models, search.incumbents, strict=True):
        so_far = [search.scoring.score(HYPERSPACE.space(c)).score for c in every]
        marks = [*range(1, incumbent.evaluations, step), incumbent.evaluations]
        assert model.metrics.intermediates == [max(so_far[:mark]) for mark in marks]
        assert model.metrics.intermediates[-1] == model.metric


def test_with_every_space_a_trial_the_search_ends_with_the_budget() -> None:
    search = strategy(trials="every")
    models = run(search, most=25)
    assert [str(m.code) for m in models] == undisturbed(25)
    assert [m.metric for m in models] == [search.scoring.score(m.code).score for m in models]
    assert search.best.score == max(m.metric for m in models)
    assert search.incumbents[-1].space == str(search.best.code)


def test_it_ends_when_every_space_is_scored() -> None:
    search = strategy(10_000)
    assert run(search)[-1].code == search.best.code == BEST
    assert search.state_dict()["evaluations"] == HYPERSPACE.num_spaces
    assert len(run(strategy(5, trials="every"))) == 5


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_last_trial_of_a_budget_is_kept_for_the_best(
    most: int, caplog: pytest.LogCaptureFixture
) -> None:
    models = run(strategy(), most=most)
    assert len(models) == most
    assert models[-1].code == BEST
    assert "gets no trial: the experiment's budget is used up" in caplog.text


def test_a_local_search_at_the_end_is_a_setting() -> None:
    search = strategy(200, evolve=100)
    run(search)
    assert search.best.code == BEST


def test_what_a_users_evaluator_reports_does_not_guide_the_search() -> None:
    seen: list[SpaceCode] = []

    def train(space: SpaceCode) -> None:
        seen.append(space)
        nni.report_final_result(-float(len(seen)))

    search = strategy()
    models = run(search, evaluator=FunctionalEvaluator(train))
    assert [str(code) for code in seen] == [c.space for c in search.incumbents]
    assert [m.metric for m in models] == [-float(i + 1) for i in range(len(seen))]
    assert search.best.code == BEST
    assert search.state_dict()["reported"] == {str(m.code): m.metric for m in models}


# ---- state --------------------------------------------------------------------------------------


def test_the_state_is_plain_and_continues_to_the_same_result(tmp_path: Path) -> None:
    first, whole = strategy(120), strategy(300)
    run(first)
    run(whole)
    state = first.state_dict()
    assert json.loads(json.dumps(state)) == state
    # As NNI's checkpoint keeps it, which is read without pickled objects.
    TorchSerializer().save(state, tmp_path / "state.ckpt")
    for again in (json.loads(json.dumps(state)), TorchSerializer().load(tmp_path / "state.ckpt")):
        continued = strategy(300)
        space, engine = model_space(), SequentialExecutionEngine()
        continued.initialize(space, engine)
        continued.load_state_dict(again)
        continued.run()
        assert continued.best == whole.best
        assert continued.incumbents == whole.incumbents
        # Those that have reported are not run again.
        shown = [str(m.code) for m in engine.list_models()]
        assert shown == [c.space for c in whole.incumbents if c.evaluations > 120]


def dies_at(search: SpaceEvo, evaluations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    score, calls = search.scoring.score, []

    def dies(code: SpaceCode) -> Any:
        calls.append(code)
        if len(calls) > evaluations:
            raise KeyboardInterrupt
        return score(code)

    monkeypatch.setitem(search.scoring.__dict__, "score", dies)


@pytest.mark.parametrize("trials", ["incumbents", "every"])
def test_an_interrupted_search_continues_from_its_file(
    trials: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nni_spaceevo.plugin.strategy._SAVE_EVERY_S", 0.0)
    whole = strategy(60, trials=trials)
    expected = [str(m.code) for m in run(whole)]
    first = strategy(60, trials=trials, state=tmp_path / "state.json")
    dies_at(first, 35, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(first)
    assert first.state_dict()["evaluations"] == 35
    again = strategy(60, trials=trials, state=tmp_path / "state.json")
    shown = [str(m.code) for m in run(again)]
    assert again.best == whole.best
    assert again.state_dict() == whole.state_dict()
    assert 0 < len(shown) < len(expected)
    assert shown == expected[-len(shown) :]


def test_ctrl_c_leaves_the_last_saved_state(monkeypatch: pytest.MonkeyPatch) -> None:
    search = strategy()
    dies_at(search, 100, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(search)
    state, again = search.state_dict(), strategy()
    assert state["evaluations"] <= 100
    again.initialize(model_space(), SequentialExecutionEngine())
    again.load_state_dict(state)
    again.run()
    assert again.best.code == BEST


def test_a_state_with_less_than_is_done_already_changes_nothing(tmp_path: Path) -> None:
    early, late = strategy(50), strategy(120)
    run(early)
    run(late)
    late.load_state_dict(early.state_dict())
    assert late.state_dict()["evaluations"] == 120
    assert late.best.score >= early.best.score


def test_the_state_of_another_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    run(strategy(20, state=path))
    for change in ({"seed": 1}, {"samples": 3000}, {"population_size": 9}, {"trials": "every"}):
        with pytest.raises(CheckpointError, match=r"state\.json: belongs to a search with another"):
            strategy(20, state=path, **change)
    with pytest.raises(CheckpointError, match="strategy state: belongs to"):
        strategy(seed=1).load_state_dict(strategy().state_dict())
    with pytest.raises(ConfigError, match="strategy state schema 9; this version reads 1"):
        strategy().load_state_dict({**strategy().state_dict(), "schema": 9})
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"state\.json: not valid JSON"):
        strategy(20, state=path)


def test_two_searches_cannot_share_a_state_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    with exclusive(path), pytest.raises(LockedError, match=r"state\.json: process \d+ is writing"):
        strategy(20, state=path)
    first = strategy(20, state=path)
    with exclusive(path), pytest.raises(LockedError, match=r"state\.json: process \d+ is writing"):
        run(first)


KILLED = """
import sys, time
from pathlib import Path
from tests.plugin.test_strategy import *
search = strategy(300, state=Path(sys.argv[1]))
score = search.scoring.score
search.scoring.__dict__["score"] = lambda code: time.sleep(0.03) or score(code)
run(search)
"""


@pytest.mark.slow
def test_a_killed_search_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], cwd=Path(__file__).parents[2]
    )
    deadline = time.monotonic() + 300
    while not (path.exists() and json.loads(path.read_text())["evaluations"]):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = json.loads(path.read_text())["evaluations"]
    assert 0 < done < 300
    continued, whole = strategy(300, state=path), strategy(300)
    assert repr(continued) == f"SpaceEvo(synthetic, T = 1.5 ms, {done} of 300 spaces)"
    run(continued)
    run(whole)
    assert continued.best == whole.best
    assert continued.incumbents == whole.incumbents
    assert continued.state_dict() == whole.state_dict()


# ---- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"trials": "some"}, ConfigError, "trials must be 'incumbents' or 'every', given 'some'"),
        ({"evaluations": 0}, ConfigError, "evaluations must be at least 1, given 0"),
        ({"evaluations": 1e3}, ConfigError, "evaluations must be at least 1, given 1000.0"),
        ({"populaton": 3}, ConfigError, "unknown setting 'populaton'; known: a, estimator, evolve"),
        ({"sample_size": 99}, ConfigError, r"sample_size must be 1 to population_size \(20\)"),
        ({"samples": "many"}, ConfigError, "Expected `int`, got `str`"),
        ({"constraints_ms": [900]}, ConstraintError, "above the slowest subnet"),
        ({"constraints_ms": []}, ConfigError, "constraints_ms must be at least one latency"),
        (
            {"hyperspace": synthetic_hyperspace(2, "other")},
            LUTError,
            "made for hyperspace 'synthetic'.*given 'other'",
        ),
        ({"lut": "nowhere.lut", "hyperspace": HYPERSPACE}, LUTError, r"nowhere\.lut: no such LUT"),
    ],
)
def test_a_mistake_is_told_before_any_work(
    settings: Any, error: type[Exception], message: str
) -> None:
    arguments = {"lut": LUT, "constraints_ms": [1.5], **SETTINGS, **settings}
    with pytest.raises(error, match=message):
        SpaceEvo(**arguments)


def test_another_model_space_is_refused() -> None:
    other = HyperspaceModelSpace(synthetic_hyperspace(2))
    space = SimplifiedModelSpace.from_model(other, SpaceScoreEvaluator(LUT, [1.5]))
    message = "model space is not .* SpaceEvo's LUT: .* key 'stage3/block_type': given nothing"
    with pytest.raises(ConfigError, match=message):
        strategy()(space, SequentialExecutionEngine())


def test_a_failing_trial_of_the_sequential_engine_is_not_hidden() -> None:
    def fails(space: SpaceCode) -> None:
        raise RuntimeError("no GPU")

    with pytest.raises(RuntimeError, match="no GPU"):
        run(strategy(), evaluator=FunctionalEvaluator(fails))


def test_its_text_says_how_far_it_is() -> None:
    search = strategy(20)
    assert repr(search) == "SpaceEvo(synthetic, T = 1.5 ms, 0 of 20 spaces)"
    with pytest.raises(ValueError, match="no space has been scored"):
        _ = search.best
    run(search)
    assert repr(search) == "SpaceEvo(synthetic, T = 1.5 ms, 20 of 20 spaces)"


# ---- an engine with workers ---------------------------------------------------------------------


class Experiment:
    """Stands in for a `NasExperiment`, the manager's client."""

    def __init__(self, most: int | None) -> None:
        self.config = type("Config", (), {"max_trial_number": most})()
        self.earlier = 0

    def _send_space_to_nni_manager(self) -> None:
        raise AssertionError("`nnictl view` then refuses the experiment")

    def list_trial_jobs(self) -> list[int]:
        return [0] * self.earlier

    def get_status(self) -> str:
        return "RUNNING"


class Workers(ExecutionEngine):
    """Some workers; whoever is asked for its state lets a little time pass."""

    def __init__(self, workers: int, most: int | None = None) -> None:
        super().__init__()
        self.nodejs_binding = Experiment(most)
        self.idle = workers
        self.models: list[FrozenSpace] = []
        self.earlier: list[FrozenSpace] = []
        self.queued: list[FrozenSpace] = []
        self.most_queued = self.most_running = 0

    def submit_models(self, *models: Any) -> None:
        for model in models:
            model.status = ModelStatus.Training
            self.idle -= 1
            self.models.append(model)
            self.queued.append(model)
        self.most_queued = max(self.most_queued, len(self.queued))
        running = sum(m.status == ModelStatus.Training for m in self.models)
        self.most_running = max(self.most_running, running)

    def list_models(self, status: Any = None) -> list[FrozenSpace]:
        return [*self.earlier, *self.models]

    def idle_worker_available(self) -> bool:
        return self.idle > 0

    def budget_available(self) -> bool:
        if self.queued:
            self.dispatch_model_event(IntermediateMetricEvent(self.queued.pop(0), 0.1))
        elif running := [m for m in self.models if m.status == ModelStatus.Training]:
            model = running[0]
            self.dispatch_model_event(FinalMetricEvent(model, {"default": 1.0, "more": "text"}))
            self.dispatch_model_event(TrainingEndEvent(model, ModelStatus.Trained))
            self.idle += 1
        return True


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nas_seam, "_POLL_S", 0.001)
    monkeypatch.setattr(nas_seam, "_SETTLE_S", 0.01)


class Ending(Workers):
    """Goes on while the strategy waits for the last trials."""

    def __init__(self, workers: int, most: int | None = None) -> None:
        super().__init__(workers, most)
        self.nodejs_binding.get_status = lambda: str(self.budget_available() and "RUNNING")


def test_only_one_model_at_a_time_is_queued_while_many_run() -> None:
    engine, search = Ending(3), strategy(12, trials="every")
    search(model_space(), engine)
    assert [str(m.code) for m in engine.models] == undisturbed(12)
    assert engine.most_queued == 1
    assert engine.most_running == 3
    assert all(m.metric == 1.0 for m in engine.models)
    assert search.state_dict()["reported"] == dict.fromkeys(undisturbed(12), 1.0)
    # Others may use the engine now.
    assert not any(engine._callbacks[kind] for kind in ModelEventType)


def test_the_search_does_not_wait_for_the_incumbents_trials() -> None:
    engine, search = Ending(1), strategy()
    search(model_space(), engine)
    assert [str(m.code) for m in engine.models] == [c.space for c in search.incumbents]
    assert engine.models[-1].code == BEST


@pytest.mark.parametrize("trials", ["incumbents", "every"])
def test_a_resumed_experiment_keeps_its_trials(trials: Any) -> None:
    """From NNI's checkpoint of the start, as after a kill without a state file."""
    whole = Ending(1)
    strategy(40, trials=trials)(model_space(), whole)
    resumed = Ending(1, most=len(whole.models))
    resumed.earlier, resumed.nodejs_binding.earlier = whole.models[:3], 3
    search = strategy(40, trials=trials)
    search(model_space(), resumed)
    assert [m.code for m in resumed.models] == [m.code for m in whole.models[3:]]
    assert set(search.state_dict()["reported"]) == {str(m.code) for m in whole.models}


def test_a_resumed_experiment_whose_trials_are_all_done_knows_its_best() -> None:
    whole = Ending(1)
    first = strategy(10, trials="every")
    first(model_space(), whole)
    resumed = Ending(1, most=10)
    resumed.earlier, resumed.nodejs_binding.earlier = whole.models, 10
    search = strategy(10, trials="every")
    search(model_space(), resumed)
    assert resumed.models == []
    assert search.best == first.best


def test_what_a_manager_tells_on_resume_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy()
    said = [(kind, "[]") for kind in (CommandType.ImportData, CommandType.AddCustomizedTrialJob)]
    commands = iter([*said, (CommandType.RequestTrialJobs, "2"), (CommandType.Ping, "")])
    channel = TunerCommandChannel("ws://localhost:1/tuner")
    monkeypatch.setattr(channel, "_receive", lambda: next(commands))
    assert channel.receive() == RequestTrialJobs(2)
    with pytest.raises(ValueError, match="Unknown command type"):
        channel.receive()


def test_waiting_ends_with_the_experiment() -> None:
    engine = Workers(1)
    engine.nodejs_binding.get_status = lambda: "STOPPED"
    strategy(1)(model_space(), engine)
    assert engine.models[0].status == ModelStatus.Training
