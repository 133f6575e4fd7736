"""NNI's side of a tuner that hands out tasks: its records, and the calls of its dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nni_spaceevo.plugin import seam
from nni_spaceevo.plugin.seam import Trial
from nni_spaceevo.plugin.task_tuner import TaskTuner


class Manager:
    """NNI's records, and the calls that its dispatcher makes of the tuner.

    Parameters
    ----------
    make : makes the tuner
    result : what a trial of a task reports
    search_space : of the experiment
    """

    def __init__(
        self,
        make: Callable[[], TaskTuner],
        result: Callable[[str], dict[str, Any]],
        search_space: dict[str, Any],
    ) -> None:
        self.make, self.result, self.search_space = make, result, search_space
        self.trials: list[Trial] = []
        self.finished_with: list[int] = []
        self.errors: list[str] = []
        self.next_id = 0

    def replace_nni(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be the NNI that the tuner talks to."""
        monkeypatch.setattr(seam, "manager_port", lambda: 1)
        monkeypatch.setattr(seam, "trials", lambda port: list(self.trials))
        monkeypatch.setattr(
            seam, "no_more_trials", lambda port: self.finished_with.append(len(self.trials))
        )
        monkeypatch.setattr(seam, "search_space", lambda port: self.search_space)

    def start(self) -> None:
        """A new process of the tuner."""
        self.tuner = self.make()

    def stop(self) -> None:
        """End the tuner's process, and its lock with it."""
        self.tuner._held.close()

    def resume(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What `nnictl resume` does to the tuner."""
        self.stop()
        monkeypatch.setenv("NNI_MODE", "resume")
        self.start()

    def report_error(self, error: str) -> None:
        """How NNI's dispatcher ends an experiment."""
        self.errors.append(error)

    def handed_out(self, parameter_id: int, parameters: dict[str, Any]) -> None:
        """NNI's `st_callback`: a trial comes to be."""
        name = f"T{len(self.trials)}"
        trial = Trial(name, len(self.trials), "RUNNING", parameter_id, parameters, None, ())
        self.trials.append(trial)

    def ask(self, count: int = 1) -> list[str]:
        """Ask for trials; returns the tasks of those that began, however handed out."""
        first = len(self.trials)
        ids = list(range(self.next_id, self.next_id + count))
        self.next_id += count
        given = self.tuner.generate_multiple_parameters(ids, st_callback=self.handed_out)
        for i, parameters in zip(ids, given, strict=False):
            self.handed_out(i, parameters)
        return [self.task(trial) for trial in self.trials[first:]]

    def task(self, trial: Trial) -> str:
        """What a trial is for."""
        return str(trial.parameters[self.tuner.key])

    def record(self, i: int, status: str, metrics: dict[str, Any] | None = None) -> Trial:
        """Change what NNI knows of a trial."""
        old = self.trials[i]
        new = Trial(old.id, i, status, old.parameter_id, old.parameters, metrics, ())
        self.trials[i] = new
        return new

    def succeed(self, i: int, *, told: bool = True) -> None:
        """A trial reports, and ends; `told` is whether the result comes before the end."""
        trial = self.record(i, "SUCCEEDED", self.result(self.task(self.trials[i])))
        if told:
            self.tuner.receive_trial_result(trial.parameter_id or 0, {}, trial.metrics)
        self.tuner.trial_end(trial.parameter_id or 0, True)
        if not told:
            self.tuner.receive_trial_result(trial.parameter_id or 0, {}, trial.metrics)

    def fail(self, i: int, status: str = "FAILED") -> None:
        """A trial ends without a result."""
        trial = self.record(i, status)
        self.tuner.trial_end(trial.parameter_id or 0, False)
