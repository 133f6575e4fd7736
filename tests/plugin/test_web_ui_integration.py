"""What a user sees of a search in NNI's web page, read from the page itself."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.results import SearchResults
from nni_spaceevo.plugin import experiment, seam

from .browser import PROGRAMS, Page, browser, chromium
from .nni_experiments import NNI, write_experiment, write_job

OUTPUT = Path(__file__).parents[1] / "output"
TRIALS = 8
_ROW = ".ms-DetailsRow"
_EXPAND = f"{_ROW} i[data-icon-name=ChevronRight]"
_BUTTON = "[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {!r}).click()"
# NNI's label for a parameter's column stops at the first slash, so labels repeat: tick by suffix.
_TICK = """
[...document.querySelectorAll('.ms-Checkbox')]
  .filter(c => / \\((space|metric)\\)/.test(c.innerText))
  .forEach(c => c.querySelector('input').click())
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.experiment,
    pytest.mark.skipif(
        chromium() is None,
        reason=f"needs a browser to look at NNI's web page: none of {', '.join(PROGRAMS)} is "
        "installed (`apt-get install chromium`; `make test` does it when run as root)",
    ),
]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as page:
        yield page


def shown(score: float) -> str:
    """A score as the page writes it: six decimals, without trailing zeros."""
    return f"{score:.6f}".rstrip("0").rstrip(".")


def _rows(page: Page) -> list[str]:
    text = f"[...document.querySelectorAll('{_ROW}')].map(r => r.innerText).join('\\u0000')"
    return str(page.evaluate(text)).split("\0")


def _check_overview(page: Page, port: int, job: Job, results: SearchResults) -> None:
    page.open(f"http://127.0.0.1:{port}/oview")
    text = page.wait_for(f"{TRIALS}/{TRIALS}")
    assert "DONE" in text
    assert re.search(rf"{re.escape(shown(results.best.score))}\s+Best metric", text)
    for space in results.spaces:
        assert shown(space.score) in text
    # The best trial stands first; its row opens to its parameters.
    page.click(_EXPAND)
    text = page.wait_for("stage1/block_type")
    code = job.hyperspace.space(results.best.space)
    for key, value in job.hyperspace.parameters(code).items():
        if isinstance(value, str):
            assert f'{key}:"{value}"' in text
        else:
            first, second = value
            assert re.search(rf"{key}:\s+0:{first}\s+1:{second}\s", text)
    page.screenshot(OUTPUT / "web_ui_overview.png")


def _check_detail(page: Page, port: int, job: Job, results: SearchResults) -> None:
    page.open(f"http://127.0.0.1:{port}/detail")
    page.wait_for("(FINAL)")
    page.evaluate(_BUTTON.format("Add/Remove columns"))
    page.wait_for("space (metric)")
    page.evaluate(_TICK)
    page.evaluate(_BUTTON.format("Save"))
    deadline = time.monotonic() + 30
    while results.spaces[0].space not in page.text:
        assert time.monotonic() < deadline, page.text
        time.sleep(0.3)
    rows = _rows(page)
    assert len(rows) == TRIALS
    for space, row in zip(results.spaces, rows, strict=True):
        assert f"{shown(space.score)} (FINAL)" in row
        assert space.space in row
        words = re.split(r"\s+", row)
        for block in job.hyperspace.space(space.space).blocks:
            words.remove(job.hyperspace.block_types[block].type)
    assert {b.type for b in job.hyperspace.block_types} <= set(re.split(r"\s+", page.text))
    page.screenshot(OUTPUT / "web_ui_trials.png")


def test_the_page_shows_scores_and_block_types(nni: NNI, page: Page, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    port = nni.create(write_experiment(job, trials=TRIALS))
    results = experiment.follow(port, job)
    nni.wait(port)
    assert len(seam.trials(port)) == TRIALS
    _check_overview(page, port, job, results)
    _check_detail(page, port, job, results)
