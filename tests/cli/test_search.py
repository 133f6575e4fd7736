"""The verb `search`."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nni_spaceevo.cli import main
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

SMALL = ["--population-size", "20", "--sample-size", "6"]


@pytest.fixture
def search(job):
    """Arguments of a search of the job's LUT, without the job."""
    hyperspace = str(job.path.with_name("hyperspace.yaml"))
    return ["search", "--lut", str(job.lut_path), "--hyperspace", hyperspace, *SMALL]


def results(folder):
    return json.loads((folder / "search.json").read_text())


def test_search_prints_the_report(job, capsys):
    assert main(["search", "--job", str(job.path), "--evaluations", "200", *SMALL]) == 0
    assert "Best of 200 scored spaces: **synthetic-120-201**" in capsys.readouterr().out


def test_search_of_a_lut_needs_no_job_and_leaves_results_and_a_report(search, job, capsys):
    assert main([*search, "--constraint-ms", "1.5", "2", "--evaluations", "200"]) == 0
    out = capsys.readouterr().out
    folder = job.lut_path.with_name(f"{job.lut_path.name}.search")
    assert out.startswith("best space: synthetic-120-201, Q-T score ")
    assert f"report: {folder / 'report.html'}" in out
    assert len(results(folder)["spaces"]) == 200
    assert results(folder)["constraints_ms"] == [1.5, 2.0]


@pytest.mark.parametrize(
    "options", [["--evolution-only"], ["--estimator", "sampled", "--samples", "2000"]]
)
def test_options_change_the_search(search, tmp_path, options):
    for name, more in (("a", []), ("b", options)):
        output = ["--output", str(tmp_path / name), "--no-report"]
        assert main([*search, "--constraint-ms", "1.5", "--evaluations", "90", *output, *more]) == 0
    spaces = [[(s["space"], s["score"]) for s in results(tmp_path / n)["spaces"]] for n in "ab"]
    assert spaces[0] != spaces[1]
    assert not (tmp_path / "a" / "report.html").exists()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_search_continues_to_the_same_result(search, tmp_path, kind):
    arguments = [*search, "--constraint-ms", "1.5", "--no-report", "--estimator", "sampled"]
    arguments += ["--evaluations", "400", "--samples", "300000"]
    command = [sys.executable, "-m", "nni_spaceevo.cli", *arguments]
    stopped, state = tmp_path / "stopped", tmp_path / "stopped" / "state.json"
    with subprocess.Popen(
        [*command, "--output", str(stopped)],
        stderr=subprocess.PIPE,
        # Where the tests run in a shell's background, SIGINT is ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 60
        while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, kind)
        words = process.communicate()[1].decode()
    assert process.returncode == (130 if kind == signal.SIGINT else -kind)
    assert ("the same command continues" in words) == (kind == signal.SIGINT)
    assert 0 < len(json.loads(state.read_text())["spaces"]) < 400
    assert not (stopped / "search.json").exists()
    for name in ("stopped", "undisturbed"):
        assert main([*arguments, "--output", str(tmp_path / name)]) == 0
    assert results(stopped) == results(tmp_path / "undisturbed")


def test_a_truncated_lut_reaches_the_terminal_by_name(job, capsys):
    job.lut_path.write_bytes(job.lut_path.read_bytes()[:500])
    assert main(["search", "--job", str(job.path)]) == 1
    assert "synthetic.lut: truncated or not a LUT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--constraint-ms: give at least one latency constraint"),
        (["--constraint-ms", "0.001"], "T = 0.001 ms is below the fastest subnet"),
        (["--constraint-ms", "1000"], "T = 1000 ms is above the slowest subnet"),
        (["--constraint-ms", "-1"], "constraints_ms"),
        (["--constraint-ms", "1.5", "--t", "0"], "given t=0.0, a=0.01"),
        (["--constraint-ms", "1.5", "--a", "-1"], "given t=0.08, a=-1.0"),
        (["--constraint-ms", "1.5", "--top", "0"], "given samples=100000, top=0"),
        (["--constraint-ms", "1.5", "--samples", "10"], "given samples=10, top=50"),
        (["--constraint-ms", "1.5", "--evaluations", "0"], "evaluations must be at least 1"),
        (["--constraint-ms", "1.5", "--sample-size", "21"], "sample_size"),
        (["--constraint-ms", "1.5", "--seed", "-1"], "seed must be at least 0, given -1"),
    ],
)
def test_wrong_settings_are_one_error_before_any_work(search, job, capsys, options, words):
    assert main([*search, *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("spaceevo: ")
    assert words in error
    assert error.count("\n") == 1
    assert not job.lut_path.with_name(f"{job.lut_path.name}.search").exists()


def test_options_of_a_lut_are_refused_beside_a_job(job, capsys):
    assert main(["search", "--job", str(job.path), "--constraint-ms", "2"]) == 1
    assert "--constraint-ms: a job file has its own" in capsys.readouterr().err
    assert main(["search", "--job", str(job.path), "--no-report"]) == 1
    assert "--no-report: a job's search ends with its report" in capsys.readouterr().err


def test_a_lut_of_no_preset_asks_for_its_hyperspace(tmp_path, capsys):
    hyperspace = synthetic_hyperspace()
    path = tmp_path / "a.lut"
    synthetic_lut(hyperspace, hyperspace.space("synthetic-120-201")).save(path)
    assert main(["search", "--lut", str(path), "--constraint-ms", "1.5"]) == 1
    assert "a.lut: made for hyperspace 'synthetic', which is no preset" in capsys.readouterr().err
