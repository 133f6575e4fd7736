"""Where the authors' published data lies: `$SPACEEVO_PUBLISHED`, else `../shared/published`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "SPACEEVO_PUBLISHED"
BESIDE_THE_CHECKOUT = Path(__file__).parents[2] / "shared" / "published"


def published_folder() -> Path | None:
    """The folder of the published data, or None where this machine has none."""
    named = os.environ.get(VARIABLE)
    candidates = [Path(named)] if named else []
    return next((f for f in (*candidates, BESIDE_THE_CHECKOUT) if f.is_dir()), None)


def published_file(name: str) -> Path:
    """A published file; skips the test, saying where it looked, where it is missing."""
    folder = published_folder()
    if folder is None or not (folder / name).is_file():
        pytest.skip(f"needs {name} of the published data in ${VARIABLE} or {BESIDE_THE_CHECKOUT}")
    return folder / name
