"""The benchmark scripts as modules; they are no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    """A script of the folder `benchmarks`, its `main` not run."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="package")
def fidelity() -> ModuleType:
    """`benchmarks/block_kd_fidelity.py`."""
    return script("block_kd_fidelity")


@pytest.fixture(scope="package")
def speed() -> ModuleType:
    """`benchmarks/block_kd_speed.py`."""
    return script("block_kd_speed")
