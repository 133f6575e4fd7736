"""Commands that we tell a user to type."""

from __future__ import annotations

import sys
from pathlib import Path


def program(name: str) -> str:
    """A program of this environment as a user can type it from here, activated or not."""
    here = Path(sys.executable).parent / name
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)
