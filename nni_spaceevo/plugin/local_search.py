"""The search without NNI: aging evolution in this process, thousands of spaces in a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import ConfigError
from ..files import Record, digest, exclusive, read_json, to_json, write_atomically
from ..lut import QuantizedLUT
from ..search import AgingEvolution, EvolutionConfig, qt_score
from .job import Job
from .prepare import constraints
from .results import LOCAL, SCHEMA, ScoredSpace, SearchResults
from .trial import metrics_of, score_config

_SAVE_EVERY = 100


class LocalState(Record, frozen=True):
    """Where a search stopped, and what makes it that search."""

    made_for: str
    evolution: dict[str, Any]
    spaces: tuple[ScoredSpace, ...]


def search_locally(
    job: Job, lut: QuantizedLUT, config: EvolutionConfig, evaluations: int
) -> SearchResults:
    """Score `evaluations` spaces, continuing a search that was stopped.

    The state is kept in the job's work folder; a continued search ends with the same spaces.

    Raises
    ------
    ConfigError
        `evaluations` is below 1.
    LockedError
        Another process is searching with this job.
    """
    if evaluations < 1:
        raise ConfigError(f"evaluations must be at least 1, given {evaluations}")
    path = job.work / "local_search.json"
    constraints_ms = constraints(job, lut)
    scoring = score_config(job, constraints_ms)
    made_for = digest(lut.fingerprint, to_json(scoring), to_json(config))
    evolution = AgingEvolution(job.hyperspace, config)
    with exclusive(path):
        found = _continue(path, made_for, evolution)[:evaluations]
        total = min(evaluations, job.hyperspace.num_spaces)
        with tqdm(total=total, initial=len(found), desc="Searching", mininterval=0.5) as bar:
            while len(found) < total:
                code = evolution.ask()
                score = qt_score(lut, code, scoring)
                evolution.tell(code, score.score)
                metrics = metrics_of(score, constraints_ms)
                found.append(ScoredSpace(space=str(code), score=score.score, metrics=metrics))
                bar.update()
                if len(found) % _SAVE_EVERY == 0 or len(found) == total:
                    best, best_score = evolution.best
                    bar.set_postfix_str(f"best {best} {best_score:.4f}")
                    _save(path, made_for, evolution, found)
    return SearchResults(
        schema=SCHEMA,
        hyperspace=job.hyperspace.name,
        hyperspace_fingerprint=job.hyperspace.fingerprint,
        experiment=LOCAL,
        constraints_ms=constraints_ms,
        spaces=tuple(found),
    )


def _continue(path: Path, made_for: str, evolution: AgingEvolution) -> list[ScoredSpace]:
    if not path.is_file():
        return []
    state = read_json(path, LocalState)
    if state.made_for != made_for:
        return []
    evolution.load_state_dict(state.evolution)
    return list(state.spaces)


def _save(path: Path, made_for: str, evolution: AgingEvolution, found: list[ScoredSpace]) -> None:
    state = LocalState(made_for=made_for, evolution=evolution.state_dict(), spaces=tuple(found))
    write_atomically(path, to_json(state))
