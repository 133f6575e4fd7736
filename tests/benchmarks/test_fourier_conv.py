"""Where dense kernels are quicker by way of frequencies."""

from __future__ import annotations

from pathlib import Path

import pytest

from nni_spaceevo.files import read_json

from .conftest import script


def test_both_ways_are_measured_by_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.json"
    script("fourier_conv").main(["--repeats", "1", "--limit", "2", "--output", str(output)])
    rows = read_json(output, dict)["convolutions"]
    assert [row["weight"] for row in rows] == [[16, 16, 3, 3], [16, 16, 5, 5]]
    for row in rows:
        assert row["times_faster"] > 0
        assert not row["chosen"]
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "2 left to torch" in capsys.readouterr().out


def test_convolutions_are_those_that_the_hyperspace_trains() -> None:
    found = script("fourier_conv").shapes()
    # ResNet blocks of stage3's largest width, and fused ones of stage6's.
    assert (16, 216, 10, 216, 7) in found
    assert (16, 448, 5, 1792, 7) in found
    assert all(kernel > 1 for *_, kernel in found)
