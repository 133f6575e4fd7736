from __future__ import annotations

from pathlib import Path

from plugin.nni_experiments import write_job

from nni_spaceevo.jobs.scoring import metrics_of, score_config
from nni_spaceevo.search import SpaceScore


def test_the_seed_is_the_jobs(tmp_path: Path) -> None:
    job = write_job(tmp_path, seed=5)
    assert score_config(job, (1.5,)).seed == 5
    assert score_config(job, (1.5, 2.0)).constraints_ms == (1.5, 2.0)


def test_several_constraints_each_have_their_own_metrics(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    code = job.hyperspace.space("synthetic-012-201")
    score = SpaceScore(code, (1.5, 0.0), (0.5, 0.0), (0.9, float("inf")), 1.0, 3.0)
    metrics = metrics_of(score, (2.0, 0.5))
    assert (metrics["share_within_T"], metrics["top_loss"]) == (0.0, None)
    assert (metrics["default"], metrics["qt_score_2ms"], metrics["qt_score_0.5ms"]) == (1.5, 1.5, 0)
    assert (metrics["share_within_2ms"], metrics["top_loss_within_2ms"]) == (0.5, 0.9)
    assert (metrics["share_within_0.5ms"], metrics["top_loss_within_0.5ms"]) == (0.0, None)
