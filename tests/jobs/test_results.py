"""What a search leaves behind."""

import pytest

from nni_spaceevo.errors import ConfigError, FileAccessError
from nni_spaceevo.jobs.local_search import search_locally
from nni_spaceevo.jobs.results import SCHEMA, ScoredSpace, SearchResults, last_search
from nni_spaceevo.search import EvolutionConfig
from nni_spaceevo.testing import synthetic_lut

from .small_job import write_small_job


def results(*scores):
    spaces = tuple(
        ScoredSpace(space=f"synthetic-{i}00-000", score=s, metrics={"default": s})
        for i, s in enumerate(scores)
    )
    return SearchResults(
        schema=SCHEMA,
        hyperspace="synthetic",
        hyperspace_fingerprint="f",
        experiment="e",
        constraints_ms=(1.5,),
        spaces=spaces,
    )


def test_results_come_back_from_their_file(tmp_path):
    first = results(0.1, 0.3)
    first.save(tmp_path / "search.json")
    assert SearchResults.load(tmp_path / "search.json") == first


def test_the_best_is_the_highest_score_and_the_smaller_code_on_a_tie():
    assert results(0.1, 0.3, 0.3).best.space == "synthetic-100-000"
    with pytest.raises(ValueError, match="no space"):
        _ = results().best


def test_another_schema_is_refused_by_file(tmp_path):
    path = tmp_path / "search.json"
    results(0.1).save(path)
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 7'))
    with pytest.raises(ConfigError, match=r"search\.json: .*schema 7"):
        SearchResults.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileAccessError, match=r"search\.json: cannot read"):
        SearchResults.load(tmp_path / "search.json")


def test_a_search_in_a_lut_that_was_built_again_is_refused(tmp_path):
    job = write_small_job(tmp_path, search={"constraints_ms": [1.5], "samples": 1000})
    lut = synthetic_lut(job.hyperspace, job.hyperspace.space("synthetic-120-201"))
    lut.save(job.lut_path)
    found = search_locally(job, lut, EvolutionConfig(population_size=20, sample_size=6), 30)
    assert last_search(job) == found
    synthetic_lut(job.hyperspace, job.hyperspace.space("synthetic-000-000")).save(job.lut_path)
    with pytest.raises(ConfigError, match=r"search\.json is of a search in another LUT"):
        last_search(job)
