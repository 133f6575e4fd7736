"""Real experiments that export and measure subnets' files."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs.small_job import SPACE, SUPERNET, write_small_job

from nni_spaceevo.files import to_yaml
from nni_spaceevo.jobs.supernets import train_supernet
from nni_spaceevo.plugin import seam

from .nni_experiments import NNI

pytestmark = [pytest.mark.slow, pytest.mark.experiment]


def test_experiments_export_and_measure_subnets(nni: NNI, tmp_path: Path) -> None:
    job = write_small_job(tmp_path / "job", supernet=SUPERNET)
    train_supernet(job, SPACE)
    for kind in ("export", "bench"):
        # As `examples/digits/export.yml` and `bench.yml`.
        config = {
            "experimentName": "test",
            "searchSpace": {
                "space": {"_type": "choice", "_value": [SPACE]},
                "subnet": {"_type": "choice", "_value": ["smallest", "largest"]},
            },
            "trialCommand": f"python3 -m nni_spaceevo.plugin.{kind}_trial --job spaceevo.yaml",
            "trialCodeDirectory": ".",
            "trialConcurrency": 1,
            "maxTrialNumber": 2,
            "tuner": {"name": "GridSearch", "classArgs": {"optimize_mode": "minimize"}},
            "trainingService": {"platform": "local"},
        }
        path = job.path.parent / f"{kind}.yml"
        path.write_text(to_yaml(config))
        port = nni.create(path)
        nni.wait(port)
        found = {t.parameters["subnet"]: t.metrics for t in seam.trials(port)}
        assert found.keys() == {"smallest", "largest"}
        for name, metrics in found.items():
            assert metrics is not None
            assert Path(metrics["file"]) == job.exported_path / f"{SPACE}-{name}.int8.onnx"
            assert metrics["default"] > 0
    assert len(list(job.exported_path.glob("*.onnx"))) == 4
