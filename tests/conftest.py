"""Fixtures that more than one room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from fake_phone import make_phone
from hypothesis import settings

from nni_spaceevo.files import packed_folder
from nni_spaceevo.hyperspace import Hyperspace, load_hyperspace

# torch reads it when it is loaded, here and in every process that a test starts. Small networks are
# no faster on two threads, and forty times slower where another process wants one of two cores.
os.environ["OMP_NUM_THREADS"] = "1"

# CI runs on two shared cores: no deadline per example, and the same examples on every run.
settings.register_profile("spaceevo", deadline=None, derandomize=True)
settings.load_profile("spaceevo")


@pytest.fixture(scope="session", autouse=True)
def own_locks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests measure beside whatever else measures on this machine, and stop none of it."""
    os.environ["XDG_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def digits() -> Hyperspace:
    """The hyperspace of examples/digits."""
    return load_hyperspace(packed_folder("examples") / "digits" / "hyperspace.yaml")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that starts the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is a phone's root."""
    return make_phone(tmp_path, monkeypatch)
