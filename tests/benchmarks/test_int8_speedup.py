"""The study of INT8's speedup: its networks, their ONNX files, and what it shows of them."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from published import published_file
from supernet.tiny import OPTIONS, tiny_hyperspace

from nni_spaceevo.errors import ConfigError, QuantizationError
from nni_spaceevo.files import read_yaml
from nni_spaceevo.hyperspace import SpaceCode
from nni_spaceevo.latency.devices.onnx_runtime import optimized

from .conftest import script

# All activations and squeeze-and-excite.
MIXED = tiny_hyperspace(OPTIONS["onnxw-mbv3_res"], OPTIONS["mobilew-fused_mb_se_res"])
SPACE = SpaceCode(MIXED.name, (0, 1), (0, 0))
# Millions of multiply-accumulates, counted by others in graphs of other exporters.
MFLOPS = {"mobilenet_v2": 300.8, "shufflenet_v2_x1_0": 144.9, "resnet18": 1814.1}
SEQNET_MFLOPS = {
    **{"vnni-A0": 163.5, "vnni-A1": 358.2, "vnni-A2": 638.3, "vnni-A3": 981.5, "vnni-A4": 1383.1},
    **{"pixel4-A0": 112.9, "pixel4-A1": 274.0, "pixel4-A2": 398.9, "pixel4-A3": 591.2},
    "pixel4-A4": 738.1,
}
SEQNET_PIXELS = [160, 192, 208, 224, 224, 160, 208, 224, 224, 224]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """`benchmarks/int8_speedup.py`."""
    return script("int8_speedup")


@pytest.fixture(scope="module")
def small(study: ModuleType) -> dict[str, Any]:
    """A subnet, and a network of torchvision that takes means over height and width."""
    subnet = study.seqnet(
        "SEQnet@tiny", study.GROUPS["vnni"], MIXED, SPACE, MIXED.largest_subnet(SPACE)
    )
    other = study.of_torchvision("shufflenet_v2_x0_5", 96)
    return {n.name: n for n in (subnet, other)}


@pytest.fixture(scope="module")
def built(small: dict[str, Any]) -> dict[str, Any]:
    """Models of these by name."""
    return {name: n.build() for name, n in small.items()}


def floats(model: onnx.ModelProto, size: int, channels: int) -> np.ndarray:
    """What ONNX Runtime makes of one fixed image."""
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).normal(size=(1, channels, size, size)).astype(np.float32)
    (found,) = session.run(None, {session.get_inputs()[0].name: image})
    return np.asarray(found)


# ---- networks ----


def test_networks_are_the_published_seqnets_and_torchvisions_by_name_and_size(
    study: ModuleType,
) -> None:
    found = study.networks()
    assert list(found) == [f"SEQnet@{name}" for name in SEQNET_MFLOPS] + list(study.TORCHVISION)
    assert len(found) == 19
    assert [n.pixels for n in found.values()] == [*SEQNET_PIXELS, *[224] * 9]
    for name, expected in SEQNET_MFLOPS.items():
        assert found[f"SEQnet@{name}"].mflops == pytest.approx(expected, abs=0.06)
    assert {n.group for n in found.values()} == set(study.STYLES)


@pytest.mark.published
def test_the_codes_are_the_released_ones(study: ModuleType) -> None:
    import yaml

    released = yaml.safe_load(published_file("published_spaces.yaml").read_text())
    codes = read_yaml(study.CODES, study.Published)
    spaces = {
        name.removeprefix("spaceevo@"): code
        for name, code in released["specific_supernet_encoding_dict"].items()
    }
    assert codes.spaces.items() <= spaces.items()
    assert {f"SEQnet@{n}": code for n, code in codes.subnets.items()} == {
        name: code for name, (_, code) in released["specific_subnet_encoding_dict"].items()
    }


def test_networks_are_chosen_by_name_in_the_tables_order(study: ModuleType) -> None:
    assert len(study.chosen(None)) == 19
    found = study.chosen(["resnet18", "SEQnet@vnni-A0", "resnet18"])
    assert [n.name for n in found] == ["SEQnet@vnni-A0", "resnet18"]
    with pytest.raises(ConfigError, match=r"--networks resnet19: unknown; known: SEQnet@vnni-A0, "):
        study.chosen(["resnet18", "resnet19"])


# ---- models ----


@pytest.mark.parametrize("name", MFLOPS)
def test_multiply_accumulates_are_counted_in_the_graph(study: ModuleType, name: str) -> None:
    import torchvision

    net = torchvision.models.get_model(name, weights=None).eval()
    found = study.million_macs(study.exported(net, torch.zeros(1, 3, 224, 224)))
    assert found == pytest.approx(MFLOPS[name], rel=0.001)


def test_both_kinds_of_networks_are_counted_alike(
    study: ModuleType, small: dict[str, Any], built: dict[str, Any]
) -> None:
    counted = study.million_macs(built["SEQnet@tiny"].float32)
    assert counted == pytest.approx(small["SEQnet@tiny"].mflops)


def test_int8_answers_nearly_as_fp32(small: dict[str, Any], built: dict[str, Any]) -> None:
    for name, models in built.items():
        size = small[name].pixels, 1 if "SEQnet" in name else 3
        fp32, int8 = (floats(m, *size) for m in (models.float32, models.int8))
        assert np.isfinite(fp32).all()
        # Neither vanished nor exploded: random weights, but statistics of images.
        assert 0.01 < fp32.std() < 100
        assert np.corrcoef(fp32.ravel(), int8.ravel())[0, 1] > 0.8


def test_means_over_height_and_width_become_integer_pooling(built: dict[str, Any]) -> None:
    model = built["shufflenet_v2_x0_5"]
    written = Counter(node.op_type for node in model.float32.graph.node)
    assert written["GlobalAveragePool"] == 1
    assert not {"ReduceMean", "BatchNormalization"} & written.keys()
    found = Counter(node.op_type for node in optimized(model.int8).graph.node)
    assert found["QLinearGlobalAveragePool"] == 1
    assert found["QLinearConv"] == written["Conv"]


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_is_pooling_whether_it_keeps_its_axes_or_not(
    study: ModuleType, keepdims: int
) -> None:
    shape = [1, 5, 1, 1] if keepdims else [1, 5]
    helper = onnx.helper
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)
        for name, sizes in (("x", [1, 5, 4, 4]), ("y", shape))
    ]
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[-1, -2], keepdims=keepdims)
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    expected = floats(model, 4, 5)
    found = floats(study.with_pooling(model), 4, 5)
    assert "GlobalAveragePool" in {n.op_type for n in model.graph.node}
    assert found.shape == tuple(shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_file_that_computes_something_else_is_refused(study: ModuleType) -> None:
    image = torch.ones(1, 3, 4, 4)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten()).eval()
    model = study.exported(net, image)
    study.require_same("net", model, net, image)
    with torch.no_grad():
        net[0].weight.add_(0.1)
    with pytest.raises(QuantizationError, match=r"net: logits of its ONNX file are .* apart"):
        study.require_same("net", model, net, image)


@pytest.mark.parametrize("name", ["SEQnet@vnni-A0", "SEQnet@pixel4-A0"])
def test_every_convolution_of_a_seqnet_is_integer(study: ModuleType, name: str) -> None:
    model = study.networks()[name].build().int8
    written = Counter(node.op_type for node in model.graph.node)
    found = Counter(node.op_type for node in optimized(model).graph.node)
    assert found["QLinearConv"] == written["Conv"] > 30
    assert found["QGemm"] == written["Gemm"] == 1
    left = study.left_in_float(model)
    assert not {op for op in left if "Conv" in op or "Gemm" in op or "Pool" in op}
    # Hard-swish and its gate are; ONNX Runtime has no INT8 kernel of them.
    assert left["HardSigmoid"] > 0


def test_only_what_takes_floats_is_said_to_be_in_float(
    study: ModuleType, built: dict[str, Any]
) -> None:
    # The optimised graph has splits, and pooling by another name; both of integers.
    model = built["shufflenet_v2_x0_5"].int8
    assert {"Split", "NhwcMaxPool"} <= {n.op_type for n in optimized(model).graph.node}
    assert study.left_in_float(model) == {}
    found = study.left_in_float(built["shufflenet_v2_x0_5"].float32)
    assert sum(found.values()) > 40


# ---- the whole of it ----


def figures(study: ModuleType) -> list[dict[str, Any]]:
    """Made-up figures of all networks; a crowd, for every other is like its neighbour."""
    rows = []
    for i, n in enumerate(study.networks().values()):
        fp32 = 1.5 * 1.2 ** (i - i % 2)
        rows.append(
            {
                "network": n.name,
                "group": n.group,
                "fp32": {"ms": fp32},
                "int8": {"ms": 0.5 * fp32 * (1 + 0.02 * (i % 2))},
            }
        )
    return rows


def test_the_picture_has_every_name_and_none_covers_another(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[str, Any]] = []
    label = study._label

    def keep(axes: Any, r: dict[str, Any], offset: tuple[float, float]) -> Any:
        made, box = label(axes, r, offset)
        kept.append((made, box))
        return made, box

    monkeypatch.setattr(study, "_label", keep)
    content = study.picture(figures(study))
    shown = [(made, box) for made, box in kept if made.axes is not None]
    names = [made.get_text() for made, _ in shown]
    assert names == [n.removeprefix("SEQnet@") for n in study.networks()]
    boxes = [box for _, box in shown]
    assert all(not box.count_overlaps(boxes[:i]) for i, box in enumerate(boxes))
    from matplotlib.image import imread

    height, width, _ = imread(io.BytesIO(content)).shape
    assert all(0 < b.x0 < b.x1 < width and 0 < b.y0 < b.y1 < height for b in boxes)


def run(study: ModuleType, folder: Path, *more: str) -> dict[str, Any]:
    """What the command writes."""
    given = ["--rounds", "2", "--work", str(folder / "work"), "--output", str(folder / "out.json")]
    study.main([*given, *more])
    result: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return result


def test_the_command_times_all_files_and_builds_them_once(
    study: ModuleType,
    small: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(study, "networks", lambda: small)
    result = run(study, tmp_path)
    assert list(result)[:3] == ["machine", "versions", "date"]
    assert result["rounds"] == 2
    assert "2 rounds of the files by turns" in result["protocol"]
    assert result["threads"] == 1
    rows = result["networks"]
    assert [r["network"] for r in rows] == list(small)
    for r in rows:
        ratios = []
        for p in ("fp32", "int8"):
            found = r[p]
            assert 0 < found["low_ms"] <= found["ms"] <= found["high_ms"]
            assert len(found["rounds_ms"]) == 2
            assert found["ms_per_mflop"] == pytest.approx(found["ms"] / r["mflops"], rel=0.01)
            ratios.append(np.array(found["rounds_ms"]))
        assert r["int8_over_fp32"] == pytest.approx(np.median(ratios[1] / ratios[0]), rel=0.02)
        assert r["int8"]["size_kb"] < r["fp32"]["size_kb"]
    assert rows[0]["mflops"] == pytest.approx(small["SEQnet@tiny"].mflops, abs=0.01)
    assert [r["pixels"] for r in rows] == [n.pixels for n in small.values()]

    shown = capsys.readouterr().out
    assert shown == (tmp_path / "out.md").read_text()
    lines = shown.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:4]] == list(small)
    assert {line.count("|") for line in lines[:4]} == {10}
    assert result["protocol"] in shown
    assert f"onnxruntime {result['versions']['onnxruntime']}" in shown
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")

    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("*.onnx")}
    assert len(kept) == 4
    alone = run(study, tmp_path, "--networks", "SEQnet@tiny")
    assert [r["network"] for r in alone["networks"]] == ["SEQnet@tiny"]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("*.onnx")} == kept


def test_files_are_built_equal_each_time(small: dict[str, Any], built: dict[str, Any]) -> None:
    torch.rand(7)  # Whatever else has drawn numbers.
    again = small["SEQnet@tiny"].build()
    before = built["SEQnet@tiny"]
    assert again.int8.SerializeToString() == before.int8.SerializeToString()
    assert again.float32.SerializeToString() == before.float32.SerializeToString()


def test_what_is_wrong_is_said_in_a_line(study: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: --networks vgg: unknown; known: SEQnet@vnni-A0"):
        run(study, tmp_path, "--networks", "vgg")
    assert not (tmp_path / "out.json").exists()
