"""The search as a strategy of NNI's NAS: a `NasExperiment` whose trials are search spaces.

The search runs in the strategy and is guided by the LUT's Q-T score. What a trial reports is for
the user: it may score the space once more, or train a supernet over it for a day.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
from nni.nas.execution import ExecutionEngine
from nni.nas.space import ExecutableModelSpace
from nni.nas.strategy import Strategy
from tqdm import tqdm

from ..errors import CheckpointError, ConfigError
from ..files import Record, convert, digest, exclusive, plain, read_json, to_json, write_atomically
from ..hyperspace import SpaceCode
from ..search import (
    AgingEvolution,
    EvolutionConfig,
    QTConfig,
    SpaceScore,
    make_search,
    score_bound,
)
from .evaluator import LUTSource, checked_scoring
from .model_space import FrozenSpace, HyperspaceSource
from .nas_seam import Trials, mend_resume
from .tuner import check_search_space

_logger = logging.getLogger(__name__)

SCHEMA = 1
# A kill loses at most this much work.
_SAVE_EVERY_S = 2.0
# Intermediate results of a trial whose space was found at the end of the search.
_CURVE_POINTS = 50


class Candidate(Record, frozen=True):
    """A space that deserves a trial.

    Attributes
    ----------
    evaluations : spaces scored by then, this one included
    space : space code
    score : Q-T score
    """

    evaluations: int
    space: str
    score: float

    def beats(self, other: Candidate) -> bool:
        """Whether this is the better one; the smaller code wins a tie, as in the search."""
        return (-self.score, self.space) < (-other.score, other.space)


class StrategyState(Record, frozen=True):
    """All that a killed strategy needs to continue to the same result.

    Attributes
    ----------
    schema : version of the format
    made_for : hash of the LUT and of the settings that results depend on
    evaluations : spaces scored
    search : the search's own state
    candidates : spaces that deserve a trial, in the order in which they were scored
    reported : default metric of the trials that have ended, by space code
    """

    schema: int
    made_for: str
    evaluations: int
    search: dict[str, Any]
    candidates: list[Candidate]
    reported: dict[str, float]

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"strategy state schema {self.schema}; this version reads {SCHEMA}")


class SpaceEvo(Strategy):
    """Finds the best space of a `HyperspaceModelSpace` (SpaceEvo, section 4.2).

    With `trials="incumbents"` a space becomes a trial if it is better than all before: thousands
    are scored in a minute, and the web UI shows the way of the best. The last trial that
    `max_trial_number` allows is kept for the best of all. With `trials="every"` each scored space
    becomes a trial, and the search ends with the experiment's budget.

    Parameters
    ----------
    lut : the LUT or its file
    constraints_ms : latency constraints T in milliseconds
    hyperspace : what the LUT was made for; needed for a file
    evaluations : how many spaces are scored
    trials : which of them become trials
    state : file from which a killed search continues; a trial that has reported is not repeated.
        Without it, only NNI's own checkpoint, which is written on regular stops
    seed : of everything random
    **settings : further fields of `EvolutionConfig` and `QTConfig` in `nni_spaceevo.search`, such
        as `population_size`, `evolve` and `estimator`

    Raises
    ------
    ConfigError
        A wrong setting.
    LUTError
        The LUT is damaged, has no latencies, or belongs to another hyperspace.
    ConstraintError
        No subnet, or every subnet, is within a constraint.
    CheckpointError
        The state file belongs to another search.
    LockedError
        Another process is searching with the state file.
    """

    def __init__(
        self,
        lut: LUTSource,
        constraints_ms: Iterable[float],
        *,
        hyperspace: HyperspaceSource | None = None,
        evaluations: int = 5000,
        trials: Literal["incumbents", "every"] = "incumbents",
        state: Path | str | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        mend_resume()
        if trials not in ("incumbents", "every"):
            raise ConfigError(f"trials must be 'incumbents' or 'every', given {trials!r}")
        if not isinstance(evaluations, int) or evaluations < 1:
            raise ConfigError(f"evaluations must be at least 1, given {evaluations!r}")
        of_search, of_score = _split(settings)
        self._config = convert({**of_search, "seed": seed}, EvolutionConfig, "SpaceEvo")
        self.scoring = checked_scoring(lut, constraints_ms, hyperspace, seed=seed, **of_score)
        self._hyperspace = self.scoring.lut.hyperspace
        self._total = min(evaluations, self._hyperspace.num_spaces)
        self._every = trials == "every"
        self._path = None if state is None else Path(state)
        settings_made_for = (self.scoring.config, self._config, trials)
        self._made_for = digest(self.scoring.lut.fingerprint, *map(to_json, settings_made_for))
        self._evaluations = 0
        self._candidates: list[Candidate] = []
        self._incumbent: Candidate | None = None
        self._reported: dict[str, float] = {}
        # Spaces that need no trial any more, and candidates that still wait for theirs.
        self._has_trial: set[str] = set()
        self._waiting: deque[Candidate] = deque()
        self._saved: dict[str, Any] | None = None
        self._saved_at = 0.0
        self._is_changed = False
        if self._path:
            # A file that cannot be continued is told before an experiment starts.
            with exclusive(self._path):
                self._load_file(self._path)

    # ---- what has been found ------------------------------------------------------------------

    @property
    def best(self) -> SpaceScore:
        """The best space so far; raises `ValueError` before the first."""
        return self.scoring.score(self._search.best[0])

    @property
    def incumbents(self) -> tuple[Candidate, ...]:
        """The way of the best: each space that was better than all before."""
        found: list[Candidate] = []
        for candidate in self._candidates:
            if not found or candidate.beats(found[-1]):
                found.append(candidate)
        return tuple(found)

    def extra_repr(self) -> str:
        """The text between the parentheses of `repr`."""
        T = " / ".join(f"{T:g}" for T in self.scoring.config.constraints_ms)
        return f"{self._hyperspace.name}, T = {T} ms, {self._evaluations} of {self._total} spaces"

    # ---- NNI's interface ----------------------------------------------------------------------

    def _initialize(
        self, model_space: ExecutableModelSpace, engine: ExecutionEngine
    ) -> ExecutableModelSpace:
        offered = {name: choice.as_legacy_dict() for name, choice in model_space.simplify().items()}
        try:
            check_search_space(self._hyperspace, offered)
        except ConfigError as error:
            raise ConfigError(
                f"the experiment's model space is not the hyperspace of SpaceEvo's LUT: {error}"
            ) from error
        self._trials = Trials(engine, self._note)
        return model_space

    def _run(self) -> None:
        lock = exclusive(self._path) if self._path else contextlib.nullcontext()
        with lock, self._trials:
            self._continue()
            self._save()
            with self._progress_bar() as self._bar:
                (self._search_for_trials if self._every else self._search_for_best)()
            self._save()
            self._submit_rest()
            self._trials.wait(self._save_if_due)
            self._save()

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which `load_state_dict` continues to the same result.

        During a run it is the last saved state: Ctrl-C may come between a space and its score.
        """
        return self._saved or plain(self._state())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state, unless more than that has been done already.

        Raises
        ------
        CheckpointError
            It belongs to another search.
        """
        self._load(convert(state_dict, StrategyState, "strategy state"), "strategy state")

    # ---- searching ----------------------------------------------------------------------------

    @cached_property
    def _search(self) -> AgingEvolution:
        first: tuple[SpaceCode, ...] = ()
        if self._config.evolve is not None:
            first = score_bound(self.scoring.lut, self.scoring.config).codes
        return make_search(self._hyperspace, self._config, first)

    def _search_for_best(self) -> None:
        """Score all spaces; incumbents become trials as workers come free."""
        while self._evaluations < self._total:
            self._evaluate()
            # The last trial of a budget is kept for the last incumbent.
            if self._waiting and self._trials.left != 1 and self._trials.may_submit():
                self._submit_next()

    def _search_for_trials(self) -> None:
        """Score a space whenever it can become a trial."""
        while self._evaluations < min(len(self._has_trial), self._total):
            self._evaluate()  # After a resume from an old state: these have their trials.
        while self._waiting or self._evaluations < self._total:
            if not self._trials.wait_to_submit(self._save_if_due):
                break
            while not self._waiting and self._evaluations < self._total:
                self._evaluate()
            if self._waiting:
                self._submit_next()

    def _evaluate(self) -> None:
        code = self._search.ask()
        score = self.scoring.score(code).score
        self._search.tell(code, score)
        self._evaluations += 1
        found = Candidate(evaluations=self._evaluations, space=str(code), score=score)
        is_best = self._incumbent is None or found.beats(self._incumbent)
        if is_best:
            self._incumbent = found
            self._bar.set_postfix_str(f"best {found.space} {found.score:.4f}", refresh=False)
        if is_best or self._every:
            self._candidates.append(found)
            if found.space not in self._has_trial:
                self._waiting.append(found)
        self._bar.update()
        self._is_changed = True
        self._save_if_due()

    def _progress_bar(self) -> tqdm[Any]:
        return tqdm(
            total=self._total,
            initial=min(self._evaluations, self._total),
            desc=self._hyperspace.name,
            unit="space",
            mininterval=0.5,
        )

    # ---- trials -------------------------------------------------------------------------------

    def _submit_next(self) -> None:
        candidate = self._waiting.popleft()
        self._has_trial.add(candidate.space)
        code = self._hyperspace.space(candidate.space)
        parameters = self._hyperspace.parameters(code)
        evaluator = self.model_space.evaluator
        curve = self._curve(candidate.evaluations)
        self._trials.submit(FrozenSpace(code, parameters, evaluator, candidate.evaluations, curve))

    def _submit_rest(self) -> None:
        left = self._trials.left
        while left is not None and len(self._waiting) > left:
            self._leave_out(self._waiting.popleft())
        while self._waiting and self._trials.wait_to_submit(self._save_if_due):
            self._submit_next()
        for candidate in self._waiting:
            self._leave_out(candidate)

    def _leave_out(self, candidate: Candidate) -> None:
        _logger.warning(
            "space %s, Q-T score %.4f, gets no trial: the experiment's budget is used up",
            candidate.space,
            candidate.score,
        )

    def _curve(self, evaluations: int) -> list[float]:
        """Best score so far at equal steps along the search, the last after `evaluations`."""
        step = max(1, self._total // _CURVE_POINTS)
        way = [c for c in self.incumbents if c.evaluations <= evaluations]
        marks = [*range(1, evaluations, step), evaluations]
        return [[c.score for c in way if c.evaluations <= mark][-1] for mark in marks]

    def _note(self, model: ExecutableModelSpace, metric: float) -> None:
        if isinstance(model, FrozenSpace):
            self._reported[str(model.code)] = metric
            self._is_changed = True

    # ---- state --------------------------------------------------------------------------------

    def _state(self) -> StrategyState:
        return StrategyState(
            schema=SCHEMA,
            made_for=self._made_for,
            evaluations=self._evaluations,
            search=self._search.state_dict(),
            candidates=list(self._candidates),
            reported=dict(self._reported),
        )

    def _save_if_due(self) -> None:
        if self._is_changed and time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self._save()

    def _save(self) -> None:
        self._is_changed = False
        self._saved = plain(self._state())
        if self._path:
            write_atomically(self._path, msgspec.json.encode(self._saved))
        self._saved_at = time.monotonic()

    def _continue(self) -> None:
        """Take up the state file, and the trials that a resumed experiment has."""
        if self._path:
            self._load_file(self._path)
        known = [m for m in self._trials.known() if isinstance(m, FrozenSpace)]
        for model in known:
            if model.metric is not None:
                self._note(model, model.metric)
        self._has_trial = {*self._reported, *(str(model.code) for model in known)}
        self._waiting.extend(c for c in self._candidates if c.space not in self._has_trial)

    def _load_file(self, path: Path) -> None:
        if path.is_file():
            self._load(read_json(path, StrategyState), str(path))

    def _load(self, state: StrategyState, where: str) -> None:
        if state.made_for != self._made_for:
            raise CheckpointError(
                f"{where}: belongs to a search with another LUT or other settings; undo the "
                "change, or start anew with another file"
            )
        self._reported = {**state.reported, **self._reported}
        if state.evaluations > self._evaluations:
            self._search.load_state_dict(state.search)
            self._evaluations = state.evaluations
            self._candidates = list(state.candidates)
            self._incumbent = self.incumbents[-1]


def _split(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the search and of the score."""
    of_search = set(EvolutionConfig.__struct_fields__)
    of_score = set(QTConfig.__struct_fields__) - {"constraints_ms"}
    for name in settings.keys() - of_search - of_score:
        known = ", ".join(sorted(of_search | of_score))
        raise ConfigError(f"SpaceEvo: unknown setting {name!r}; known: {known}")
    return (
        {name: value for name, value in settings.items() if name in of_search},
        {name: value for name, value in settings.items() if name in of_score},
    )
