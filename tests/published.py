"""Where the authors' published data lies: `$SPACEEVO_PUBLISHED`, else `../shared/published`."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from nni_spaceevo.hyperspace import load_hyperspace
from nni_spaceevo.lut import OtherStages, QuantizedLUT

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


@cache
def published_lut(name: str) -> QuantizedLUT:
    """A published LUT with 2 ms for stem and head; skips the test where it is missing."""
    from nni_spaceevo.lut.published import import_published

    hyperspace = load_hyperspace(name)
    other = OtherStages.given(hyperspace, dict.fromkeys(hyperspace.distill_resolutions, 2.0))
    return import_published([published_file(f"block_lut_{name}.csv.gz")], hyperspace, other)
