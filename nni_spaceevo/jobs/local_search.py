"""The search without NNI: thousands of spaces in seconds, in this process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace
from tqdm import tqdm

from ..errors import ConfigError
from ..files import Record, digest, exclusive, read_json, to_json, write_atomically
from ..lut import QuantizedLUT
from ..search import (
    AgingEvolution,
    EvolutionConfig,
    QTConfig,
    check_constraints,
    make_scorer,
    make_search,
    score_bound,
)
from .job import Job
from .prepare import constraints, search_recipe
from .results import LOCAL, SCHEMA, ScoredSpace, SearchResults
from .scoring import metrics_of, score_config

# A kill loses at most this much work.
_SAVE_EVERY_S = 2.0


class LocalState(Record, frozen=True):
    """Where a search stopped, and what makes it that search."""

    made_for: str
    evolution: dict[str, Any]
    spaces: tuple[ScoredSpace, ...]


def search_locally(
    job: Job, lut: QuantizedLUT, config: EvolutionConfig, evaluations: int
) -> SearchResults:
    """Search the LUT of a job; see `search_lut`.

    State and results are kept in its work folder; `best` is then the best space that it has found.

    Raises
    ------
    LockedError
        Besides what `search_lut` raises: an NNI experiment is searching the same job.
    """
    scoring = score_config(job, constraints(job, lut))
    with exclusive(job.search_path):
        results = replace(
            search_lut(lut, scoring, config, evaluations, job.work / "local_search.json"),
            made_with=search_recipe(job),
            lut=lut.fingerprint,
        )
        results.save(job.search_path)
    return results


def search_lut(
    lut: QuantizedLUT,
    scoring: QTConfig,
    config: EvolutionConfig,
    evaluations: int,
    state: Path,
) -> SearchResults:
    """Score `evaluations` spaces, continuing a search that was stopped.

    A local search at the end, `config.evolve`, begins with the spaces of the bound on the score.

    Parameters
    ----------
    lut : losses and latencies
    scoring : what makes a space good
    config : how to search
    evaluations : how many spaces in all
    state : file that a stopped search is continued from; one of another search is overwritten

    Raises
    ------
    ConfigError
        `evaluations` is below 1.
    ConstraintError
        A constraint that cannot tell spaces apart.
    LockedError
        Another process is searching with this state.
    """
    if evaluations < 1:
        raise ConfigError(f"evaluations must be at least 1, given {evaluations}")
    check_constraints(lut, scoring.constraints_ms)
    made_for = digest(lut.fingerprint, to_json(scoring), to_json(config))
    with exclusive(state):
        first = () if config.evolve is None else score_bound(lut, scoring).codes
        search = make_search(lut.hyperspace, config, first)
        score = make_scorer(lut, scoring)
        found = _continue(state, made_for, search)[:evaluations]
        total = min(evaluations, lut.hyperspace.num_spaces)
        saved = time.monotonic()
        with tqdm(total=total, initial=len(found), desc="Searching", unit="space") as bar:
            while len(found) < total:
                code = search.ask()
                result = score(code)
                search.tell(code, result.score)
                metrics = metrics_of(result, scoring.constraints_ms)
                found.append(ScoredSpace(space=str(code), score=result.score, metrics=metrics))
                bar.update()
                now = time.monotonic()
                if now - saved > _SAVE_EVERY_S or len(found) == total:
                    best, best_score = search.best
                    bar.set_postfix_str(f"best {best} {best_score:.4f}")
                    _save(state, made_for, search, found)
                    saved = now
    return SearchResults(
        schema=SCHEMA,
        hyperspace=lut.hyperspace.name,
        hyperspace_fingerprint=lut.hyperspace.fingerprint,
        experiment=LOCAL,
        constraints_ms=scoring.constraints_ms,
        spaces=tuple(found),
    )


def _continue(path: Path, made_for: str, search: AgingEvolution) -> list[ScoredSpace]:
    if not path.is_file():
        return []
    state = read_json(path, LocalState)
    if state.made_for != made_for:
        return []
    search.load_state_dict(state.evolution)
    return list(state.spaces)


def _save(path: Path, made_for: str, search: AgingEvolution, found: list[ScoredSpace]) -> None:
    state = LocalState(made_for=made_for, evolution=search.state_dict(), spaces=tuple(found))
    # Not `to_json`, whose indented text takes longer than a hundred spaces.
    write_atomically(path, msgspec.json.encode(state))
