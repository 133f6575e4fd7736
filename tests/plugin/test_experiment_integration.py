"""Real NNI experiments on this machine: manager, tuner and trials in their own processes."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.results import SearchResults
from nni_spaceevo.jobs.scoring import score_config
from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.plugin import experiment, seam
from nni_spaceevo.plugin.seam import ExperimentError
from nni_spaceevo.search import AgingEvolution, EvolutionConfig, qt_score

from .nni_experiments import CLASS_ARGS, NNI, free_port, write_experiment, write_job

pytestmark = [pytest.mark.slow, pytest.mark.experiment]

EVOLUTION = EvolutionConfig(population_size=8, sample_size=4, seed=0)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return write_job(tmp_path / "job")


def rescored(job: Job, codes: list[str]) -> dict[str, float]:
    """Scores of spaces, computed here."""
    lut, config = QuantizedLUT.load(job.lut_path, job.hyperspace), score_config(job, (1.5,))
    return {c: qt_score(lut, job.hyperspace.space(c), config).score for c in codes}


def undisturbed(job: Job, trials: int) -> list[str]:
    """The spaces of a search with concurrency 1, in order, computed here."""
    lut, config = QuantizedLUT.load(job.lut_path, job.hyperspace), score_config(job, (1.5,))
    evolution = AgingEvolution(job.hyperspace, EVOLUTION)
    for _ in range(trials):
        code = evolution.ask()
        evolution.tell(code, qt_score(lut, code, config).score)
    return [str(code) for code in evolution.scores]


def test_a_search_from_start_to_end(nni: NNI, job: Job) -> None:
    port = nni.create(write_experiment(job, trials=12))
    results = experiment.follow(port, job)
    trials = seam.trials(port)
    assert [t.status for t in trials] == ["SUCCEEDED"] * 12
    expected = rescored(job, [s.space for s in results.spaces])
    for trial in trials:
        assert trial.metrics is not None
        code = job.hyperspace.from_parameters(trial.parameters)
        assert trial.metrics["space"] == str(code)
        assert trial.metrics["default"] == expected[str(code)]
        assert {"share_within_T", "top_loss", "min_ms", "max_ms"} <= trial.metrics.keys()
    assert [s.space for s in results.spaces] == undisturbed(job, 12)
    assert {s.space: s.score for s in results.spaces} == expected
    assert results.best.score == max(expected.values())
    assert results.constraints_ms == (1.5,)
    assert results.experiment == nni.last
    deadline = time.monotonic() + 60
    while not (job.report_path / "report.md").exists():
        assert time.monotonic() < deadline, nni.log("nnictl_stderr.log")
        time.sleep(0.5)


def test_concurrent_trials_cannot_swap_their_parameters(nni: NNI, job: Job) -> None:
    port = nni.create(write_experiment(job, trials=24, concurrency=4))
    results = experiment.follow(port, job)
    assert len(results.spaces) == 24
    assert {s.space: s.score for s in results.spaces} == rescored(
        job, [s.space for s in results.spaces]
    )
    # And the web UI, REST and `nnictl experiment export` show each trial's own parameters.
    jobs = {j["trialJobId"]: j for j in seam.get(port, "/trial-jobs")}
    for trial in seam.trials(port):
        assert trial.metrics is not None
        (final,) = jobs[trial.id]["finalMetricData"]
        assert str(final["parameterId"]) == str(trial.parameter_id)
        assert trial.metrics["space"] == str(job.hyperspace.from_parameters(trial.parameters))


def test_swapped_parameters_cannot_spoil_the_scores(nni: NNI, job: Job) -> None:
    """Through NNI's own functions, as on other platforms, trials do swap; scores stay right."""
    command = "NNI_PLATFORM=other python3 -m nni_spaceevo.plugin.trial --job spaceevo.yaml"
    port = nni.create(write_experiment(job, trials=12, concurrency=4, trialCommand=command))
    results = experiment.follow(port, job)
    assert len(results.spaces) == 12
    assert {s.space: s.score for s in results.spaces} == rescored(
        job, [s.space for s in results.spaces]
    )
    for trial in seam.trials(port):
        assert trial.metrics is not None
        assert trial.metrics["space"] == str(job.hyperspace.from_parameters(trial.parameters))


def _stop(nni: NNI, port: int) -> None:
    experiment.stop(nni.last)


def _kill_manager(nni: NNI, port: int) -> None:
    """All at once, as a power cut: manager, tuner and trials."""
    for pid in nni.pids():
        os.kill(pid, signal.SIGKILL)
    _wait_until_gone(nni)
    nni("stop", nni.last)


def _kill_tuner(nni: NNI, port: int) -> None:
    (tuner,) = (
        p for p in nni.pids() if b"--exp_params" in _command(p) and b"-c" not in _command(p)
    )
    os.kill(tuner, signal.SIGKILL)
    experiment.stop(nni.last)


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _wait_until_gone(nni: NNI) -> None:
    deadline = time.monotonic() + 20
    while nni.pids():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("interrupt", [_stop, _kill_manager, _kill_tuner])
