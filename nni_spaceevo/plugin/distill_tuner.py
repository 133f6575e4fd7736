"""The tuner of a distillation experiment: hands out each (stage, block type) until all have rows.

What is finished is what the job's rows folder has; every result carries its rows, so this holds on
all of NNI's training services, whether or not the trials' machines share a disk with this one.
There is no other state: a stop, a kill, a resume or a new experiment goes on with what is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..files import Record, convert
from ..hyperspace import Hyperspace
from ..jobs.distillation import rows_folder
from ..jobs.job import Job
from ..jobs.prepare import merged_lut, prepared_lut
from ..lut.merge import StageRows, task_cells
from . import seam
from .seam import ExperimentError
from .task_tuner import TaskTuner
from .tuner_base import check_choices, check_trial_python, own, print_error

TRIAL_COMMAND = "python3 -m nni_spaceevo.plugin.distill_trial --job"


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


class DistillTuner(TaskTuner):
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

    key = "task"

    def _set_up(self, class_args: dict[str, Any]) -> None:
        experiment = seam.experiment_config() or {}
        args = convert(class_args, DistillTunerArgs, "tuner classArgs")
        self.job = Job(Path(experiment.get("trialCodeDirectory", ".")) / args.job)
        if seam.runs_here(experiment):
            check_trial_python(experiment.get("trialCommand", ""))
        if port := seam.manager_port():
            check_tasks(self.job.hyperspace, seam.search_space(port))
        self._begin()
        own(self._held, self.job.work / "distillation", self.job, "distilling")
        self._rows = rows_folder(self.job)
        # Tasks that have failed too often, with the reason; the others go on without them.
        self._given_up: dict[str, str] = {}
        self._add(self._unfinished())

    def _unfinished(self) -> list[str]:
        if self.job.lut_path.is_file():
            prepared_lut(self.job)
            print(f"{self.job.lut_path} is there; delete it to distil again", flush=True)
            return []
        return self._rows.missing()

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """Check that NNI's search space is the job's tasks; raises `ConfigError`."""
        with self._guarded():
            check_tasks(self.job.hyperspace, search_space)

    def _take(self, value: Any) -> None:
        """Merge the rows of a result.

        Raises
        ------
        ExperimentError
            The result is not of our trial.
        LUTError
            The rows do not fit the job or the rows of other machines.
        """
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
        self._given_up.pop(found.task, None)
        self._close(found.task)

    def _give_up(self, task: str, reason: str) -> None:
        """Leave a task out, and say why; the others go on, unless nothing has worked yet."""
        self._given_up[task] = reason
        if len(self._open) + len(self._given_up) == len(self._rows.tasks):
            # The mistake is the job's rather than the task's.
            self._require_all()
        print_error(f"{reason}; the other tasks go on")

    def _require_all(self) -> None:
        if self._given_up:
            reasons = "; ".join(self._given_up.values())
            raise ExperimentError(f"{reasons}; `nnictl stop` and `nnictl resume` try again")

    def _complete(self) -> None:
        self._require_all()
        merged_lut(self.job, lambda line: print(line, flush=True))
        self._end()
