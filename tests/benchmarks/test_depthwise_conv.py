"""Where wide depthwise kernels are trained quicker by columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from nni_spaceevo.files import read_json

from .conftest import script


def test_both_ways_are_measured_by_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.json"
    script("depthwise_conv").main(["--repeats", "1", "--limit", "2", "--output", str(output)])
    rows = read_json(output, dict)["convolutions"]
    assert len(rows) == 2
    for row in rows:
        assert row["times_faster"] > 0
        assert set(row["ms"]) == {"torch", "columns"}
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    # The first is too small, or the processor another.
    assert not rows[0]["chosen"]
    assert "left to torch: columns are" in capsys.readouterr().out


def test_convolutions_are_those_that_the_hyperspace_trains() -> None:
    found = script("depthwise_conv").shapes()
    # MobileNetV2 blocks of stage2's largest width, eight times as wide within.
    assert (16, 768, 20, 5) in found
    assert all(kernel > 3 for *_, kernel in found)
