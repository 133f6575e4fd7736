"""A subnet of a trained supernet as a file: what it says of itself, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from nni_spaceevo.cli import main
from nni_spaceevo.errors import (
    CheckpointError,
    CodeError,
    ConfigError,
    DeviceError,
    FileAccessError,
)
from nni_spaceevo.files import read_json
from nni_spaceevo.jobs.export import ExportReport, export_subnet
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.supernets import train_supernet
from nni_spaceevo.latency.tflite_graph import flatbuffer_metadata

from .small_job import SPACE, SUPERNET, write_small_job


def test_the_file_answers_as_the_network_does(job: Job, tmp_path: Path) -> None:
    code = job.hyperspace.random_subnet(job.hyperspace.space(SPACE), np.random.default_rng(0))
    path = tmp_path / "subnet.onnx"
    report = export_subnet(job, str(code), path, space=SPACE)
    found = report.agreement
    assert found.images == 445  # All that are held out of the digits.
    # Six steps of training leave logits close to each other.
    assert found.same > 0.9
    assert found.accuracy is not None and found.network_accuracy is not None
    assert abs(found.accuracy - found.network_accuracy) <= 1 - found.same
    assert found.largest_difference < found.logit_deviation
    assert report.operators.integer["QLinearConv"] > 5
    assert "Conv" not in report.operators.in_float
    assert read_json(tmp_path / "subnet.onnx.json", ExportReport) == report
    about = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert (about["space"], about["subnet"]) == (SPACE, str(code))
    # In floats: no quantizers, and the same answers as torch's.
    floats = export_subnet(
        job, str(code), tmp_path / "floats.onnx", space=SPACE, precision="float32"
    )
    assert floats.agreement.same == 1.0
    assert floats.agreement.largest_difference < 1e-3
    assert floats.operators.integer == {}


def test_the_command_says_what_it_wrote(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--job", str(job.path), "--subnet", "largest", "--space", SPACE]
    assert main([*arguments, "--dynamic-batch"]) == 0
    text = capsys.readouterr().out
    path = job.exported_path / f"{SPACE}-largest.int8.onnx"
    assert text.startswith(f"{path.name}: opset 17, int8, ")
    assert "in ONNX Runtime" in text
    assert "in float: " in text
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert json.loads(path.with_name(f"{path.name}.json").read_text())["space"] == SPACE


def test_what_is_not_there_or_does_not_fit_is_refused(job: Job, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no such supernet; train it first .*--space synthetic-000"
    ):
        export_subnet(job, "largest", space="synthetic-000-000")
    with pytest.raises(ConfigError, match="no such supernet"):
        export_subnet(job, "largest", space=SPACE, seed=9)
    other = str(job.hyperspace.largest_subnet(job.hyperspace.space("synthetic-000-000")))
    with pytest.raises(CodeError):
        export_subnet(job, other, space=SPACE)
    path = job.supernets_path / "seed0" / f"{SPACE}.pt"
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    try:
        with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
            export_subnet(job, "largest", space=SPACE)
    finally:
        path.write_bytes(content)


def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("nni_spaceevo.jobs.export.calibrated_subnet", None)
    with pytest.raises(FileAccessError, match=r"x\.onnx: cannot write"):
        export_subnet(job, "largest", tmp_path / "file" / "x.onnx", space=SPACE)


def test_a_supernet_without_an_int8_phase_has_no_int8_file(tmp_path: Path) -> None:
    only_floats = {**SUPERNET, "int8": {"epochs": 0, "learning_rate": 0.1}}
    job = write_small_job(tmp_path, supernet=only_floats)
    train_supernet(job, SPACE)
    with pytest.raises(CheckpointError, match="without an LSQ\\+ phase has no INT8 subnets"):
        export_subnet(job, "smallest", space=SPACE)
    report = export_subnet(job, "smallest", space=SPACE, precision="float32")
    assert report.agreement.same == 1.0


def test_as_tflite_it_answers_as_the_network_does(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ai_edge_litert", reason="TFLite needs the extra [litert]")
    path = tmp_path / "subnet.tflite"
    arguments = ["export", "--job", str(job.path), "--subnet", "largest", "--space", SPACE]
    assert main([*arguments, "--output", str(path)]) == 0
    text = capsys.readouterr().out
    report = read_json(tmp_path / "subnet.tflite.json", ExportReport)
    found = report.agreement
    assert found.images == 445
    assert found.same > 0.9
    assert found.accuracy is not None and found.network_accuracy is not None
    assert abs(found.accuracy - found.network_accuracy) <= 1 - found.same
    assert f"accuracy {found.accuracy:.2%} in LiteRT, " in text
    assert "in float: 1 FULLY_CONNECTED (logits have no learned range" in text
    about = flatbuffer_metadata(path.read_bytes())
    assert (about["space"], about["subnet"]) == (SPACE, report.subnet)
    floats = tmp_path / "floats.tflite"
    report = export_subnet(job, "largest", floats, space=SPACE, precision="float32")
    assert report.agreement.same == 1.0
    assert report.agreement.largest_difference < 1e-3
    assert main([*arguments, "--output", str(path), "--dynamic-batch"]) == 1
    assert "subnet.tflite: a TFLite file takes one image" in capsys.readouterr().err


def test_without_litert_the_extra_is_named_before_anything_is_done(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "nni_spaceevo.latency.devices.litert", raising=False)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    path = tmp_path / "subnet.tflite"
    words = r"subnet\.tflite needs ai_edge_litert.*pip install 'nni_spaceevo\[litert\]'"
    with pytest.raises(DeviceError, match=words):
        export_subnet(job, "largest", path, space=SPACE)
    assert not path.exists()
