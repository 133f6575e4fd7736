"""What every raw output begins with."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from .conftest import FOLDER, script


def test_packages_and_devices_are_added_to_python_and_processor() -> None:
    made = script("provenance").provenance("scikit-learn", gpu="H200")
    assert made["versions"] == {
        "python": platform.python_version(),
        "scikit-learn": version("scikit-learn"),
    }
    assert list(made["machine"]) == ["cpu", "flags", "cores", "gpu"]
    assert made["machine"]["gpu"] == "H200"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_raw_outputs_begin_with_it(path: Path) -> None:
    raw, made = json.loads(path.read_text()), script("provenance").provenance()
    assert list(raw)[: len(made)] == list(made)
    for key in ("machine", "versions"):
        assert made[key].keys() <= raw[key].keys()
