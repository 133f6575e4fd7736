"""The tuner of a distillation experiment: hands out each (stage, block type) until all have rows.

What is finished is what the job's rows folder has; every result carries its rows, so this holds on
all of NNI's training services, whether or not the trials' machines share a disk with this one.
There is no other state: a stop, a kill, a resume or a new experiment goes on with what is missing.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ..errors import SpaceEvoError
from ..files import Record, convert
from ..hyperspace import Hyperspace
from ..jobs.distillation import rows_folder
from ..jobs.job import Job
from ..jobs.prepare import merged_lut, prepared_lut
from ..lut.merge import StageRows, task_cells
from . import seam
from .seam import ExperimentError
from .tuner_base import (
    GuardedTuner,
    check_choices,
    check_trial_python,
    last_words,
    own,
    print_error,
)

TRIAL_COMMAND = "python3 -m nni_spaceevo.plugin.distill_trial --job"
# A machine that goes down fails a task; a mistake in the job fails it again and again.
_ATTEMPTS = 3


class DistillTunerArgs(Record, frozen=True):
    """The tuner's `classArgs`.

    Attributes
    ----------
    job : job file, relative to `trialCodeDirectory`
    optimize_mode : for NNI's web page alone, which otherwise takes the largest loss for the best
    """

    job: str
    optimize_mode: Literal["minimize"] = "minimize"


def distill_search_space(hyperspace: Hyperspace) -> dict[str, Any]:
    """What `searchSpace` of a distillation experiment says: all (stage, block type) pairs."""
    return {"task": {"_type": "choice", "_value": list(task_cells(hyperspace))}}


def check_tasks(hyperspace: Hyperspace, given: Any) -> None:
    """Refuse a search space that is not the hyperspace's tasks; raises `ConfigError`."""
    check_choices(distill_search_space(hyperspace), given, f"hyperspace {hyperspace.name!r}")


