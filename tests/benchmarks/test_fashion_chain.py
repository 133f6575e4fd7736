"""The whole way, as a user runs it, with a job of minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs.small_job import SUBNETS, SUPERNET, write_small_job

from nni_spaceevo.files import convert, read_json
from nni_spaceevo.jobs.comparison import SEARCHED, Comparison

from .conftest import script


@pytest.mark.slow
def test_the_chain_goes_from_images_to_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_small_job(tmp_path, stages=1, supernet=SUPERNET, subnets=SUBNETS)
    given = ["--job", str(job.path), "--seeds", "0", "--manual", "resnet", "--evaluations", "9"]
    output = tmp_path / "outcome" / "chain.json"
    script("fashion_chain").main([*given, "--output", str(output)])
    result = read_json(output, dict)
    found = convert(result["comparison"], Comparison, "chain.json")
    assert {entry.contender for entry in found.entries} <= {c.name for c in found.contenders}
    assert found.of(SEARCHED, 0)
    assert {"teacher", "distillation and LUT rows", "search"} < result["seconds"].keys()
    assert len(result["conclusions"]) == 1
    assert output.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    shown = output.with_suffix(".md").read_text()
    assert "# Searched and manually designed spaces" in shown
    assert "(chain.png)" in shown
    assert shown.strip() in capsys.readouterr().out


def test_a_step_that_fails_ends_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="1"):
        script("fashion_chain").main(["--job", str(tmp_path / "none.yaml")])
