"""What INT8 costs by width and sign, runtimes side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from nni_spaceevo.files import read_json

from .conftest import script


def test_all_runtimes_and_both_signs_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("ai_edge_litert", "openvino"):
        pytest.importorskip(package, reason="an optional runtime")
    output = tmp_path / "out.json"
    script("int8_widths").main(["--visits", "1", "--widths", "64", "136", "--output", str(output)])
    found = read_json(output, dict)
    assert found["widths"] == [64, 136]
    assert set(found["depthwise_us"]) == set(script("int8_widths").DEVICES)
    assert all(us > 0 for times in found["depthwise_us"].values() for us in times)
    (rows,) = found["signs"].values()
    assert [row["kernel"] for row in rows] == [k.key for k in script("int8_widths").PADDED]
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("for 8 channels") == 3
