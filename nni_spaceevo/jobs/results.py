"""What a search leaves behind: its scored spaces, and the tuner's state for resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import Record, read_json, to_json, write_atomically
from .job import Job
from .prepare import lut_fingerprint, search_recipe

SCHEMA = 1
# In place of an NNI experiment's id.
LOCAL = "local"


class ScoredSpace(Record, frozen=True):
    """A space that a trial has scored.

    Attributes
    ----------
    space : space code
    score : Q-T score
    metrics : all that the trial reported, `default` and `space` included
    """

    space: str
    score: float
    metrics: dict[str, Any]


class SearchResults(Record, frozen=True):
    """The contents of `search.json`.

    Attributes
    ----------
    schema : version of the file format
    hyperspace, hyperspace_fingerprint : what was searched
    experiment : id of the NNI experiment, or `LOCAL`
    constraints_ms : latency constraints T in milliseconds
    spaces : in the order in which they were scored
    made_with : fingerprint of the job's settings that scores depend on; empty without a job
    lut : fingerprint of the LUT that scores are by; empty if it is not known
    """

    schema: int
    hyperspace: str
    hyperspace_fingerprint: str
    experiment: str
    constraints_ms: tuple[float, ...]
    spaces: tuple[ScoredSpace, ...] = ()
    made_with: str = ""
    lut: str = ""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"search schema {self.schema}; this version reads {SCHEMA}")

    @property
    def best(self) -> ScoredSpace:
        """The space of the highest score; the smaller code wins a tie."""
        if not self.spaces:
            raise ValueError("no space has been scored yet")
        return min(self.spaces, key=lambda s: (-s.score, s.space))

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomically(path, to_json(self))

    @classmethod
    def load(cls, path: Path) -> SearchResults:
        """Read the file; raises `FileAccessError` or `ConfigError` naming it."""
        return read_json(path, cls)


def last_search(job: Job) -> SearchResults:
    """The results of a job's last search.

    Raises
    ------
    ConfigError
        There has been no search, or one with other settings or another LUT than the job has now.
    """
    path, command = job.search_path, f"`spaceevo search --job {job.path}`"
    if not path.is_file():
        raise ConfigError(f"no {path}; search first ({command})")
    found = SearchResults.load(path)
    if found.hyperspace_fingerprint != job.hyperspace.fingerprint or not found.spaces:
        raise ConfigError(
            f"{path} has no scored spaces of the hyperspace {job.hyperspace.name!r} that "
            f"{job.path} has now; search again ({command})"
        )
    if found.made_with and found.made_with != search_recipe(job):
        raise ConfigError(
            f"{path} is of a search with other settings (images, teacher, LUT, predictor or "
            f"search) than {job.path} has now; search again ({command}), or undo the change"
        )
    if found.lut and lut_fingerprint(job) not in ("", found.lut):
        raise ConfigError(
            f"{path} is of a search in another LUT than {job.lut_path} is now; search again "
            f"({command})"
        )
    return found


class SearchKey(Record, frozen=True):
    """What makes two searches the same: continuing one as the other is refused."""

    hyperspace_fingerprint: str
    population_size: int
    sample_size: int
    evolve: int | None
    seed: int
    made_with: str = ""


class TunerState(Record, frozen=True):
    """All that a killed tuner needs to continue to the same result.

    Attributes
    ----------
    schema : version of the file format
    search : the search that it belongs to
    evolution : `AgingEvolution.state_dict`
    asked : space codes handed to NNI, in order
    failed : space codes whose trial failed
    told : results, in order
    lut : fingerprint of the LUT that scores are by; empty before there is one
    """

    schema: int
    search: SearchKey
    evolution: dict[str, Any]
    asked: tuple[str, ...]
    failed: tuple[str, ...]
    told: tuple[ScoredSpace, ...]
    lut: str = ""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"tuner state schema {self.schema}; this version reads {SCHEMA}")
