"""Commands that we tell a user to type."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..hyperspace import SpaceCode
    from .job import Job


def program(name: str) -> str:
    """A program of this environment as a user can type it from here, activated or not."""
    here = Path(sys.executable).parent / name
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)


def supernet_command(job: Job, verb: str, space: SpaceCode, seed: int | None = None) -> str:
    """The command that does something with one supernet of a job."""
    other = "" if job.seed(seed) == job.config.seed else f" --seed {job.seed(seed)}"
    return f"spaceevo {verb} --job {job.path} --space {space}{other}"
