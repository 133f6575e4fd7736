"""The tuner: aging evolution over search spaces behind NNI's tuner interface.

NNI starts it in a process of its own and calls it from two threads. Its state is on disk after
every call, so that `nnictl stop`, `nnictl resume` and a kill lose no space and score none twice.
"""

from __future__ import annotations

import contextlib
import logging
import math
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, CodeError, SpaceEvoError
from ..files import Record, convert, read_json, to_json, write_atomically
from ..hyperspace import Hyperspace, SpaceCode
from ..jobs.job import Job
from ..jobs.prepare import check_device, constraints, lut_fingerprint, search_recipe, stored_lut
from ..jobs.results import SCHEMA, ScoredSpace, SearchKey, SearchResults, TunerState
from ..search import EvolutionConfig, make_search
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

_logger = logging.getLogger(__name__)

STATE_FILE = "spaceevo.json"
TRIAL_COMMAND = "python3 -m nni_spaceevo.plugin.trial --job"
# A mistake in the job or the environment fails every trial; a passing hiccup does not fail three.
_FAILURES_IN_A_ROW = 3


class TunerArgs(Record, frozen=True):
    """The tuner's `classArgs`; defaults as published.

    Attributes
    ----------
    job : job file, relative to `trialCodeDirectory`
    population_size, sample_size, evolve : see `nni_spaceevo.search.EvolutionConfig`
    seed : of the evolution; None takes the job's
    """

    job: str
    population_size: int = 500
    sample_size: int = 125
    evolve: int | None = None
    seed: int | None = None


