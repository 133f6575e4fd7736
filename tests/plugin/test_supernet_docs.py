"""docs/supernet.md tells the truth: its code runs and does what the text says."""

from __future__ import annotations

import atexit
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from nni import report_final_result
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.experiment import NasExperiment
from nni.nas.space import RawFormatModelSpace
from supernet.tiny import stripes
from torch.utils.data import TensorDataset

from nni_spaceevo.files import to_yaml
from nni_spaceevo.hyperspace import Hyperspace
from nni_spaceevo.latency.devices.onnx_runtime import EXACT_SUMS
from nni_spaceevo.supernet.weights import load_supernet
from nni_spaceevo.testing import MACsLatency

TEXT = (Path(__file__).parents[2] / "docs" / "supernet.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
SPACE = "digits-0132-0000"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_its_code_runs(digits: Hyperspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("hyperspace.yaml").write_text(to_yaml(digits))
    data = stripes()
    # As many classes as the hyperspace has; nothing is learned here.
    labels, test_labels = (torch.arange(n) % 10 for n in (data.train_size, data.test_size))
    data = replace(data, labels=labels, test_labels=test_labels)
    monkeypatch.setattr("nni_spaceevo.distill.data.load_dataset", lambda name: data)
    experiments = []
    start = NasExperiment.__init__

    def note(experiment: NasExperiment, *args: Any, **kwargs: Any) -> None:
        start(experiment, *args, **kwargs)
        experiments.append(experiment)

    monkeypatch.setattr(NasExperiment, "__init__", note)
    names: dict[str, Any] = {
        "train_loader": DataLoader(TensorDataset(data.images, data.labels), batch_size=64),
        "held_out_loader": DataLoader(TensorDataset(data.test_images, data.test_labels)),
        "predictor": MACsLatency(macs_per_ms=1e9),
    }
    python, nni, latency, session = (re.sub(r"epochs=\d+", "epochs=1", block) for block in BLOCKS)
    exec(python, names)
    images = data.test_images
    read = load_supernet(Path("supernet") / f"{SPACE}.pt", digits, SPACE)
    largest = names["supernet"].largest
    assert torch.equal(read(images, largest), names["supernet"](images, largest))
    # The strategy does not go on with what it has not begun.
    exec(nni.replace('"supernet"', '"other"'), names)
    experiments[0].stop()
    atexit.unregister(experiments[0].stop)
    assert Path(f"other/{SPACE}.pt").is_file()
    space = names["space"]
    sample = space.choices.sample(largest)
    assert {"stage2/depth", "stage2/block1/kernel_size", "resolution"} <= sample.keys()
    assert space.choices.subnet(sample) == largest == space.freeze(sample).code
    options = onnxruntime.SessionOptions()
    exec(session, {"options": options})
    assert options.get_session_config_entry(EXACT_SUMS) == "1"
    exec(latency, names)
    judge = FunctionalEvaluator(lambda subnet: report_final_result(float(len(subnet.stages))))
    engine = SequentialExecutionEngine(max_model_count=3)
    names["strategy"](RawFormatModelSpace(space, judge), engine)
    assert len(list(engine.list_models())) == 3
