"""The timing of predictors: what it counts, and that nn-Meter is asked for the same networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nni_spaceevo.files import packed_folder
from nni_spaceevo.latency import load_predictor

from .conftest import script

PREDICTOR = packed_folder("latency_predictors") / "x86_litert_int8"


@pytest.mark.slow
def test_all_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = script("predict_speed")
    monkeypatch.setattr(speed, "SUBNETS", 8)
    monkeypatch.setattr(speed, "REPEATS", 2)
    monkeypatch.setattr(speed, "NETWORKS_FITTED", 40)
    monkeypatch.setattr(speed, "NETWORKS_TIMED", 1)
    output = tmp_path / "speed.json"
    monkeypatch.setattr("sys.argv", ["predict_speed.py", str(PREDICTOR), "--output", str(output)])
    speed.main()
    found = json.loads(output.read_text())
    assert found["predictor"] == "x86_litert_int8"
    times = found["times"]
    assert times["load_s"] > 0
    one, random = times[f"8 subnets of {speed.SPACE}"], times["8 subnets of random spaces"]
    assert 8 < one["blocks"] < random["blocks"]
    assert 0 < one["warm_s"] <= one["cold_s"]
    assert times["nn_meter"]["networks"] == 1
    assert times["nn_meter"]["per_network_s"] > 0
    for agreement in found["nn_meter_agreement"].values():
        assert agreement["count"] > 0


def test_cold_predictors_know_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = script("predict_speed")
    monkeypatch.setattr(speed, "REPEATS", 3)
    loaded = []

    def load(folder: Path) -> object:
        loaded.append(load_predictor(folder))
        return loaded[-1]

    monkeypatch.setattr(speed, "load_predictor", load)
    monkeypatch.setattr(speed, "SUBNETS", 2)
    networks = speed.subnets(speed.load_hyperspace("onnxw"), one_space=False)
    found = speed.predict_times(PREDICTOR, networks)
    assert len(loaded) == 3
    assert found["blocks"] == len({block for n in networks for block in n.placed})