def test_an_interrupted_search_continues_to_the_same_result(
    nni: NNI, job: Job, interrupt: Any
) -> None:
    port = nni.create(write_experiment(job, trials=16))
    nni.wait_for_results(job, 6)
    interrupt(nni, port)
    _wait_until_gone(nni)
    done = len(SearchResults.load(job.search_path).spaces)
    assert 6 <= done < 16
    port = nni.resume(nni.last)
    results = experiment.follow(port, job)
    assert [s.space for s in results.spaces] == undisturbed(job, 16)
    assert {s.space: s.score for s in results.spaces} == rescored(job, undisturbed(job, 16))


# ---- what the user reads when something is wrong ------------------------------------------------


def _bad_key(job: Job) -> Path:
    tuner = {"name": "SpaceEvo", "classArgs": {**CLASS_ARGS, "population": 3}}
    return write_experiment(job, tuner=tuner)


def _bad_value(job: Job) -> Path:
    tuner = {"name": "SpaceEvo", "classArgs": {**CLASS_ARGS, "sample_size": 99}}
    return write_experiment(job, tuner=tuner)


def _too_fast(job: Job) -> Path:
    return write_experiment(write_job(job.path.parent, search={"constraints_ms": [0.001]}))


def _too_slow(job: Job) -> Path:
    return write_experiment(write_job(job.path.parent, search={"constraints_ms": [900]}))


def _truncated_lut(job: Job) -> Path:
    job.lut_path.write_bytes(job.lut_path.read_bytes()[:900])
    return write_experiment(job)


def _other_space(job: Job) -> Path:
    space = job.hyperspace.search_space()
    space["stage2/block_type"]["_value"] = ["resnet"]
    return write_experiment(job, searchSpace=space)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            _bad_key,
            "tuner classArgs: Object contains unknown field `population`; allowed keys: job",
        ),
        (_bad_value, "sample_size must be 1 to population_size (8), given 99"),
        (_too_fast, "T = 0.001 ms is below the fastest subnet"),
        (_too_slow, "T = 900 ms is above the slowest subnet"),
        (_truncated_lut, "synthetic.lut: truncated or not a LUT"),
        (_other_space, "searchSpace, key 'stage2/block_type': given "),
    ],
)
def test_a_mistake_is_told_and_nothing_is_left_running(
    nni: NNI, job: Job, mistake: Any, message: str
) -> None:
    config = mistake(job)
    with pytest.raises(ExperimentError) as caught:
        experiment.create(config, free_port())
    assert message in str(caught.value)
    assert not job.search_path.exists()
    _wait_until_gone(nni)


def test_a_second_search_with_the_same_job_is_told(nni: NNI, job: Job) -> None:
    first = nni.create(write_experiment(job, trials=40))
    nni.wait_for_results(job, 1)
    with pytest.raises(ExperimentError, match="another experiment is searching with this job"):
        experiment.create(write_experiment(job, trials=3), free_port())
    assert seam.status(first).word == "RUNNING"


def test_a_file_that_nni_refuses_is_told(nni: NNI, job: Job) -> None:
    config = write_experiment(job, trialConcurrency="two")
    with pytest.raises(ExperimentError, match="nnictl create failed: "):
        experiment.create(config, free_port())


def test_an_unregistered_tuner_is_told(
    nni: NNI, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path / "empty"))
    with pytest.raises(ExperimentError, match="run `spaceevo register`"):
        experiment.create(write_experiment(job), free_port())


def test_nnictls_own_user_reads_the_mistake_on_the_terminal(nni: NNI, job: Job) -> None:
    """`nnictl create` has ended by then; the message comes to its terminal all the same."""
    command = f"nnictl create --config {_too_fast(job)} --port {free_port()}; sleep 30"
    shown, deadline = "", time.monotonic() + 40
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("bash", ["bash", "-c", command])
    while "clears it away" not in shown and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.5)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert "cannot start: latency constraint T = 0.001 ms is below the fastest" in shown


def test_failing_trials_end_the_search_with_their_reason(nni: NNI, job: Job) -> None:
    command = "python3 -m nni_spaceevo.plugin.trial --job nowhere.yaml"
    port = nni.create(write_experiment(job, trials=20, trialCommand=command))
    with pytest.raises(ExperimentError) as caught:
        experiment.follow(port, job)
    assert "3 trials in a row have failed" in str(caught.value)
    assert "nowhere.yaml: cannot read" in str(caught.value)
    log = Path(str(caught.value).rpartition("see ")[2])
    assert log.name == "trial.stderr"
    assert log.is_file()


def test_a_python_without_the_package_is_told(
    nni: NNI, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    subprocess.run(["python3", "-m", "venv", "--without-pip", str(bare)], check=True)
    command = f"{bare}/bin/python3 -m nni_spaceevo.plugin.trial --job spaceevo.yaml"
    with pytest.raises(ExperimentError, match="cannot import nni_spaceevo; activate the virtual"):
        experiment.create(write_experiment(job, trialCommand=command), free_port())
