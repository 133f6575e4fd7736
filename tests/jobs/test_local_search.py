"""The search without NNI, and its report."""

import json

import pytest

from nni_spaceevo.errors import ConfigError
from nni_spaceevo.jobs import local_search
from nni_spaceevo.jobs.local_search import search_locally
from nni_spaceevo.search import EvolutionConfig
from nni_spaceevo.testing import synthetic_lut

from .small_job import write_small_job

CONFIG = EvolutionConfig(population_size=20, sample_size=6)
SEARCH = {"constraints_ms": [1.5], "samples": 1000}


@pytest.fixture
def job(tmp_path):
    job = write_small_job(tmp_path, search=SEARCH)
    synthetic_lut(job.hyperspace, job.hyperspace.space("synthetic-120-201")).save(job.lut_path)
    return job


@pytest.fixture
def lut(job):
    from nni_spaceevo.lut import QuantizedLUT

    return QuantizedLUT.load(job.lut_path, job.hyperspace)


@pytest.mark.parametrize("evolve", [None, 0, 60])
def test_it_finds_the_known_best_space(job, lut, evolve):
    config = EvolutionConfig(population_size=20, sample_size=6, evolve=evolve)
    results = search_locally(job, lut, config, 300)
    assert results.best.space == "synthetic-120-201"
    assert len(results.spaces) == len({s.space for s in results.spaces}) == 300


@pytest.mark.parametrize("evolve", [None, 90])
def test_a_stopped_search_continues_to_the_same_spaces(job, lut, monkeypatch, evolve):
    config = EvolutionConfig(population_size=20, sample_size=6, evolve=evolve)
    expected = search_locally(job, lut, config, 250)
    (job.work / "local_search.json").unlink()
    monkeypatch.setattr(local_search, "_SAVE_EVERY_S", 0.0)
    original, calls = local_search.metrics_of, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 130:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(local_search, "metrics_of", dies)
    with pytest.raises(KeyboardInterrupt):
        search_locally(job, lut, config, 250)
    monkeypatch.undo()
    assert search_locally(job, lut, config, 250) == expected


def test_a_longer_search_continues_a_shorter_one(job, lut):
    short = search_locally(job, lut, CONFIG, 100)
    assert search_locally(job, lut, CONFIG, 150).spaces[:100] == short.spaces


def test_another_seed_is_another_search(job, lut):
    first = search_locally(job, lut, CONFIG, 60)
    other = search_locally(job, lut, EvolutionConfig(population_size=20, sample_size=6, seed=1), 60)
    assert other.spaces != first.spaces


def test_it_ends_when_every_space_is_scored(job, lut):
    assert len(search_locally(job, lut, CONFIG, 10_000).spaces) == job.hyperspace.num_spaces


def test_no_evaluations_are_refused(job, lut):
    with pytest.raises(ConfigError, match="evaluations must be at least 1"):
        search_locally(job, lut, CONFIG, 0)


def test_the_state_is_plain_json(job, lut):
    search_locally(job, lut, CONFIG, 50)
    assert json.loads((job.work / "local_search.json").read_text())["spaces"]
