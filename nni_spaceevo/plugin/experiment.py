"""Running a search as an NNI experiment from Python, with errors that reach the caller.

`nnictl create` returns before NNI has started the tuner, so what the tuner refuses stands only in
NNI's logs and in the web UI. `create` waits for the tuner and raises its reason.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import SpaceEvoError
from ..jobs.job import Job
from ..jobs.results import SearchResults
from . import seam
from .registration import is_registered, nnictl
from .seam import ExperimentError

# NNI gives a tuner 10 s to connect; a busy machine takes some seconds to get there.
_START_SECONDS = 40.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.5
_STOPPED = ("STOPPING", "STOPPED")
# So long nothing may follow for an experiment without more trials to be over: after a resume NNI
# says for a moment that there are none.
_QUIET_SECONDS = 10.0
# Between the last trial's end and the tuner's last write, which includes drawing the report.
_SETTLE_SECONDS = 60.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def create(config: Path, port: int) -> str:
    """Start an experiment and wait until its tuner has accepted the job.

    Parameters
    ----------
    config : nnictl's YAML file
    port : of web UI and REST; NNI listens on all interfaces, without login

    Returns
    -------
    experiment_id : as `stop` and `nnictl` take it

    Raises
    ------
    ExperimentError
        The tuner is not registered, `nnictl` refused the file or the port, or the tuner refused
        the job; nothing is left running.
    """
    if not is_registered():
        raise ExperimentError("NNI does not know the tuner yet; run `spaceevo register`")
    result = nnictl("create", "--config", str(config), "--port", str(port))
    if result.returncode:
        raise ExperimentError(f"{config}: nnictl create failed: {_reason(result.stdout)}")
    experiment = str(seam.get(port, "/experiment")["id"])
    try:
        _wait_for_tuner(port)
    except SpaceEvoError:
        stop(experiment)
        raise
    return experiment


def resume(experiment: str, port: int) -> None:
    """Continue a stopped or killed experiment.

    Raises
    ------
    ExperimentError
        `nnictl` does not know it, or the port is taken.
    """
    result = nnictl("resume", experiment, "--port", str(port))
    if result.returncode or "ERROR" in result.stdout:
        raise ExperimentError(f"nnictl resume {experiment} failed: {_reason(result.stdout)}")
    _wait_for_tuner(port)


def is_up(experiment: str, port: int) -> bool:
    """Whether the experiment's manager answers on the port; one that is stopping is waited for."""
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            if str(seam.get(port, "/experiment")["id"]) != experiment:
                return False
            if seam.status(port).word not in _STOPPED:
                return True
        except ExperimentError:
            return False
        time.sleep(_POLL_SECONDS)
    return False


def _wait_for_tuner(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not seam.get(port, "/trial-jobs"):
        complaints = tuner_complaints(port)
        if complaints:
            raise ExperimentError(complaints[-1])
        status = seam.status(port)
        if status.failed or time.monotonic() > deadline:
            raise ExperimentError(f"the tuner did not start: {_explain(port, status)}")
        time.sleep(_POLL_SECONDS)


def follow(port: int, job: Job) -> SearchResults:
    """Show the progress of an experiment until it is over.

    Returns
    -------
    results : all scored spaces

    Raises
    ------
    ExperimentError
        The experiment failed or was stopped, or ended without any score.
    """
    experiment = seam.get(port, "/experiment")
    total = experiment["params"].get("maxTrialNumber")
    quiet_since = time.monotonic()
    with tqdm(total=total, unit="space", desc=job.hyperspace.name) as bar:
        while True:
            status, trials = seam.status(port), seam.trials(port)
            _show(bar, trials)
            if status.failed:
                raise ExperimentError(_explain(port, status))
            if status.word in _STOPPED:
                raise ExperimentError(
                    f"experiment {experiment['id']} was stopped after {bar.n} of {total} spaces; "
                    "the same command, or `nnictl resume`, continues it"
                )
            if status.word in ("DONE", "VIEWED"):
                break
            if not _is_exhausted(status, trials):
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > _QUIET_SECONDS:
                break
            time.sleep(_POLL_SECONDS)
    scored = sum(t.metrics is not None for t in trials)
    if not scored:
        raise ExperimentError(f"no trial of {len(trials)} reported a score; see NNI's web UI")
    return _settled(job, experiment["id"], scored)


def stop(experiment: str) -> None:
    """Stop an experiment and its web UI; `nnictl resume` continues it.

    Raises
    ------
    ExperimentError
        `nnictl` does not know it or could not stop it.
    """
    result = nnictl("stop", experiment)
    if result.returncode or "ERROR" in result.stdout:
        raise ExperimentError(f"nnictl stop {experiment} failed: {_reason(result.stdout)}")


def tuner_complaints(port: int) -> list[str]:
    """What our tuner has said on its standard error, which NNI keeps in a log file."""
    folder = Path(seam.get(port, "/experiment")["logDir"])
    log = folder / "log" / "nnictl_stderr.log"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return [line.removeprefix("SpaceEvo: ") for line in lines if line.startswith("SpaceEvo: ")]


def _show(bar: tqdm[Any], trials: list[seam.Trial]) -> None:
    scored = [t.metrics for t in trials if t.metrics is not None and "space" in t.metrics]
    if scored:
        best = max(scored, key=lambda m: float(m["default"]))
        bar.set_postfix_str(f"best {best['space']} {float(best['default']):.4f}", refresh=False)
    bar.update(len(scored) - bar.n)


def _is_exhausted(status: seam.Status, trials: list[seam.Trial]) -> bool:
    """Whether all spaces have been handed out and scored; NNI itself would wait for ever."""
    return status.word == "TUNER_NO_MORE_TRIAL" and all(t.is_over for t in trials)


def _settled(job: Job, experiment: str, scored: int) -> SearchResults:
    """The results once the tuner has written as many as the manager knows."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        if job.search_path.exists():
            results = SearchResults.load(job.search_path)
            if results.experiment == experiment and len(results.spaces) >= scored:
                return results
        if time.monotonic() > deadline:
            raise ExperimentError(
                f"{job.search_path}: the tuner has not written the {scored} scores of experiment "
                f"{experiment}; see its dispatcher.log"
            )
        time.sleep(_POLL_SECONDS)


def _explain(port: int, status: seam.Status) -> str:
    complaints = tuner_complaints(port)
    return complaints[-1] if complaints else "; ".join(status.errors) or f"NNI says {status.word}"


def _reason(output: str) -> str:
    """The line of nnictl's output that says what is wrong, without colours and time."""
    lines = [_COLOURS.sub("", line).strip() for line in output.splitlines()]
    wrong = [line for line in lines if re.search(r"ERROR|Error\b", line)]
    return (wrong or [line for line in lines if line] or ["it said nothing"])[-1]
