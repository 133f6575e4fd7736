"""From a job to its LUT: done once, continued after kills, refused when it does not fit."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from msgspec import structs

from nni_spaceevo.errors import ConfigError, ConstraintError, LockedError, LUTError
from nni_spaceevo.files import exclusive
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.prepare import constraints, prepared_lut
from nni_spaceevo.latency import LatencyPredictor, find_predictor, load_predictor
from nni_spaceevo.lut import QuantizedLUT

from .small_job import write_small_job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    job = write_small_job(tmp_path_factory.mktemp("job"))
    return job, prepared_lut(job, say=lambda line: None)


def test_the_lut_has_rows_for_every_cell_and_is_priced_by_the_predictor(prepared):
    job, lut = prepared
    assert len(lut) == 3 * 3 * 3 * 6
    assert np.all(lut.columns["latency_ms"] > 0)
    assert lut.header.device == job.config.predictor
    assert lut.latency_span[0] > max(lut.header.other_ms.values()) * 0.5


def test_a_second_preparation_does_nothing(prepared):
    job, lut = prepared
    before = {p: p.stat().st_mtime_ns for p in job.work.rglob("*") if p.is_file()}
    said = []
    assert prepared_lut(job, say=said.append).fingerprint == lut.fingerprint
    assert said == []
    assert {p: p.stat().st_mtime_ns for p in job.work.rglob("*") if p.is_file()} == before


def test_the_lut_alone_is_rebuilt_from_kept_stages_to_the_same_bytes(prepared):
    job, lut = prepared
    kept = {p: p.stat().st_mtime_ns for p in job.stages_path.iterdir()}
    job.lut_path.unlink()
    assert prepared_lut(job, say=lambda line: None).fingerprint == lut.fingerprint
    assert {p: p.stat().st_mtime_ns for p in job.stages_path.iterdir()} == kept


def test_a_preparation_killed_with_9_continues_to_the_same_lut(prepared, tmp_path):
    job = write_small_job(tmp_path)
    command = [sys.executable, "-m", "nni_spaceevo.cli", "lut", "build", "--job", str(job.path)]
    for delay in (6, 9, 12):
        process = subprocess.Popen(command, start_new_session=True)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    # Workers die with their parent: nobody holds the work folder.
    subprocess.run(command, check=True)
    assert QuantizedLUT.load(job.lut_path, job.hyperspace).fingerprint == prepared[1].fingerprint


def test_changed_settings_are_refused_not_ignored(prepared, tmp_path):
    job, _ = prepared
    text = job.path.read_text().replace("rows_per_cell: 6", "rows_per_cell: 7")
    other = job.path.with_name("other.yaml")
    other.write_text(text)
    with pytest.raises(LUTError, match=r"made with other settings than .*other\.yaml"):
        prepared_lut(Job(other))


def test_a_lut_that_another_predictor_has_priced_is_refused(tmp_path):
    predictor = load_predictor(find_predictor("x86_vnni_ort_int8"))
    predictor.save(tmp_path / "mine")
    job = write_small_job(tmp_path, stages=1, predictor="mine")
    lut = prepared_lut(job, say=lambda line: None)
    calibration = structs.replace(predictor.calibration, node_us=2 * predictor.calibration.node_us)
    fields = (predictor.provenance, predictor.lowering, calibration, predictor.kernels)
    LatencyPredictor(*fields, predictor.report, tmp_path / "mine").save(tmp_path / "mine")
    with pytest.raises(LUTError, match=r"priced by predictor .* is another one now"):
        prepared_lut(job)
    # What it says to do takes seconds: losses are kept.
    job.lut_path.unlink()
    again = prepared_lut(job, say=lambda line: None)
    assert np.array_equal(again.columns["loss"], lut.columns["loss"])
    assert np.all(again.columns["latency_ms"] > lut.columns["latency_ms"])


def test_a_second_process_preparing_the_same_job_is_refused(tmp_path):
    job = write_small_job(tmp_path)
    with (
        exclusive(job.work / "prepare"),
        pytest.raises(LockedError, match=f"process {os.getpid()} is writing it"),
    ):
        prepared_lut(job)


def test_an_unknown_predictor_names_those_there_are(tmp_path):
    job = write_small_job(tmp_path, predictor="toaster")
    with pytest.raises(ConfigError, match=r"predictor 'toaster'.*the package has: .*x86"):
        prepared_lut(job)


def test_quantile_constraints_are_resolved_once_and_kept(prepared):
    job, lut = prepared
    first = constraints(job, lut)
    assert job.constraints_path.is_file()
    assert constraints(job, lut) == first
    low, high = lut.latency_span
    assert low < first[0] < high


@pytest.mark.parametrize(("T", "words"), [(1e-4, "below the fastest"), (1e4, "above the slowest")])
def test_impossible_constraints_are_refused_before_any_search(prepared, tmp_path, T, words):
    _, lut = prepared
    job = write_small_job(tmp_path, search={"constraints_ms": [T]})
    with pytest.raises(ConstraintError, match=words):
        constraints(job, lut)
