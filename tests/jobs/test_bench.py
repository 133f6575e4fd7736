"""Exported subnets measured, predicted and judged in one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nni_spaceevo.cli import main
from nni_spaceevo.deploy.bench import Bench
from nni_spaceevo.errors import ConfigError
from nni_spaceevo.files import read_json
from nni_spaceevo.jobs.bench import accuracy, bench_files, predicted_ms
from nni_spaceevo.jobs.distillation import images
from nni_spaceevo.jobs.export import export_subnet
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.predictors import prepared_predictor

from .small_job import SPACE


def test_files_are_measured_predicted_and_judged(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / name for name in ("int8.onnx", "fp32.onnx")]
    reports = [
        export_subnet(job, "smallest", paths[0], space=SPACE),
        export_subnet(job, "smallest", paths[1], space=SPACE, precision="float32"),
    ]
    folder = tmp_path / "out"
    arguments = ["bench", *map(str, paths), "--job", str(job.path), "--rounds", "2"]
    assert main([*arguments, "--output", str(folder)]) == 0
    text = capsys.readouterr().out
    found = read_json(folder / "bench.json", Bench)
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    told = (folder / "bench.md").read_text()
    assert text.strip() in told
    assert "batch 1, 1 thread(s) on core " in told
    int8, floats = found.files
    assert str(paths[0]) in text
    assert [f.accuracy for f in found.files] == [r.agreement.accuracy for r in reports]
    # The job's predictor is of INT8.
    assert floats.predicted_ms is None
    assert int8.predicted_ms == predicted_ms(job.hyperspace, paths[0], prepared_predictor(job))
    assert 0 < int8.predicted_ms < 100


def test_runtimes_stand_side_by_side(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("ai_edge_litert", "openvino"):
        pytest.importorskip(package, reason="an optional runtime")
    paths = [tmp_path / f"subnet.{kind}" for kind in ("onnx", "tflite")]
    reports = [export_subnet(job, "smallest", path, space=SPACE) for path in paths]
    arguments = ["bench", *map(str, paths), "--rounds", "2", "--output", str(tmp_path)]
    runtimes = ["--runtime", "onnxruntime", "openvino"]
    assert main([*arguments, "--job", str(job.path), *runtimes]) == 0
    assert "| ai-edge-litert " in capsys.readouterr().out
    found = read_json(tmp_path / "bench.json", Bench).files
    names = [f.runtime.split()[0] for f in found]
    assert names == ["onnxruntime", "openvino", "ai-edge-litert"]
    ort, openvino, tflite = (f.accuracy for f in found)
    assert [ort, tflite] == [report.agreement.accuracy for report in reports]
    assert ort is not None and openvino is not None and abs(ort - openvino) < 0.05
    assert len({f.predicted_ms for f in found}) == 1
    assert found[0].predicted_ms is not None


def test_files_that_do_not_take_the_jobs_images_are_refused(job: Job, tmp_path: Path) -> None:
    data = images(job)
    for name, channels, classes, words in (
        ("colour", 3, 10, "expected images of 1 channels alone"),
        ("imagenet", 1, 1000, "answers with 1000 classes; the images have 10"),
    ):
        size = channels * 4
        values = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 2, 2]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes]),
        ]
        matrix = onnx.numpy_helper.from_array(np.ones((size, classes), np.float32), "w")
        nodes = [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
        ]
        graph = helper.make_graph(nodes, "g", values[:1], values[1:], [matrix])
        opset = [helper.make_opsetid("", 17)]
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        with pytest.raises(ConfigError, match=words):
            accuracy(path, data)


def test_what_cannot_be_judged_or_kept_is_said_before_anything_is_measured(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*given: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("nni_spaceevo.jobs.bench.time_files", never)
    path = tmp_path / "subnet.onnx"
    export_subnet(job, "smallest", path, space=SPACE)
    (tmp_path / "file").write_text("no folder")
    arguments = ["bench", str(path), "--job", str(job.path)]
    assert main([*arguments, "--output", str(tmp_path / "file")]) == 1
    assert "bench.json: cannot write" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:500])
    assert main(arguments) == 1
    assert f"{path}: " in capsys.readouterr().err


def test_a_file_of_another_hyperspace_is_not_predicted(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "subnet.onnx"
    export_subnet(job, "smallest", path, space=SPACE)
    model = onnx.load(path)
    (about,) = (p for p in model.metadata_props if p.key == "hyperspace")
    about.value = "another"
    onnx.save(model, path)
    assert predicted_ms(job.hyperspace, path, prepared_predictor(job)) is None
    # Files of before did not say it.
    model.metadata_props.remove(about)
    onnx.save(model, path)
    assert predicted_ms(job.hyperspace, path, prepared_predictor(job)) is not None
    (space,) = (p for p in model.metadata_props if p.key == "space")
    space.value = "pets-01-10"
    onnx.save(model, path)
    assert predicted_ms(job.hyperspace, path, prepared_predictor(job)) is None


def test_without_labels_files_are_measured_and_not_judged(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "subnet.onnx"
    export_subnet(job, "smallest", path, space=SPACE)
    bare = replace(images(job), train_labels=None, test_labels=None, classes=0)
    monkeypatch.setattr("nni_spaceevo.jobs.bench.images", lambda job: bare)
    (timing,) = bench_files([path], job, rounds=1).files
    assert timing.accuracy is None
    assert timing.predicted_ms is not None
