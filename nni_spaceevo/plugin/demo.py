"""The demo: from a fresh machine to a search space, watched in NNI's web UI."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import ConfigError
from ..files import packed_folder
from .job import Job
from .prepare import constraints, prepared_lut, timed
from .registration import program, register
from .report import write_report

EXPERIMENT_FILE = "search_space.yml"
JOB_FILE = "spaceevo.yaml"


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
        name = experiment.create(place / EXPERIMENT_FILE, port)
        print(f"Searching for spaces within T = {T}: http://127.0.0.1:{port} (experiment {name})")
        print("NNI listens on all interfaces without login; keep the port behind a firewall.")
        try:
            results = experiment.follow(port, job)
        except BaseException:
            experiment.stop(name)
            raise
    write_report(job, results)
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