class DistillTuner(GuardedTuner):
    """Hands out tasks, each to one trial; merges their rows, and builds the LUT from all of them.

    Parameters
    ----------
    **class_args
        The keys of `DistillTunerArgs`.

    Raises
    ------
    SpaceEvoError
        Wrong class args, job, LUT, rows, search space, or trial environment; or another experiment
        is distilling the same job.
    """

    def _set_up(self, class_args: dict[str, Any]) -> None:
        experiment = seam.experiment_config() or {}
        args = convert(class_args, DistillTunerArgs, "tuner classArgs")
        self.job = Job(Path(experiment.get("trialCodeDirectory", ".")) / args.job)
        if seam.runs_here(experiment):
            check_trial_python(experiment.get("trialCommand", ""))
        if port := seam.manager_port():
            check_tasks(self.job.hyperspace, seam.search_space(port))
        self._held = contextlib.ExitStack()
        own(self._held, self.job.work / "distillation", self.job, "distilling")
        self._rows = rows_folder(self.job)
        # Tasks without rows: those to hand out next, in order, and those that trials have.
        self._queue = self._unfinished()
        self._open = set(self._queue)
        self._running: dict[int, str] = {}
        self._attempts: Counter[str] = Counter()
        # Tasks that have failed too often, with the reason; the others go on without them.
        self._given_up: dict[str, str] = {}
        # Requests of NNI's that found nothing to do: a task that fails is handed out to these.
        self._idle: list[int] = []
        self._send: Callable[[int, dict[str, Any]], None] | None = None
        # After a resume, parameter ids start anew; trials that had ended by then do not count.
        self._past: set[str] = set()
        self._must_recover = seam.is_resuming()
        self._is_complete = False

    def _unfinished(self) -> list[str]:
        if self.job.lut_path.is_file():
            prepared_lut(self.job)
            print(f"{self.job.lut_path} is there; delete it to distil again", flush=True)
            return []
        return self._rows.missing()

    # ---- NNI's interface ----------------------------------------------------------------------

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """Check that NNI's search space is the job's tasks; raises `ConfigError`."""
        with self._guarded():
            check_tasks(self.job.hyperspace, search_space)

    def generate_multiple_parameters(
        self, parameter_id_list: list[int], **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Tasks for new trials; fewer than asked for if trials already have all that are left."""
        self._send = kwargs.get("st_callback")
        self._meet(self._send)
        with self._guarded():
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
        """Merge the rows of a trial's result, under the task that the result itself names.

        Raises
        ------
        ExperimentError
            The result is not of our trial.
        LUTError
            The rows do not fit the job or the rows of other machines.
        """
        with self._guarded():
            self._take(value)

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Hand a task without rows out again, up to three times.

        Raises
        ------
        ExperimentError
            A task has failed three times, and no other was done before or is left to do.
        """
        with self._guarded():
            self._settle()
            self._employ()

    def import_data(self, data: list[dict[str, Any]]) -> None:
        """Merge results of earlier trials; one that does not fit is left out with a warning."""
        with self._guarded():
            for entry in data:
                try:
                    self._take(entry["value"])
                except SpaceEvoError as error:
                    print_error(f"imported result left out: {error}")

    # ---- tasks out, rows in -------------------------------------------------------------------

    def _next(self, parameter_id: int) -> dict[str, Any]:
        task = self._queue.pop(0)
        self._running[parameter_id] = task
        self._attempts[task] += 1
        return {"task": task}

    def _employ(self) -> None:
        while self._send and self._queue and self._idle:
            parameter_id = self._idle.pop(0)
            self._send(parameter_id, self._next(parameter_id))

    def _take(self, value: Any) -> None:
        if not isinstance(value, dict) or not {"task", "rows"} <= value.keys():
            raise ExperimentError(
                f"a trial reported {str(value)[:80]!r} without its rows; trialCommand must be "
                f"`{TRIAL_COMMAND} {self.job.path.name}`"
            )
        # A task that was lost and handed out again can come twice; the first result counts.
        is_known = value["task"] in self._rows.tasks
        if is_known and value["task"] not in {*self._open, *self._given_up}:
            return
        origin = f"the trial of {value['task']}"
        found = StageRows.unpacked(value["rows"], origin)
        self._rows.add(found, origin)
        self._open.discard(found.task)
        self._given_up.pop(found.task, None)
        self._queue = [task for task in self._queue if task != found.task]

    def _settle(self) -> None:
        """Bring what is open, running and queued in line with what NNI knows.

        NNI tells results and ends by two threads, in any order, and of a trial that it has started
        again on resume it does not tell the end.
        """
        trials = seam.own_trials()
        has_failed = False
        for trial in trials:
            if trial.metrics and trial.metrics.get("task") in self._open:
                self._take(trial.metrics)
            if trial.is_over and trial.id not in self._past and trial.parameter_id in self._running:
                del self._running[trial.parameter_id]
                has_failed |= trial.status == "FAILED"
        lost = self._lost(trials)
        # A mistake fails the same task again, and is told soon. A task whose trial has done another
        # one waits: NNI still has it, and gives it to the next trial, whatever that one is for.
        self._queue = [*lost, *self._queue] if has_failed else [*self._queue, *lost]
        if not self._open and not self._running:
            self._require_all()
            self._complete()

    def _lost(self, trials: list[seam.Trial]) -> list[str]:
        """Tasks that no trial has any more, but for those that are given up now.

        Off the local platform, NNI can hand one trial's task to another (see `seam.ThisTrial`). So
        a task is lost only if more are out than there are trials.
        """
        out = [t for t in self._rows.tasks if t in self._open and t not in self._queue]
        unnamed = [task for task in out if task not in self._running.values()]
        lost = unnamed[: max(len(out) - len(self._running), 0)]
        for task in [task for task in lost if self._attempts[task] >= _ATTEMPTS]:
            lost.remove(task)
            self._give_up(task, trials)
        return lost

    def _give_up(self, task: str, trials: list[seam.Trial]) -> None:
        """Leave a task out, and say why."""
        of_it = [t for t in trials if t.is_over and t.parameters.get("task") == task]
        self._open.discard(task)
        self._given_up[task] = (
            f"{task}: {_ATTEMPTS} trials have ended without a result; "
            f"{last_words(of_it[-1] if of_it else None)}"
        )
        if len(self._open) + len(self._given_up) == len(self._rows.tasks):
            # Nothing has worked yet: the mistake is the job's rather than the task's.
            self._require_all()
        print_error(f"{self._given_up[task]}; the other tasks go on")

    def _require_all(self) -> None:
        if self._given_up:
            reasons = "; ".join(self._given_up.values())
            raise ExperimentError(f"{reasons}; `nnictl stop` and `nnictl resume` try again")

    def _complete(self) -> None:
        if self._is_complete:
            return
        self._is_complete = True
        merged_lut(self.job, lambda line: print(line, flush=True))
        # Another experiment may now use the job, although NNI keeps this process until `stop`.
        self._held.close()
        if port := seam.manager_port():
            seam.no_more_trials(port)

    def _recover(self) -> None:
        """Find the trials that NNI starts again: those that were waiting or running at the stop."""
        for trial in seam.own_trials():
            task = trial.parameters.get("task")
            if trial.is_over:
                self._past.add(trial.id)
            elif trial.parameter_id is not None and task in self._queue:
                self._running[trial.parameter_id] = task
                self._attempts[task] += 1
                self._queue.remove(task)
