"""The benchmark scripts as modules; they are no package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
# As Python does for a script that it runs; the scripts import what they share by its bare name.
sys.path.append(str(FOLDER))


def script(name: str) -> ModuleType:
    """A script of the folder `benchmarks`, its `main` not run."""
    return importlib.import_module(name)


@pytest.fixture(scope="package")
def fidelity() -> ModuleType:
    """`benchmarks/block_kd_fidelity.py`."""
    return script("block_kd_fidelity")


@pytest.fixture(scope="package")
def speed() -> ModuleType:
    """`benchmarks/block_kd_speed.py`."""
    return script("block_kd_speed")


@pytest.fixture(scope="package")
def plain() -> ModuleType:
    """`benchmarks/plain_layers.py`."""
    return script("plain_layers")


@pytest.fixture(scope="package")
def sandwich() -> ModuleType:
    """`benchmarks/supernet_step.py`."""
    return script("supernet_step")
