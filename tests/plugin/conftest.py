"""NNI for one test, in a home folder of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nni import trial

from nni_spaceevo.plugin.registration import environment, nnictl, register

from .nni_experiments import NNI


@pytest.fixture(autouse=True)
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins outside a trial: NNI keeps the last one's parameters in its module."""
    monkeypatch.setattr(trial, "_params", None)


@pytest.fixture
def nni(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[NNI]:
    """NNI with its experiments, and its list of tuners, in a temporary folder."""
    assert request.node.get_closest_marker("experiment"), "mark the test: it has to run alone"
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NNI_CONFIG_DIR", str(home / "config"))
    monkeypatch.setenv("PATH", environment()["PATH"])
    register()
    running = NNI(home)
    yield running
    nnictl("stop", "--all")
    deadline = time.monotonic() + 10
    while (left := running.pids()) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in left:
        subprocess.run(["kill", "-9", str(pid)], check=False)
