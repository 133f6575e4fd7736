"""The tuner of a subnet search: each trial evaluates one subnet of a trained supernet.

What was evaluated is what `evaluations.json` has, which `spaceevo subnets` reads and writes too;
there is no other state. A stop, a kill, a resume or a new experiment goes on with what is missing,
to the same `subnets.json`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from ..files import Record, convert, to_json, write_atomically
from ..jobs.job import Job
from ..jobs.predictors import prepared_predictor
from ..jobs.supernets import BEST, chosen_space
from . import seam
from .seam import ExperimentError
from .subnet_trial import code_of, parameters_of, task_of
from .task_tuner import TaskTuner
from .tuner_base import check_choices, check_trial_python, own

if TYPE_CHECKING:
    from ..hyperspace import SubnetCode
    from ..jobs.subnets import SubnetResult

TRIAL_COMMAND = "python3 -m nni_spaceevo.plugin.subnet_trial --job"


class SubnetTunerArgs(Record, frozen=True):
    """The tuner's `classArgs`.

    Attributes
    ----------
    job : job file, relative to `trialCodeDirectory`
    space : of the supernet: a space code, or `best`, the best one of the job's search
    seed : of the supernet and of the search; None takes the job's
    constraints_ms : latency constraints T in milliseconds; none takes the job's
    """

    job: str
    space: str = BEST
    seed: int | None = None
    constraints_ms: tuple[float, ...] = ()


class SubnetTuner(TaskTuner):
    """Searches the best subnets within latency constraints (SpaceEvo, section 4.4).

    Parameters
    ----------
    **class_args
        The keys of `SubnetTunerArgs`.

    Raises
    ------
    SpaceEvoError
        Wrong class args, job, constraint, or trial environment; no such supernet; or another
        process searches the same supernet.
    """

    key = "subnet"

    def _set_up(self, class_args: dict[str, Any]) -> None:
        experiment = seam.experiment_config() or {}
        self._args = convert(class_args, SubnetTunerArgs, "tuner classArgs")
        self.job = Job(Path(experiment.get("trialCodeDirectory", ".")) / self._args.job)
        if seam.runs_here(experiment):
            check_trial_python(experiment.get("trialCommand", ""))
        if port := seam.manager_port():
            check_nothing_to_choose(seam.search_space(port))
        self.space = chosen_space(self.job, self._args.space)
        self._seed = self.job.seed(self._args.seed)
        self._begin()

    def _prepare(self) -> None:
        """Read supernet, images, predictor and what was evaluated before.

        Raises
        ------
        SpaceEvoError
            As `nni_spaceevo.jobs.subnets.search_subnets`.
        """
        from ..jobs.subnets import EvaluationsFile, SubnetEvaluator, new_search, subnets_folder

        job, space, seed = self.job, self.space, self._seed
        self._folder = subnets_folder(job, space, seed)
        path = self._folder / "evaluations.json"
        with contextlib.ExitStack() as held:
            own(held, path, job, "searching subnets")
            self._evaluator = SubnetEvaluator(job, space, seed)
            self._device = prepared_predictor(job)
            self.search = new_search(job, space, self._device, self._args.constraints_ms, seed)
            self._kept = EvaluationsFile(path, self._evaluator.made_for)
            self._held.push(held.pop_all())
        self._go_on()

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """Check that NNI's search space is empty; raises `ConfigError`."""
        with self._guarded():
            check_nothing_to_choose(search_space)

    # ---- subnets out, accuracies in -----------------------------------------------------------

    def _parameters(self, task: str) -> dict[str, Any]:
        subnet = self.job.hyperspace.subnet(self.space, code_of(task))
        ms = float(self.search.subnets.ms(self.search.subnets.genes([subnet]))[0])
        return asdict(parameters_of(self.job.hyperspace, self.space, self._seed, subnet, ms))

    def _take(self, value: Any) -> None:
        """Keep a result.

        Raises
        ------
        ExperimentError
            The result is not of our trial, or of another supernet.
        CodeError
            The subnet is none of the space.
        """
        code, found = self._result(value)
        self._kept.add(found)
        self._kept.save()
        self._close(task_of(code))
        self._go_on()

    def _result(self, value: Any) -> tuple[SubnetCode, SubnetResult]:
        from ..jobs.subnets import SubnetResult

        if not isinstance(value, dict) or not {"subnet", "default", "loss"} <= value.keys():
            raise ExperimentError(
                f"a trial reported {str(value)[:80]!r} without its subnet; trialCommand must be "
                f"`{TRIAL_COMMAND} {self.job.path.name}`"
            )
        if value.get("supernet") != self._evaluator.made_for:
            raise ExperimentError(
                f"a trial evaluated {value['subnet']} of another supernet, or on other images or "
                f"settings, than {self.job.path} has on this machine; a new experiment begins anew"
            )
        code = self.job.hyperspace.subnet(self.space, code_of(value["subnet"]))
        numbers = {"accuracy": value["default"], "loss": value["loss"]}
        return code, convert({"subnet": str(code), **numbers}, SubnetResult, "a trial's result")

    def _go_on(self) -> None:
        """Make tasks of the subnets that the search waits for, or tell it about them in its order.

        So the outcome is that of `spaceevo subnets`, whichever trial is the first.
        """
        known = self._kept.results
        while codes := self.search.ask():
            if missing := [task_of(code) for code in codes if str(code) not in known]:
                self._add(missing)
                return
            for code in codes:
                self.search.tell(code, known[str(code)].accuracy)

    def _complete(self) -> None:
        from ..jobs.subnets import RESULTS, results_of

        results = results_of(self.job, self.search, self._device, self._seed, self._evaluator)
        path = self._folder / RESULTS
        write_atomically(path, to_json(results))
        print(f"{results.outcome}\n-> {path}", flush=True)
        self._end()


def check_nothing_to_choose(given: Any) -> None:
    """Refuse a search space with anything in it: the supernet's space is what is searched.

    Raises
    ------
    ConfigError
        Names the first key.
    """
    check_choices({}, given, "a subnet search, whose space is the supernet's,")
