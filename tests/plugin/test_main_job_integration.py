"""The main job from nothing: `nnictl create` alone leads to a LUT, scores and a report."""

import pytest
from jobs.small_job import write_small_job

from nni_spaceevo.jobs.results import SearchResults
from nni_spaceevo.jobs.scoring import score_config
from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.plugin import seam
from nni_spaceevo.search import qt_score

from .nni_experiments import NNI, write_experiment

pytestmark = [pytest.mark.slow, pytest.mark.experiment]


def test_nnictl_create_prepares_searches_and_reports(nni: NNI, tmp_path):
    job = write_small_job(tmp_path / "job")
    # Two trials at a time: one prepares, the other has to wait for it.
    port = nni.create(write_experiment(job, trials=4, concurrency=2))
    nni.wait(port, seconds=400)
    assert [t.status for t in seam.trials(port)] == ["SUCCEEDED"] * 4
    results = nni.wait_for_results(job, 4)

    lut = QuantizedLUT.load(job.lut_path, job.hyperspace)
    config = score_config(job, results.constraints_ms)
    for scored in SearchResults.load(job.search_path).spaces:
        assert scored.score == qt_score(lut, job.hyperspace.space(scored.space), config).score
    report = (job.report_path / "report.md").read_text()
    assert results.best.space in report
    assert f"search --job {job.path}" in report
