"""Model files opened by each runtime: the same answers, and what is missing is named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from supernet.tiny import OPTIONS, tiny_hyperspace, uniform, used_supernet

from nni_spaceevo.deploy.onnx_file import onnx_model, save_onnx
from nni_spaceevo.deploy.sessions import open_session, runtimes_of
from nni_spaceevo.errors import ConfigError, DeviceError
from nni_spaceevo.quant import INT8


@pytest.mark.parametrize("name", ["onnxw-mbv3_res", "onnxw-fused_mb_res", "mobilew-mbv2_res"])
def test_openvino_answers_as_onnx_runtime_does(name: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="an optional runtime")
    hyperspace = tiny_hyperspace(OPTIONS[name])
    supernet = used_supernet(hyperspace, uniform(hyperspace), INT8)
    subnet = supernet.extract(supernet.largest)
    blocks = hyperspace.subnet_blocks(supernet.space, subnet.code)
    path = tmp_path / "subnet.onnx"
    model = onnx_model(subnet, blocks, subnet.code.resolution, dynamic_batch=True)
    save_onnx(model, path)
    size = subnet.code.resolution
    images = np.random.default_rng(0).normal(size=(64, 1, size, size)).astype(np.float32)
    sessions = [open_session(path, runtime) for runtime in ("onnxruntime", "openvino")]
    assert {(session.image, session.classes) for session in sessions} == {((1, size), 4)}
    first, second = (session.logits(images) for session in sessions)
    assert np.abs(first - second).mean() < 0.1 * first.std()
    assert (first.argmax(1) == second.argmax(1)).mean() > 0.85


def test_the_file_says_what_runs_it() -> None:
    assert runtimes_of(Path("a.onnx")) == ("onnxruntime",)
    both = ("openvino", "onnxruntime")
    assert runtimes_of(Path("a.onnx"), [*both, "openvino"]) == both
    assert runtimes_of(Path("a.tflite"), both) == ("litert",)


@pytest.mark.parametrize(
    ("file", "runtime", "package", "extra"),
    [
        ("a.tflite", None, "ai_edge_litert.interpreter", "litert"),
        ("a.onnx", "openvino", "openvino", "openvino"),
    ],
)
def test_a_runtime_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, file: str, runtime: str | None, package: str, extra: str
) -> None:
    for module in ("litert", "openvino"):
        monkeypatch.delitem(sys.modules, f"nni_spaceevo.latency.devices.{module}", raising=False)
        name = f"nni_spaceevo.deploy.{module}_session"
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DeviceError, match=rf"{file} needs .*nni_spaceevo\[{extra}\]"):
        open_session(Path(file), runtime)


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_a_tflite_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    pytest.importorskip("ai_edge_litert", reason="TFLite needs the extra [litert]")
    path = tmp_path / "broken.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeviceError, match=r"broken\.tflite: LiteRT cannot read it"):
        open_session(path)


def test_a_file_for_several_images_at_a_time_is_refused(tmp_path: Path) -> None:
    hyperspace = tiny_hyperspace()
    supernet = used_supernet(hyperspace, uniform(hyperspace), INT8)
    subnet = supernet.extract(supernet.largest)
    blocks = hyperspace.subnet_blocks(supernet.space, subnet.code)
    model = onnx_model(subnet, blocks, subnet.code.resolution)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 8
    save_onnx(model, tmp_path / "eight.onnx")
    with pytest.raises(ConfigError, match=r"eight\.onnx: input 'input' takes 8 at a time, \[8, 1,"):
        open_session(tmp_path / "eight.onnx")
