"""The study of exported files: what it collects of their reports."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from jobs.small_job import SPACE, SUPERNET, write_small_job
from msgspec.structs import replace

from nni_spaceevo.jobs.export import ExportReport
from nni_spaceevo.jobs.supernets import train_supernet

from .conftest import script


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """`benchmarks/export_parity.py`."""
    return script("export_parity")


@pytest.fixture(scope="module")
def found(study: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[ExportReport]:
    """Reports of two subnets, of which the second run reads what the first one has left."""
    job = write_small_job(tmp_path_factory.mktemp("parity"), supernet=SUPERNET)
    train_supernet(job, SPACE)
    space = job.hyperspace.space(SPACE)
    codes = [job.hyperspace.largest_subnet(space), job.hyperspace.smallest_subnet(space)]
    first = study.reports(job, SPACE, None, codes, [".onnx"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "export_subnet", None)
        assert study.reports(job, SPACE, None, codes, [".onnx"]) == first
    assert not list(Path(job.work).rglob("*.onnx"))
    return first


def test_a_summary_has_the_worst_of_all_files(study, found):
    worst = replace(found[1].agreement, same=0.5, accuracy=0.1, network_accuracy=0.6)
    row = study.summary([found[0], replace(found[1], agreement=worst)])
    assert (row["files"], row["images"], row["least_same"]) == (2, 445, 0.5)
    assert row["largest_accuracy_difference"] == 0.5
    assert row["files_above_accuracy_difference"] >= 1
    assert row["files_below_least_same"] >= 1
    assert row["in_float"].keys() == row["reasons"].keys()
    text = study.table([row])
    assert "(50.00%)" in text
    assert "50.00 points" in text
