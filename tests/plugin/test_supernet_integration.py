"""A real experiment that trains supernets, and what NNI's web page shows of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jobs.small_job import SUPERNET, write_small_job

from nni_spaceevo.files import to_yaml
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.plugin import seam

from .browser import PROGRAMS, Page, browser, chromium
from .nni_experiments import NNI

pytestmark = pytest.mark.slow

OUTPUT = Path(__file__).parents[1] / "output"
SPACES = ["synthetic-012-201", "synthetic-000-111"]
_OPEN = "[...document.querySelectorAll('button')].find(b => b.innerText.includes({!r})).click()"


def write_experiment(job: Job) -> Path:
    """As `examples/digits/supernet.yml`, with two small spaces."""
    config = {
        "experimentName": "test",
        "searchSpace": {"space": {"_type": "choice", "_value": SPACES}},
        "trialCommand": "python3 -m nni_spaceevo.plugin.supernet_trial --job spaceevo.yaml",
        "trialCodeDirectory": ".",
        "trialConcurrency": 1,
        "maxTrialNumber": len(SPACES),
        "tuner": {"name": "GridSearch"},
        "trainingService": {"platform": "local"},
    }
    path = job.path.parent / "supernet.yml"
    path.write_text(to_yaml(config))
    return path


def _check_page(page: Page, port: int) -> None:
    page.open(f"http://127.0.0.1:{port}/detail")
    page.wait_for("(FINAL)")
    page.evaluate(_OPEN.format("Intermediate result"))
    text = page.wait_for("Intermediate")
    assert len(re.findall(r"SUCCEEDED", text)) >= len(SPACES)
    page.screenshot(OUTPUT / "web_ui_supernet.png")
    # The first button of a trial opens its curve, of any key.
    page.click(".ms-DetailsRow button.detail-button-operation")
    page.wait_for("Intermediate result")
    page.click(".ms-Modal .ms-Dropdown, .ms-Dialog-main .ms-Dropdown")
    text = page.wait_for("loss_random")
    assert {"largest", "smallest", "fp32_largest", "fp32_random", "loss_largest"} <= {*text.split()}
    page.screenshot(OUTPUT / "web_ui_supernet_curve.png")


def test_an_experiment_trains_the_supernets_of_its_spaces(nni: NNI, tmp_path: Path) -> None:
    job = write_small_job(tmp_path / "job", supernet=SUPERNET)
    port = nni.create(write_experiment(job))
    nni.wait(port)
    trials = seam.trials(port)
    assert sorted(t.parameters["space"] for t in trials) == sorted(SPACES)
    for trial in trials:
        assert trial.metrics is not None
        assert trial.metrics["space"] == trial.parameters["space"]
        assert [point["precision"] for point in trial.intermediates] == ["fp32", "int8"]
        assert trial.metrics["default"] == trial.intermediates[-1]["default"]
        assert (job.supernets_path / "seed0" / f"{trial.metrics['space']}.pt").is_file()
        # Where the page's TensorBoard button looks.
        scalars = nni.home.glob(f"nni-experiments/*/environments/*/trials/{trial.id}/tensorboard/*")
        assert list(scalars)
    if chromium() is None:
        pytest.skip(f"all but the page was checked: none of {', '.join(PROGRAMS)} is installed")
    with browser(tmp_path / "profile") as page:
        _check_page(page, port)
