"""The strategy in real `NasExperiment`s: script, manager and trials in their own processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from jobs.small_job import write_small_job
from nni.nas.experiment import NasExperiment, NasExperimentConfig

from nni_spaceevo import HyperspaceModelSpace, SpaceEvo, SpaceScoreEvaluator
from nni_spaceevo.files import packed_folder
from nni_spaceevo.hyperspace import SpaceCode
from nni_spaceevo.plugin import seam
from nni_spaceevo.search import EvolutionConfig, QTConfig, make_scorer, make_search
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

from .browser import Page, browser, chromium
from .nni_experiments import NNI, free_port

pytestmark = [pytest.mark.slow, pytest.mark.experiment]

HYPERSPACE = synthetic_hyperspace()
BEST = HYPERSPACE.space("synthetic-012-201")
LUT = synthetic_lut(HYPERSPACE, BEST)
SCORING = QTConfig(constraints_ms=(1.5, 2.0), samples=2000)
SETTINGS: dict[str, Any] = {"population_size": 20, "sample_size": 6, "samples": 2000}
ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "tests" / "output"


class Script:
    """Runs of `nas_experiment.py` in one folder."""

    def __init__(self, folder: Path, nni: NNI) -> None:
        self.folder, self.nni = folder, nni
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **options: Any) -> None:
        """Start an experiment; it has a port of its own."""
        self.port = free_port()
        argument = json.dumps({"id": "one", "engine": "ts", "port": self.port, **options})
        with (self.folder / "script.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.plugin.nas_experiment", argument],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def result_path(self) -> Path:
        return self.folder / "result.json"

    @property
    def log(self) -> str:
        return (self.folder / "script.log").read_text(errors="replace")

    def wait(self, seconds: float = 400) -> dict[str, Any]:
        """Wait until the experiment is over; its manager is still there."""
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while not self.result_path.exists():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.3)
        result: dict[str, Any] = json.loads(self.result_path.read_text())
        return result

    def stop(self) -> None:
        """Let the script stop the experiment and end."""
        assert self.process is not None
        (self.folder / "stop").touch()
        assert self.process.wait(timeout=200) == 0, self.log

    def kill(self) -> None:
        """All at once, as a power cut: script, manager and trials."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        for pid in self.nni.pids():
            os.kill(pid, signal.SIGKILL)

    def wait_for(self, trials: int, seconds: float = 200) -> None:
        """Wait until so many trials have reported their result."""
        deadline = time.monotonic() + seconds
        while True:
            assert time.monotonic() < deadline, self.log
            try:
                if sum(t.metrics is not None for t in seam.trials(self.port)) >= trials:
                    return
            except seam.ExperimentError:
                pass
            time.sleep(0.2)


@pytest.fixture
def script(tmp_path: Path, nni: NNI) -> Iterator[Script]:
    folder = tmp_path / "job"
    folder.mkdir()
    LUT.save(folder / "synthetic.lut")
    script = Script(folder, nni)
    yield script
    if script.process is not None and script.process.poll() is None:
        script.process.kill()
        script.process.wait()


EVOLUTION = EvolutionConfig(population_size=20, sample_size=6)


def undisturbed(
    evaluations: int, config: EvolutionConfig = EVOLUTION, scoring: QTConfig = SCORING
) -> dict[str, float]:
    """Spaces of a search in order, with their scores, computed here."""
    search, score = make_search(HYPERSPACE, config), make_scorer(LUT, scoring)
    for _ in range(evaluations):
        code = search.ask()
        search.tell(code, score(code).score)
    return {str(code): value for code, value in search.scores.items()}


def incumbents(scores: dict[str, float]) -> list[str]:
    found: list[str] = []
    for space, score in scores.items():
        if not found or score > scores[found[-1]]:
            found.append(space)
    return found


def best_of(scores: dict[str, float]) -> str:
    return min(scores, key=lambda space: (-scores[space], space))


def check_trial(trial: seam.Trial, scores: dict[str, float]) -> SpaceCode:
    """The page shows the trial's own space, its score, and the way to it."""
    assert trial.status == "SUCCEEDED"
    assert trial.metrics is not None
    code = HYPERSPACE.space(trial.metrics["space"])
    shown = trial.parameters["mutation_summary"]
    assert shown["space"] == str(code)
    blocks = [shown[f"{stage.name} block_type"] for stage in HYPERSPACE.searchable]
    assert trial.metrics["blocks"] == " | ".join(blocks)
    assert trial.metrics["default"] == scores[str(code)]
    assert {"min_ms", "max_ms", "share_within_T", "qt_score_1.5ms", "qt_score_2ms"} <= set(
        trial.metrics
    )
    assert list(trial.intermediates) == sorted(trial.intermediates)
    assert trial.intermediates[-1] >= trial.metrics["default"]
    return code


