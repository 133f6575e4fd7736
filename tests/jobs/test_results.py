"""What a search leaves behind."""

import pytest

from nni_spaceevo.errors import ConfigError, FileAccessError
from nni_spaceevo.jobs.results import SCHEMA, ScoredSpace, SearchResults


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
