"""Files timed side by side: every file has its turn, and what cannot be timed is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nni_spaceevo.deploy.bench import Bench, FileTiming, time_files
from nni_spaceevo.errors import ConfigError, DeviceError
from nni_spaceevo.files import convert, plain


def product(path: Path, size: int, shape: list[int | str], kind: int = TensorProto.FLOAT) -> Path:
    """A file that multiplies its input with a matrix of so many rows, again and again."""
    values = [
        helper.make_tensor_value_info("x", kind, shape),
        helper.make_tensor_value_info("y", kind, None),
    ]
    matrix = onnx.numpy_helper.from_array(np.eye(size, dtype=np.float32), "w")
    names = ["x", *(f"t{i}" for i in range(9)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in pairwise(names)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [matrix])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_larger_files_take_longer_and_everything_is_kept(tmp_path: Path) -> None:
    small = product(tmp_path / "small.onnx", 8, ["n", 8])
    large = product(tmp_path / "large.onnx", 512, [1, 512])
    found = time_files([small, large], rounds=3)
    first, second = found.files
    assert [Path(f.file) for f in found.files] == [small, large]
    assert first.median_ms < second.median_ms
    for timing in found.files:
        assert 0 < timing.low_ms <= timing.median_ms <= timing.high_ms
        assert len(timing.rounds_ms) == 3
    assert second.size_kb == pytest.approx(large.stat().st_size / 1e3)
    assert second.ratio_to(first) > 1 == first.ratio_to(first)
    assert found.machine.threads == 1
    assert found.machine.runtime.startswith("onnxruntime ")
    table = found.table().splitlines()
    assert len(table) == 4
    assert "| 1.00x |" in table[2]
    assert convert(plain(found), Bench, "bench") == found


def test_a_ratio_is_the_median_over_rounds_that_both_saw() -> None:
    # The machine was slow in the second round.
    rows = ((1.0, 9.0, 1.0), (2.0, 18.0, 2.2))
    a, b = (FileTiming("f", "onnxruntime 1", 1.0, r[0], r[0], r[1], r) for r in rows)
    assert b.ratio_to(a) == 2.0


def test_what_cannot_be_timed_is_refused_by_name(tmp_path: Path) -> None:
    fine = product(tmp_path / "fine.onnx", 8, [1, 8])
    with pytest.raises(ConfigError, match="0 files, 20 rounds"):
        time_files([])
    with pytest.raises(ConfigError, match="1 files, 0 rounds, 1 threads; expected one or more"):
        time_files([fine], rounds=0)
    with pytest.raises(DeviceError, match=r"none\.onnx: ONNX Runtime cannot read it"):
        time_files([fine, tmp_path / "none.onnx"])
    open_size = product(tmp_path / "open.onnx", 8, ["n", "m", 8])
    with pytest.raises(ConfigError, match=r"open\.onnx: input 'x' is .*expected floats of fixed"):
        time_files([open_size])
    with pytest.raises(ConfigError, match="runtimes toaster; expected some of onnxruntime, openv"):
        time_files([fine], runtimes=["toaster"])


def test_an_onnx_file_has_its_turn_under_each_runtime(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="an optional runtime")
    one, any_number = (
        product(tmp_path / f"{name}.onnx", 8, shape)
        for name, shape in (("one", [1, 8]), ("any", ["n", 8]))
    )
    found = time_files([one, any_number], rounds=2, runtimes=["onnxruntime", "openvino"])
    assert [Path(f.file).name for f in found.files] == ["one.onnx"] * 2 + ["any.onnx"] * 2
    names = [f.runtime.split()[0] for f in found.files]
    assert names == ["onnxruntime", "openvino"] * 2
    assert all(f.runtime in found.machine.runtime and f.median_ms > 0 for f in found.files)
    assert found.machine.network_options["openvino INFERENCE_PRECISION_HINT"] == "f32"
    assert "| onnxruntime " in found.table()
    with pytest.raises(DeviceError, match=r"none\.onnx: OpenVINO cannot read it"):
        time_files([tmp_path / "none.onnx"], runtimes=["openvino"])
