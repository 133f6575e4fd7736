"""A tuner that hands out tasks, each to one trial, until every task has a result.

A task is a text that the trial finds in its parameters and repeats in its result. What is finished
is what a subclass has kept of the results; there is no other state, so a stop, a kill, a resume or
a new experiment goes on with what is missing.
"""

from __future__ import annotations

import abc
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from ..errors import SpaceEvoError
from . import seam
from .seam import ExperimentError
from .tuner_base import GuardedTuner, last_words, print_error, tell_no_start

# A machine that goes down fails a task; a mistake in the job fails it again and again.
_ATTEMPTS = 3


class TaskTuner(GuardedTuner):
    """Keeps account of tasks and trials; a subclass says what the tasks are and keeps results.

    Attributes
    ----------
    key : under which a trial's parameters and its result name its task
    """

    key: ClassVar[str]

    def _begin(self) -> None:
        """Make ready for tasks."""
        # The right to write the results.
        self._held = contextlib.ExitStack()
        # Tasks without a result, in order, and those of them to hand out next.
        self._open: list[str] = []
        self._queue: list[str] = []
        self._running: dict[int, str] = {}
        self._attempts: Counter[str] = Counter()
        # Requests of NNI's that found nothing to do: later tasks are handed out to these.
        self._idle: list[int] = []
        self._send: Callable[[int, dict[str, Any]], None] | None = None
        # After a resume, parameter ids start anew; trials that had ended by then do not count.
        self._past: set[str] = set()
        self._must_recover = seam.is_resuming()
        self._is_prepared = self._is_complete = False

    # ---- what a subclass does -----------------------------------------------------------------

    def _prepare(self) -> None:
        """Do once, before the first task, what takes seconds.

        NNI gives up a tuner that has not come out of `_set_up` ten seconds after its start.
        """

    def _parameters(self, task: str) -> dict[str, Any]:
        """What a trial is given for a task."""
        return {self.key: task}

    @abc.abstractmethod
    def _take(self, value: Any) -> None:
        """Keep a trial's result under the task that it names, and call `_close` with that task.

        Raises
        ------
        SpaceEvoError
            The result is not of our trial, or does not fit.
        """

    @abc.abstractmethod
    def _complete(self) -> None:
        """Do what is to be done once no task is left, and call `_end`."""

    def _give_up(self, task: str, reason: str) -> None:
        """What happens after a task has failed too often: the experiment ends.

        Raises
        ------
        ExperimentError
            Says which task, why, and what to do.
        """
        raise ExperimentError(f"{reason}; `nnictl stop` and `nnictl resume` try again")

    # ---- what a subclass calls ----------------------------------------------------------------

    def _add(self, tasks: Iterable[str]) -> None:
        """More tasks to hand out; those that are open already are not added again."""
        new = [task for task in tasks if task not in self._open]
        self._open += new
        self._queue += new

    def _close(self, task: str) -> None:
        """A task has its result."""
        for tasks in (self._open, self._queue):
            if task in tasks:
                tasks.remove(task)

    def _end(self) -> None:
        """Let other experiments use the job, and NNI say DONE."""
        # NNI keeps this process until `stop`.
        self._held.close()
        if port := seam.manager_port():
            seam.no_more_trials(port)

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        """As `_guarded`, after `_prepare`."""
        with self._guarded():
            if not self._is_prepared:
                try:
                    self._prepare()
                except SpaceEvoError as error:
                    tell_no_start(error)
                    raise
                self._is_prepared = True
            yield

    # ---- NNI's interface ----------------------------------------------------------------------

    def generate_multiple_parameters(
        self, parameter_id_list: list[int], **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Tasks for new trials; fewer than asked for if trials already have all that are left."""
        self._send = kwargs.get("st_callback")
        self._meet(self._send)
        with self._ready():
            if self._must_recover:
                self._must_recover = False
                self._recover()
            self._settle()
            served = parameter_id_list[: len(self._queue)]
            given = [self._next(i) for i in served]
            self._idle += parameter_id_list[len(served) :]
            self._employ()
            return given

    def receive_trial_result(
        self, parameter_id: int, parameters: dict[str, Any], value: Any, **kwargs: Any
    ) -> None:
        """Keep a trial's result under the task that it names; raises as `_take`."""
        with self._ready():
            self._take(value)
            self._employ()

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Hand a task without a result out again, up to three times.

        Raises
        ------
        ExperimentError
            A task has failed three times, and the others cannot go on without it.
        """
        with self._ready():
            self._settle()
            self._employ()

    def import_data(self, data: list[dict[str, Any]]) -> None:
        """Keep results of earlier trials; one that does not fit is left out with a warning."""
        with self._ready():
            for entry in data:
                try:
                    self._take(entry["value"])
                except SpaceEvoError as error:
                    print_error(f"imported result left out: {error}")

    # ---- tasks out, results in ----------------------------------------------------------------

    def _next(self, parameter_id: int) -> dict[str, Any]:
        task = self._queue.pop(0)
        self._running[parameter_id] = task
        self._attempts[task] += 1
        return self._parameters(task)

    def _employ(self) -> None:
        while self._send and self._queue and self._idle:
            parameter_id = self._idle.pop(0)
            self._send(parameter_id, self._next(parameter_id))

    def _settle(self) -> None:
        """Bring what is open, running and queued in line with what NNI knows.

        NNI tells results and ends by two threads, in any order, and of a trial that it has started
        again on resume it does not tell the end.
        """
        trials = seam.own_trials()
        has_failed = False
        for trial in trials:
            if trial.metrics and trial.metrics.get(self.key) in self._open:
                self._take(trial.metrics)
            if trial.is_over and trial.id not in self._past and trial.parameter_id in self._running:
                del self._running[trial.parameter_id]
                has_failed |= trial.status == "FAILED"
        lost = self._lost(trials)
        # A mistake fails the same task again, and is told soon. A task whose trial has done another
        # one waits: NNI still has it, and gives it to the next trial, whatever that one is for.
        self._queue = [*lost, *self._queue] if has_failed else [*self._queue, *lost]
        if not (self._open or self._running or self._is_complete):
            self._is_complete = True
            self._complete()

    def _lost(self, trials: list[seam.Trial]) -> list[str]:
        """Tasks that no trial has any more, but for those that are given up now.

        Off the local platform, NNI can hand one trial's task to another (see `seam.ThisTrial`). So
        a task is lost only if more are out than there are trials.
        """
        out = [task for task in self._open if task not in self._queue]
        unnamed = [task for task in out if task not in self._running.values()]
        lost = unnamed[: max(len(out) - len(self._running), 0)]
        for task in [task for task in lost if self._attempts[task] >= _ATTEMPTS]:
            lost.remove(task)
            self._open.remove(task)
            self._give_up(task, self._reason(task, trials))
        return lost

    def _reason(self, task: str, trials: list[seam.Trial]) -> str:
        of_it = [t for t in trials if t.is_over and t.parameters.get(self.key) == task]
        return (
            f"{task}: {_ATTEMPTS} trials have ended without a result; "
            f"{last_words(of_it[-1] if of_it else None)}"
        )

    def _recover(self) -> None:
        """Find the trials that NNI starts again: those that were waiting or running at the stop."""
        for trial in seam.own_trials():
            task = trial.parameters.get(self.key)
            if trial.is_over:
                self._past.add(trial.id)
            elif trial.parameter_id is not None and task in self._queue:
                self._running[trial.parameter_id] = task
                self._attempts[task] += 1
                self._queue.remove(task)
