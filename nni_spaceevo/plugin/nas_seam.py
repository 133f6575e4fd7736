"""The seam to NNI's NAS: what a strategy needs of NNI's engines, and where they are awkward."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from nni.nas.execution import ExecutionEngine
from nni.nas.execution.event import FinalMetricEvent, ModelEvent, ModelEventType
from nni.nas.space import ExecutableModelSpace
from nni.runtime.tuner_command_channel import TunerCommandChannel
from nni.runtime.tuner_command_channel.command_type import CommandType, TunerIncomingCommand

_POLL_S = 0.2
# Between the manager's end and the last event of a trial.
_SETTLE_S = 5.0
_TOLD_ON_RESUME = (str(CommandType.ImportData), str(CommandType.AddCustomizedTrialJob))

Note = Callable[[ExecutableModelSpace, float], None]
Meanwhile = Callable[[], None]


def keep_viewable(experiment: Any) -> None:
    """Keep a `NasExperiment` from storing its search space; call it before `run`.

    `nnictl view` refuses a NAS experiment with a stored search space. The web UI shows what each
    trial has chosen all the same. `SpaceEvo` does this itself; with NNI's own strategies it is the
    caller's to do.
    """
    experiment._send_space_to_nni_manager = lambda: None


def mend_resume() -> None:
    """Let NNI resume a `NasExperiment` that has trials; call it before `resume`.

    The manager tells the engine which trials have ended and which it starts again. Of these
    commands, unknown to it, the engine's listening thread dies (NNI 3.0), and the experiment waits
    for ever. Here they are passed over: `Trials.known` has the trials. `SpaceEvo` does this itself.
    """
    receive = TunerCommandChannel.receive
    if receive.__name__ == "receive_known":
        return

    def receive_known(channel: TunerCommandChannel) -> TunerIncomingCommand:
        while True:
            try:
                return receive(channel)
            except ValueError as error:
                if not str(error).endswith(_TOLD_ON_RESUME):
                    raise

    TunerCommandChannel.receive = receive_known


class Trials:
    """Sends models into trials, none of which gets another's parameters.

    With `trialConcurrency` above 1 NNI's local platform hands queued parameters to whichever trial
    asks first. Here a model is sent when the one before has been heard of, so that no two are
    queued: an evaluator that reports intermediate results early runs in parallel.

    Parameters
    ----------
    engine : NNI's engine, sequential or with a training service
    note : receives a model and its default metric when its trial reports the final result, in
        another thread

    Attributes
    ----------
    left : how many more trials the experiment may have; None for any number
    """

    def __init__(self, engine: ExecutionEngine, note: Note) -> None:
        self._engine = engine
        self._note = note
        # Only with a training service there is a manager, whose client the experiment is.
        self._experiment = getattr(engine, "nodejs_binding", None)
        if self._experiment is not None:
            keep_viewable(self._experiment)
        self.left: int | None = None
        # NNI's engines refer to models weakly.
        self._submitted: list[ExecutableModelSpace] = []
        self._is_taken = True

    def __enter__(self) -> Trials:
        for kind in ModelEventType:
            self._engine.register_model_event_callback(kind, self._hear)
        self.left = self._trials_left()
        return self

    def __exit__(self, *error: object) -> None:
        for kind in ModelEventType:
            self._engine.unregister_model_event_callback(kind, self._hear)

    def _trials_left(self) -> int | None:
        if self._experiment is None:
            limit, used = self._engine.max_model_count, self._engine._model_count
        else:
            limit = self._experiment.config.max_trial_number
            used = len(self._experiment.list_trial_jobs())
        return None if limit is None else max(0, limit - used)

    def _hear(self, event: ModelEvent) -> None:
        if self._submitted and event.model is self._submitted[-1]:
            self._is_taken = True
        if isinstance(event, FinalMetricEvent):
            metric = event.metric.get("default") if isinstance(event.metric, dict) else event.metric
            if isinstance(metric, int | float):
                self._note(event.model, float(metric))

    def known(self) -> Iterator[ExecutableModelSpace]:
        """Models that the experiment has trials of, also from before a resume."""
        yield from self._engine.list_models()

    def may_submit(self) -> bool:
        """Whether a model would become a trial at once."""
        return self._is_ready() and self.left != 0 and bool(self._engine.budget_available())

    def wait_to_submit(self, meanwhile: Meanwhile) -> bool:
        """Wait for `may_submit`, calling `meanwhile` now and then; False where the budget ends."""
        while self.left != 0 and self._engine.budget_available():
            if self._is_ready():
                return True
            meanwhile()
            time.sleep(_POLL_S)
        return False

    def _is_ready(self) -> bool:
        return self._is_taken and bool(self._engine.idle_worker_available())

    def submit(self, model: ExecutableModelSpace) -> None:
        """Make a model a trial; the sequential engine runs it here and now."""
        self._is_taken = False
        self._submitted.append(model)
        if self.left is not None:
            self.left -= 1
        self._engine.submit_models(model)

    def wait(self, meanwhile: Meanwhile) -> None:
        """Wait until all trials have ended or the experiment has, calling `meanwhile`."""
        while self._are_running() and not self._is_over():
            meanwhile()
            time.sleep(_POLL_S)
        deadline = time.monotonic() + _SETTLE_S
        while self._are_running() and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _are_running(self) -> bool:
        return not all(model.status.completed() for model in self._submitted)

    def _is_over(self) -> bool:
        if self._experiment is None:
            return False
        return self._experiment.get_status() in ("DONE", "STOPPING", "STOPPED", "ERROR")
