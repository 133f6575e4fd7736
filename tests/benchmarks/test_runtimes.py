"""The same subnets in several runtimes, side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs.small_job import SPACE, SUPERNET, write_small_job

from nni_spaceevo.deploy.bench import Bench
from nni_spaceevo.files import convert, read_json
from nni_spaceevo.jobs.supernets import load_trained, train_supernet

from .conftest import script


@pytest.mark.slow
def test_subnets_are_measured_and_judged_in_each_runtime(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("ai_edge_litert", "openvino"):
        pytest.importorskip(package, reason="an optional runtime")
    job = write_small_job(tmp_path, supernet=SUPERNET)
    train_supernet(job, SPACE)
    code = str(load_trained(job, job.hyperspace.space(SPACE), None).largest)
    output = tmp_path / "out.json"
    given = ["--job", str(job.path), "--space", SPACE, "--rounds", "2", "--output", str(output)]
    script("runtimes").main([*given, "--subnet", code])
    found = convert(read_json(output, dict)["bench"], Bench, "out.json").files
    assert [timing.runtime.split()[0] for timing in found] == [
        *["onnxruntime", "openvino"] * 2,
        "ai-edge-litert",
    ] * 3
    smallest, named, largest = found[:5], found[5:10], found[10:]
    assert [timing.accuracy for timing in named] == [timing.accuracy for timing in largest]
    for floats, floats_openvino, int8, _, _ in (smallest, largest):
        assert floats.accuracy == floats_openvino.accuracy
        assert int8.size_kb < floats.size_kb
    assert not any("/" in timing.file for timing in found)
    text = output.with_suffix(".md").read_text()
    assert text.count("| 1.00x |") >= 3
    assert "(out.png)" in text
    assert text.strip() in capsys.readouterr().out
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
