from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml

from nni_spaceevo.plugin import registration
from nni_spaceevo.plugin.seam import ExperimentError


@pytest.fixture(autouse=True)
def own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NNI's list of tuners in a folder of the test."""
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path))
    return tmp_path / "registered_algorithms.yml"


NAMES = "SpaceEvo and SpaceEvoDistill and SpaceEvoSubnets"
CLASSES = {
    "SpaceEvo": "nni_spaceevo.plugin.tuner.SpaceEvoTuner",
    "SpaceEvoDistill": "nni_spaceevo.plugin.distill_tuner.DistillTuner",
    "SpaceEvoSubnets": "nni_spaceevo.plugin.subnet_tuner.SubnetTuner",
}


def test_register_is_idempotent_and_can_be_undone(own_list: Path) -> None:
    assert not registration.is_registered()
    assert registration.register() == f"tuners {NAMES} are registered with NNI"
    assert registration.register() == f"tuners {NAMES} are already registered with NNI"
    entries = yaml.safe_load(own_list.read_text())["tuners"]
    assert {e["builtinName"]: e["className"] for e in entries} == CLASSES
    assert registration.unregister() == f"tuners {NAMES} are no longer registered with NNI"
    assert registration.unregister() == f"tuners {NAMES} are not registered with NNI"
    assert not registration.is_registered()


def test_another_class_under_our_name_is_replaced(own_list: Path) -> None:
    stale = {"builtinName": "SpaceEvo", "className": "old.Tuner", "source": "user"}
    own_list.write_text(yaml.safe_dump({"tuners": [stale]}))
    assert registration.registered_classes() == {**dict.fromkeys(CLASSES), "SpaceEvo": "old.Tuner"}
    assert not registration.is_registered()
    assert (
        registration.register()
        == f"tuners {NAMES} are registered with NNI anew (SpaceEvo was old.Tuner)"
    )
    assert registration.is_registered()


def test_what_nnictl_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = tmp_path / "meta.yml"
    tuner = {"algoType": "tuner", "builtinName": "X", "className": "nni_spaceevo.nowhere.T"}
    meta.write_text(yaml.safe_dump({"algorithms": [tuner]}))
    monkeypatch.setattr(registration, "META", meta)
    with pytest.raises(ExperimentError, match="could not register tuners X") as caught:
        registration.register()
    assert "nni_spaceevo.nowhere" in str(caught.value)


def test_nnis_programs_come_from_this_environment() -> None:
    first = registration.environment()["PATH"].split(os.pathsep)[0]
    assert Path(first) == Path(sys.executable).parent
