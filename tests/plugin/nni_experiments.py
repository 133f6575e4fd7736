"""Job folders that need no training, and NNI experiments that never outlive their test."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nni_spaceevo.files import to_yaml
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.results import SearchResults
from nni_spaceevo.plugin import seam
from nni_spaceevo.plugin.registration import nnictl
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

CLASS_ARGS = {"job": "spaceevo.yaml", "population_size": 8, "sample_size": 4}


def write_job(folder: Path, **changes: Any) -> Job:
    """A job whose LUT is there already; `changes` replace keys of the job file."""
    hyperspace = synthetic_hyperspace()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hyperspace.yaml").write_text(to_yaml(hyperspace))
    config = {
        "schema": 1,
        "hyperspace": "hyperspace.yaml",
        "dataset": "digits",
        "teacher": {"widths": [8, 8, 8, 8], "epochs": 1},
        "search": {"constraints_ms": [1.5], "samples": 2000},
        **changes,
    }
    (folder / "spaceevo.yaml").write_text(to_yaml(config))
    job = Job(folder / "spaceevo.yaml")
    best = hyperspace.space("synthetic-012-201")
    synthetic_lut(hyperspace, best).save(job.lut_path)
    return job


def write_experiment(job: Job, trials: int = 6, concurrency: int = 1, **changes: Any) -> Path:
    """The nnictl YAML beside a job; `changes` replace its keys."""
    config = {
        "experimentName": "test",
        "searchSpace": job.hyperspace.search_space(),
        "trialCommand": "python3 -m nni_spaceevo.plugin.trial --job spaceevo.yaml",
        "trialCodeDirectory": ".",
        "trialConcurrency": concurrency,
        "maxTrialNumber": trials,
        "tuner": {"name": "SpaceEvo", "classArgs": CLASS_ARGS},
        "trainingService": {"platform": "local"},
        **changes,
    }
    path = job.path.parent / "search_space.yml"
    path.write_text(to_yaml(config))
    return path


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class NNI:
    """NNI in a home folder of its own."""

    home: Path
    started: list[str] = field(default_factory=list)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return nnictl(*arguments)

    def create(self, config: Path, port: int | None = None) -> int:
        """Start an experiment; returns its port."""
        port = port or free_port()
        result = nnictl("create", "--config", str(config), "--port", str(port))
        assert result.returncode == 0, result.stdout
        self.started.append(seam.get(port, "/experiment")["id"])
        return port

    def resume(self, experiment: str) -> int:
        """Continue a stopped experiment; returns its port."""
        port = free_port()
        result = nnictl("resume", experiment, "--port", str(port))
        assert result.returncode == 0, result.stdout
        return port

    @property
    def last(self) -> str:
        """Id of the last experiment."""
        return self.started[-1]

    def log(self, name: str, experiment: str | None = None) -> str:
        """A log file of an experiment."""
        folder = self.home / "nni-experiments" / (experiment or self.last) / "log"
        return (folder / name).read_text() if (folder / name).exists() else ""

    def wait(self, port: int, words: tuple[str, ...] = ("DONE",), seconds: float = 120) -> None:
        """Wait until the experiment's status is one of `words`."""
        deadline = time.monotonic() + seconds
        while (status := seam.status(port)).word not in words:
            assert time.monotonic() < deadline, f"still {status}\n{self.log('nnictl_stderr.log')}"
            assert status.word != "ERROR", f"{status}\n{self.log('nnictl_stderr.log')}"
            time.sleep(0.3)

    def wait_for_results(self, job: Job, count: int, seconds: float = 120) -> SearchResults:
        """Wait until so many spaces have been scored."""
        deadline = time.monotonic() + seconds
        while (
            not job.search_path.exists() or len(SearchResults.load(job.search_path).spaces) < count
        ):
            assert time.monotonic() < deadline, self.log("nnictl_stderr.log")
            time.sleep(0.1)
        return SearchResults.load(job.search_path)

    def pids(self) -> list[int]:
        """Processes that belong to this home: managers, tuners and trials."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"HOME={self.home}\0".encode() in (process / "environ").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
        return [pid for pid in found if pid != os.getpid()]
