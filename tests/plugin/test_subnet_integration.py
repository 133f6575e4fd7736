"""A real experiment that searches subnets: killed, resumed, and seen in NNI's web page."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs.small_job import SPACE, SUPERNET, write_small_job
from supernet.tiny import used_supernet

from nni_spaceevo.files import packed_folder, read_json, to_yaml
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.subnets import Evaluations, SubnetResults, search_subnets, subnets_folder
from nni_spaceevo.jobs.supernets import supernet_path
from nni_spaceevo.plugin import seam
from nni_spaceevo.plugin.subnet_trial import task_of
from nni_spaceevo.quant import INT8
from nni_spaceevo.supernet.weights import save_supernet

from .browser import PROGRAMS, Page, browser, chromium
from .nni_experiments import NNI

pytestmark = [pytest.mark.slow, pytest.mark.experiment]

OUTPUT = Path(__file__).parents[1] / "output"
SUBNETS = {
    "constraint_quantiles": [0.8],
    "evolution": {"population": 4, "mutations": 1, "crossovers": 1, "generations": 1},
    "surrogate": {"first": 2, "rounds": 1, "candidates": 1},
}
_BUTTON = "[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {!r}).click()"
_TICK = """
[...document.querySelectorAll('.ms-Checkbox')]
  .filter(c => /(subnet|predicted_ms|mflops|mparams) \\(metric\\)/.test(c.innerText))
  .forEach(c => c.querySelector('input').click())
"""
_HYPER_PARAMETER = """
[...document.querySelectorAll('button')].find(b => b.innerText.includes('Hyper-parameter')).click()
"""
_ROWS = "[...document.querySelectorAll('.ms-DetailsRow')].map(row => row.innerText)"
_AXES = "[...document.querySelectorAll('.parcoords .dimension .label')].map(e => e.textContent)"


def write_experiment(job: Job) -> Path:
    """As `examples/digits/subnets.yml`, one trial at a time, of a small space."""
    text = (packed_folder("examples") / "digits" / "subnets.yml").read_text()
    config: dict[str, Any] = yaml.safe_load(text)
    config["tuner"]["classArgs"]["space"] = SPACE
    config["trialConcurrency"] = 1
    path = job.path.parent / "subnets.yml"
    path.write_text(to_yaml(config))
    return path


def wait_for_results(nni: NNI, path: Path, count: int, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists() or len(read_json(path, Evaluations).subnets) < count:
        assert time.monotonic() < deadline, nni.log("nnictl_stderr.log")
        time.sleep(0.1)


def check_page(page: Page, port: int, trials: list[seam.Trial]) -> None:
    """Costs and accuracy are axes side by side, and columns of the table."""
    page.open(f"http://127.0.0.1:{port}/detail")
    page.wait_for("(FINAL)")
    page.evaluate(_BUTTON.format("Add/Remove columns"))
    page.wait_for("predicted_ms (metric)")
    page.evaluate(_TICK)
    page.evaluate(_BUTTON.format("Save"))
    page.evaluate(_HYPER_PARAMETER)
    page.wait_for("Add/Remove axes")
    page.screenshot(OUTPUT / "web_ui_subnets.png")
    rows = page.evaluate(_ROWS)
    for trial, row in zip(trials, rows, strict=True):
        assert trial.metrics is not None
        assert trial.metrics["subnet"] in row
        assert f"{trial.metrics['default']:.6f}".rstrip("0") in row
        for key in ("predicted_ms", "mflops", "mparams"):
            assert str(trial.metrics[key]) in row
    axes = page.evaluate(_AXES)
    # What is long stands at the left edge, where its texts cover nothing.
    assert axes[0] == "subnet"
    assert {"resolution", "blocks", "mparams", "mflops", "loss"} <= set(axes)
    assert axes.index("default") == axes.index("predicted_ms") + 1


def test_a_killed_experiment_ends_as_the_command_does(
    nni: NNI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_small_job(tmp_path / "job", supernet=SUPERNET, subnets=SUBNETS)
    space = job.hyperspace.space(SPACE)
    save_supernet(supernet_path(job, space), used_supernet(job.hyperspace, space, INT8))
    folder = subnets_folder(job, space)
    port = nni.create(write_experiment(job))
    wait_for_results(nni, folder / "evaluations.json", 1)
    # All at once, as a power cut: manager, tuner and trials.
    for pid in nni.pids():
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while nni.pids():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    nni("stop", nni.last)
    port = nni.resume(nni.last)
    nni.wait(port)
    trials = [t for t in seam.trials(port) if t.metrics is not None]
    kept = read_json(folder / "evaluations.json", Evaluations)
    found = read_json(folder / "subnets.json", SubnetResults)
    accuracies = {
        task_of(job.hyperspace.subnet(space, result.subnet)): result.accuracy
        for result in kept.subnets
    }
    assert {t.metrics["subnet"]: t.metrics["default"] for t in trials if t.metrics} == accuracies
    assert [t.parameters["subnet"] for t in trials] == [t.metrics["subnet"] for t in trials]
    assert len(trials) == len(found.evaluated) == len(accuracies)
    # The same without NNI, for which everything is evaluated again.
    (folder / "evaluations.json").unlink()
    assert search_subnets(job, space) == found
    if chromium() is None:
        pytest.skip(f"all but the page was checked: none of {', '.join(PROGRAMS)} is installed")
    with browser(tmp_path / "profile") as page:
        check_page(page, port, trials)