# Clicks the last of the innermost elements that has the text.
_CLICK = """
[...document.querySelectorAll('button, .ms-Checkbox')]
  .filter(e => e.innerText.trim().endsWith({!r})).at(-1).querySelector('input, span').click()
"""
_COLOURS = """
(canvas => new Set(new Uint32Array(canvas.getContext('2d')
  .getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size
)(document.querySelector('canvas'))
"""


def check_page(page: Page, port: int, trials: list[seam.Trial]) -> None:
    """The page shows what the trials say, and draws their curves."""
    page.open(f"http://127.0.0.1:{port}/detail")
    page.wait_for("(FINAL)")
    page.evaluate(_CLICK.format("Add/Remove columns"))
    columns = ["space", "blocks", "windows", "qt_score_1.5ms", "max_ms", "share_within_T"]
    page.wait_for(f"{columns[-1]} (metric)")
    for column in columns:
        page.evaluate(_CLICK.format(f"{column} (metric)"))
    page.evaluate(_CLICK.format("Save"))
    for trial in trials:
        assert trial.metrics is not None
        for column in columns:
            page.wait_for(str(trial.metrics[column]))
        page.wait_for(f"{trial.metrics['default']:.6f}".rstrip("0"))
    page.evaluate(_CLICK.format("Intermediate result"))
    page.wait_for("Filter")
    page.screenshot(OUTPUT / "web_ui_incumbents.png")
    assert page.evaluate(_COLOURS) > 10


def test_incumbents_on_the_training_service(
    script: Script, nni: NNI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.start(concurrency=2, most=3, strategy={"evaluations": 300})
    result = script.wait()
    scores = undisturbed(300)
    assert result == {"best": str(BEST), "top": str(BEST)}
    trials = seam.trials(script.port)
    spaces = [str(check_trial(t, scores)) for t in trials]
    way = incumbents(scores)
    assert spaces == [space for space in way if space in spaces]
    assert len(spaces) == 3
    assert spaces[-1] == str(BEST)
    for trial in trials:
        assert trial.metrics is not None
        assert trial.intermediates[-1] == trial.metrics["default"]
    script.stop()
    # NNI takes the folder of the experiment for that of the command.
    monkeypatch.chdir(script.folder)
    port = free_port()
    viewed = nni("view", "one", "--port", str(port))
    assert viewed.returncode == 0, viewed.stdout
    assert seam.trials(port) == trials
    if chromium():
        with browser(tmp_path / "profile") as page:
            check_page(page, port, trials)
    nni("stop", "one")


def test_every_candidate_after_a_power_cut_and_nnis_own_resume(script: Script) -> None:
    options: dict[str, Any] = {"most": 3, "strategy": {"evaluations": 1000, "trials": "every"}}
    script.start(**options)
    script.wait_for(1)
    script.kill()
    script.start(**options, resume=True)
    result = script.wait()
    scores = undisturbed(3)
    assert result == {"best": best_of(scores), "top": best_of(scores)}
    # Those that had reported are not repeated.
    trials = seam.trials(script.port)
    assert sorted(str(check_trial(t, scores)) for t in trials) == sorted(scores)
    script.stop()


@pytest.mark.parametrize("trials", ["incumbents", "every"])
def test_the_sequential_engine(nni: NNI, trials: Literal["incumbents", "every"]) -> None:
    strategy = SpaceEvo(LUT, [1.5, 2.0], evaluations=300, trials=trials, **SETTINGS)
    config = NasExperimentConfig("sequential", "simplified", "local")
    config.max_trial_number = 40
    experiment = NasExperiment(
        HyperspaceModelSpace(HYPERSPACE),
        SpaceScoreEvaluator(LUT, [1.5, 2.0], samples=2000),
        strategy,
        config=config,
    )
    experiment.run()
    experiment.stop()
    scores = undisturbed(300 if trials == "incumbents" else 40)
    assert str(strategy.best.code) == best_of(scores)
    assert experiment.export_top_models(formatter="instance") == [strategy.best.code]


def test_the_example_runs(tmp_path: Path, nni: NNI) -> None:
    job = write_small_job(tmp_path / "job", search={"constraints_ms": [1.5]})
    LUT.save(job.lut_path)
    name = "space_search.py"
    shutil.copy(packed_folder("examples") / "digits" / name, job.path.parent)
    command = [
        sys.executable,
        name,
        "--port",
        str(free_port()),
        "--evaluations",
        "100",
        "--trials",
        "2",
    ]
    done = subprocess.run(
        command, cwd=job.path.parent, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    scores = undisturbed(100, EvolutionConfig(), QTConfig(constraints_ms=(1.5,)))
    assert f"best space {best_of(scores)}, Q-T score {max(scores.values()):.4f}" in done.stdout