class SpaceEvoTuner(GuardedTuner):
    """Evolves search spaces; each trial scores one (SpaceEvo, section 4.2).

    Parameters
    ----------
    **class_args
        The keys of `TunerArgs`.

    Raises
    ------
    SpaceEvoError
        Wrong class args, job, LUT, latency constraint, search space, or trial environment; or
        another experiment is searching with the same job.
    """

    def _set_up(self, class_args: dict[str, Any]) -> None:
        self._results = contextlib.ExitStack()
        self._owns_results = False
        experiment = seam.experiment_config() or {}
        args = convert(class_args, TunerArgs, "tuner classArgs")
        self.job = Job(Path(experiment.get("trialCodeDirectory", ".")) / args.job)
        self._max_trials: int | None = experiment.get("maxTrialNumber")
        self._config = EvolutionConfig(
            population_size=args.population_size,
            sample_size=args.sample_size,
            evolve=args.evolve,
            seed=self.job.seed(args.seed),
        )
        check_trial_python(experiment.get("trialCommand", ""))
        if port := seam.manager_port():
            check_search_space(self.job.hyperspace, seam.search_space(port))
        self._made_with, self._lut = search_recipe(self.job), ""
        self._constraints = known_constraints(self.job)
        self._own_results()
        self.evolution = make_search(self.job.hyperspace, self._config)
        self._asked: list[SpaceCode] = []
        self._failed: list[SpaceCode] = []
        self._told: list[ScoredSpace] = []
        self._by_id: dict[int, SpaceCode] = {}
        self._failures = 0
        # After a resume: spaces to hand out again, and requests that restarted trials answer.
        self._again: list[SpaceCode] = []
        self._restarted = 0
        self._must_recover = seam.is_resuming()
        if self._must_recover:
            self._load()

    # ---- NNI's interface ----------------------------------------------------------------------

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """Check that NNI's search space is the job's hyperspace; raises `ConfigError`."""
        with self._guarded():
            check_search_space(self.job.hyperspace, search_space)

    def generate_multiple_parameters(
        self, parameter_id_list: list[int], **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Spaces for new trials as NNI parameters.

        Fewer than asked for once all spaces have been handed out; and after a resume, where NNI
        asks for `trialConcurrency` trials on top of those that it starts again. To hand them out
        would let evolution choose without results that it would have had.
        """
        self._meet(kwargs.get("st_callback"))
        with self._guarded():
            if self._must_recover:
                self._must_recover = False
                self._recover()
            taken = min(self._restarted, len(parameter_id_list))
            self._restarted -= taken
            free = parameter_id_list[: len(parameter_id_list) - taken]
            return [self._next(i) for i in free if not self._is_exhausted]

    def receive_trial_result(
        self, parameter_id: int, parameters: dict[str, Any], value: Any, **kwargs: Any
    ) -> None:
        """Tell a trial's score, under the space that the trial itself names.

        The parameters that NNI shows may be another trial's (see `seam.ThisTrial`).

        Raises
        ------
        ExperimentError
            The result is not of our trial, or of a space that was never handed out; or the job file
            has changed since the search began, so that scores could not be compared.
        """
        with self._guarded():
            # Each trial reads the file anew.
            if search_recipe(Job(self.job.path)) != self._made_with:
                raise ExperimentError(
                    f"{self.job.path} has other settings than when this search began; undo the "
                    "change and `nnictl resume`, or create a new experiment"
                )
            self._tell(self._asked_space(value), value)

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Count failed trials; the third in a row stops the experiment with `ExperimentError`."""
        with self._guarded():
            code = self._by_id.get(parameter_id)
            if success or code is None or code in self.evolution.scores:
                return
            self._failed.append(code)
            self._save()
            trial = _find_trial(parameter_id)
            # A trial that the user cancels says nothing about the next.
            self._failures += trial is None or trial.status == "FAILED"
            if self._failures >= _FAILURES_IN_A_ROW:
                raise ExperimentError(
                    f"{self._failures} trials in a row have failed, the last one with space "
                    f"{code}; {last_words(trial)}"
                )
            self._finish_if_complete()

    def import_data(self, data: list[dict[str, Any]]) -> None:
        """Tell results of earlier trials: on resume those of this experiment, else the user's.

        A result that names its space counts for that space, one that does not (hand-written data
        for `nnictl experiment import`) for its parameters. Known spaces keep their score; data
        that does not fit the hyperspace is left out with a warning.
        """
        with self._guarded():
            for entry in data:
                try:
                    code, metrics = self._imported(entry)
                except (CodeError, ExperimentError) as error:
                    print_error(f"imported result left out: {error}")
                    continue
                self._tell(code, metrics)

    # ---- spaces out, scores in ----------------------------------------------------------------

    @property
    def _is_exhausted(self) -> bool:
        seen = {*self._asked, *self.evolution.scores}
        return not self._again and len(seen) >= self.job.hyperspace.num_spaces

    def _next(self, parameter_id: int) -> dict[str, Any]:
        self._own_results()
        if self._again:
            code = self._again.pop(0)
        else:
            code = self.evolution.ask()
            self._asked.append(code)
        self._by_id[parameter_id] = code
        self._save()
        return self.job.hyperspace.parameters(code)

    def _asked_space(self, value: Any) -> SpaceCode:
        if not isinstance(value, dict) or "space" not in value:
            raise ExperimentError(
                f"a trial reported {value!r} without its space; trialCommand must be "
                f"`{TRIAL_COMMAND} {self.job.path.name}`"
            )
        code = self.job.hyperspace.space(value["space"])
        if code not in self._asked:
            raise ExperimentError(f"a trial reported space {code}, which was never handed out")
        return code

    def _imported(self, entry: dict[str, Any]) -> tuple[SpaceCode, dict[str, Any]]:
        value = entry["value"]
        if isinstance(value, dict) and "space" in value:
            return self.job.hyperspace.space(value["space"]), value
        code = self.job.hyperspace.from_parameters(entry["parameter"])
        return code, {"default": _score(value), "space": str(code)}

    def _tell(self, code: SpaceCode, metrics: dict[str, Any]) -> None:
        if code in self.evolution.scores:
            return
        score = _score(metrics)
        self.evolution.tell(code, score)
        self._told.append(ScoredSpace(space=str(code), score=score, metrics=metrics))
        self._failures = 0
        # The first trial has built it, if it was not there before.
        self._lut = self._lut or lut_fingerprint(self.job)
        self._save()
        self._write_results()
        self._finish_if_complete()

    # ---- files --------------------------------------------------------------------------------

    def _own_results(self) -> None:
        """Take the only right to write the results; held until the search is complete."""
        if not self._owns_results:
            own(self._results, self.job.search_path, self.job, "searching")
        self._owns_results = True

    def _write_results(self) -> None:
        if not self._constraints:
            self._constraints = known_constraints(self.job)
        hyperspace = self.job.hyperspace
        SearchResults(
            schema=SCHEMA,
            hyperspace=hyperspace.name,
            hyperspace_fingerprint=hyperspace.fingerprint,
            experiment=seam.experiment_id(),
            constraints_ms=self._constraints,
            spaces=tuple(self._told),
            made_with=self._made_with,
            lut=self._lut,
        ).save(self.job.search_path)

    def _finish_if_complete(self) -> None:
        over = len({*self._failed, *self.evolution.scores})
        most = self.job.hyperspace.num_spaces
        if not self._told or over < min(self._max_trials or most, most):
            return
        try:
            from ..reports.job_report import write_report

            _logger.info("report: %s", write_report(self.job))
        except (ImportError, SpaceEvoError) as error:
            # The search is complete and stored; its report can be written again.
            print_error(f"no report: {error}")
        # Another experiment may now use the job, although NNI keeps this process until `stop`.
        self._results.close()
        self._owns_results = False

    def _save(self) -> None:
        folder = seam.checkpoint_dir()
        if folder is None:
            return
        state = TunerState(
            schema=SCHEMA,
            search=self._search_key,
            evolution=self.evolution.state_dict(),
            asked=tuple(map(str, self._asked)),
            failed=tuple(map(str, self._failed)),
            told=tuple(self._told),
            lut=self._lut,
        )
        write_atomically(folder / STATE_FILE, to_json(state))

    @property
    def _search_key(self) -> SearchKey:
        return SearchKey(
            hyperspace_fingerprint=self.job.hyperspace.fingerprint,
            made_with=self._made_with,
            population_size=self._config.population_size,
            sample_size=self._config.sample_size,
            evolve=self._config.evolve,
            seed=self._config.seed,
        )

    def _load(self) -> None:
        folder = seam.checkpoint_dir()
        path = folder / STATE_FILE if folder else None
        if path is None or not path.exists():
            return  # Stopped before the first space was handed out.
        state = read_json(path, TunerState)
        if state.search != self._search_key:
            raise CheckpointError(
                f"{path}: belongs to {state.search}, but the job and classArgs now say "
                f"{self._search_key}; undo the change or create a new experiment"
            )
        self._lut = state.lut
        if state.lut and lut_fingerprint(self.job) not in ("", state.lut):
            raise CheckpointError(
                f"{path}: its scores are by another LUT than {self.job.lut_path} is now; create a "
                "new experiment"
            )
        space = self.job.hyperspace.space
        self.evolution.load_state_dict(state.evolution)
        self._asked = [space(code) for code in state.asked]
        self._failed = [space(code) for code in state.failed]
        self._told = list(state.told)

    def _recover(self) -> None:
        """Sort the spaces without a score: restarted by NNI, failed, or forgotten by it.

        NNI restarts the trials that were waiting or running. Parameters that it had queued, or
        that were handed out after its last record, are gone: these spaces are handed out again.
        """
        trials = seam.own_trials()
        restarted = [t for t in trials if not t.is_over]
        self._restarted = len(restarted)
        unsuccessful = [t for t in trials if t.is_over and t.status != "SUCCEEDED"]
        self._failed += [c for c in self._spaces_of(unsuccessful) if c not in self._failed]
        settled = {*self.evolution.scores, *self._failed, *self._spaces_of(restarted)}
        self._again = [code for code in self._asked if code not in settled]

    def _spaces_of(self, trials: list[seam.Trial]) -> list[SpaceCode]:
        spaces = []
        for trial in trials:
            # Trials that a user has added by hand may have any parameters.
            with contextlib.suppress(CodeError):
                spaces.append(self.job.hyperspace.from_parameters(trial.parameters))
        return spaces


# ---- checks -------------------------------------------------------------------------------------


def check_search_space(hyperspace: Hyperspace, given: Any) -> None:
    """Refuse a search space that is not the hyperspace.

    Raises
    ------
    ConfigError
        Names the first key that differs, with the given and the expected value.
    """
    check_choices(hyperspace.search_space(), given, f"hyperspace {hyperspace.name!r}")


def known_constraints(job: Job) -> tuple[float, ...]:
    """The job's latency constraints in ms, checked if its LUT is there already.

    Returns
    -------
    constraints_ms : empty if they depend on a LUT that has yet to be built

    Raises
    ------
    LUTError
        The LUT is damaged, or made with other settings, or priced by another predictor.
    ConstraintError
        No subnet, or every subnet, is within a constraint.
    """
    if not job.lut_path.exists():
        return job.config.search.constraints_ms
    lut = stored_lut(job)
    check_device(job, lut)
    return constraints(job, lut)


# ---- small things -------------------------------------------------------------------------------


def _score(value: Any) -> float:
    """The default metric of a result, which is a number or a dict with `default`."""
    score = value.get("default") if isinstance(value, dict) else value
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ExperimentError(f"a trial reported {value!r}; expected a finite score as `default`")
    return float(score)


def _find_trial(parameter_id: int) -> seam.Trial | None:
    found = [t for t in seam.own_trials() if t.parameter_id == parameter_id]
    return found[-1] if found else None
