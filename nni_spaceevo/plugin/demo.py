"""The demo: from a fresh machine to a search space, watched in NNI's web UI."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from ..errors import ConfigError
from ..files import Record, packed_folder, read_json, to_json, write_atomically
from ..jobs.command import program
from ..jobs.job import Job
from ..jobs.prepare import constraints, prepared_lut, timed
from ..reports.job_report import write_report
from .registration import register

EXPERIMENT_FILE = "search_space.yml"
JOB_FILE = "spaceevo.yaml"
RUNNING_FILE = "experiment.json"


def demo_folder(folder: Path | None) -> Path:
    """The folder with the digits example: the checkout's, or a copy of the packed one.

    Raises
    ------
    ConfigError
        `folder` has other files but not the example.
    """
    packed = packed_folder("examples") / "digits"
    if folder is None:
        # In a checkout the example lies beside the package and is run where it is.
        folder = (
            packed if (packed.parents[1] / "pyproject.toml").is_file() else Path("spaceevo-digits")
        )
    if not (folder / EXPERIMENT_FILE).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder}: has other files; expected a new folder or the example")
        files = shutil.ignore_patterns("work", "__pycache__")
        shutil.copytree(packed, folder, dirs_exist_ok=True, ignore=files)
    return folder.resolve()


class Running(Record, frozen=True):
    """The NNI experiment that is doing a job's search, so that a killed demo finds it again."""

    id: str
    port: int


def _started_or_continued(job: Job, config: Path, port: int) -> Running:
    """The job's experiment: still running, resumed after a stop or kill, or new."""
    from . import experiment

    path = job.work / RUNNING_FILE
    if path.is_file():
        before = read_json(path, Running)
        if experiment.is_up(before.id, before.port):
            return before
        # An experiment of which NNI has lost the records is started anew.
        with contextlib.suppress(experiment.ExperimentError):
            experiment.resume(before.id, port)
            print(f"Continuing experiment {before.id}")
            return _noted(path, before.id, port)
    return _noted(path, experiment.create(config, port), port)


def _noted(path: Path, experiment: str, port: int) -> Running:
    running = Running(id=experiment, port=port)
    write_atomically(path, to_json(running))
    return running


def run_demo(folder: Path | None, port: int, *, keep_web_ui: bool) -> None:
    """Prepare what is missing, run the experiment, print the report.

    Parameters
    ----------
    folder : where the example lies or shall lie; None chooses
    port : of NNI's web UI
    keep_web_ui : leave the web UI up afterwards
    """
    from . import experiment

    place = demo_folder(folder)
    job = Job(place / JOB_FILE)
    print(register())
    lut = prepared_lut(job)
    T = " and ".join(f"{v:g} ms" for v in constraints(job, lut))
    if job.report_path.joinpath("report.md").is_file():
        print(f"The search is done; delete {job.search_path} and {job.report_path} to repeat it.")
        _print_report(job)
        return
    with timed(job, "search in NNI"):
        running = _started_or_continued(job, place / EXPERIMENT_FILE, port)
        name, port = running.id, running.port
        print(f"Searching for spaces within T = {T}: http://127.0.0.1:{port} (experiment {name})")
        print("NNI listens on all interfaces without login; keep the port behind a firewall.")
        try:
            results = experiment.follow(port, job)
        except BaseException:
            # It may be down already; either way the same command continues it.
            with contextlib.suppress(experiment.ExperimentError):
                experiment.stop(name)
            raise
    write_report(job, results)
    job.work.joinpath(RUNNING_FILE).unlink()
    nnictl = program("nnictl")
    if keep_web_ui:
        print(
            f"The web UI stays up at http://127.0.0.1:{port}; end it with `{nnictl} stop {name}`."
        )
    else:
        experiment.stop(name)
        print(f"See the trials again with `{nnictl} view {name} --port {port}`.")
    _print_report(job)


def _print_report(job: Job) -> None:
    print("\n" + (job.report_path / "report.md").read_text(encoding="utf-8"))
