"""The seam to NNI 3.0: everything that knows how NNI hands things over, and where it is awkward.

NNI's manager listens on one port for the web UI, for REST, and for its trials and tuner.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SpaceEvoError

HOST = "127.0.0.1"
# A trial process starts a moment before the manager has stored what it is for.
_OWN_RECORD_SECONDS = 5.0
_OVER = ("SUCCEEDED", "FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED")


class ExperimentError(SpaceEvoError):
    """NNI could not start, find, or continue an experiment, or a trial of it went wrong."""


# ---- in the tuner's process ---------------------------------------------------------------------


def experiment_config(arguments: list[str] | None = None) -> dict[str, Any] | None:
    """The experiment's configuration as NNI gives it to the tuner's process; None elsewhere.

    Keys are NNI's own, such as `trialCodeDirectory` (absolute), `trialCommand`, `maxTrialNumber`
    and `trialConcurrency`; the search space is not among them.
    """
    arguments = sys.argv if arguments is None else arguments
    if "--exp_params" not in arguments[:-1]:
        return None
    encoded = arguments[arguments.index("--exp_params") + 1]
    config: dict[str, Any] = json.loads(base64.b64decode(encoded))
    return config


def checkpoint_dir() -> Path | None:
    """Folder that NNI keeps for the tuner between stop and resume; None outside the tuner."""
    folder = os.environ.get("NNI_CHECKPOINT_DIRECTORY")
    return Path(folder) if folder else None


def experiment_id() -> str:
    """Id of the experiment that this tuner belongs to; empty outside the tuner."""
    # <experiments>/<id>/checkpoint: the one place where the tuner's process is told the id.
    folder = checkpoint_dir()
    return folder.parent.name if folder else ""


def is_resuming() -> bool:
    """Whether this tuner continues a stopped experiment."""
    return os.environ.get("NNI_MODE") == "resume"


def tell_terminal(message: str) -> bool:
    """Write a line to the terminal from which the experiment was started, if there is one.

    `nnictl create` sends the tuner's output to a log file, reports success before the tuner has
    started, and ends. The terminal is still this process's controlling terminal.
    """
    try:
        with open("/dev/tty", "w") as terminal:
            terminal.write(f"{message}\n")
    except OSError:
        return False
    return True


def runs_here(config: Mapping[str, Any]) -> bool:
    """Whether an experiment's trials run on this machine, by its configuration."""
    service = config.get("trainingService") or {"platform": "local"}
    return isinstance(service, dict) and service.get("platform") == "local"


def trial_log(trial_id: str) -> Path:
    """Standard error of a trial, seen from the tuner; from another machine, NNI copies it here."""
    folder = checkpoint_dir()
    experiment = folder.parent if folder else Path()
    found = sorted(experiment.glob(f"environments/*/trials/{trial_id}/trial.stderr"))
    if found:
        return found[0]
    if port := manager_port():
        with contextlib.suppress(ExperimentError):
            _send("GET", f"{_rest(port)}/trial-file/{trial_id}/stderr")
    copy = experiment / "trials" / trial_id / "trial.stderr"
    return copy if copy.is_file() else experiment / "environments"


def manager_port(environ: Mapping[str, str] = os.environ) -> int | None:
    """Port of the manager that started this tuner or trial; None where there is none."""
    for key in ("NNI_TUNER_COMMAND_CHANNEL", "NNI_TRIAL_COMMAND_CHANNEL"):
        if environ.get(key):
            return urllib.parse.urlsplit(environ[key]).port
    return None


# ---- in a trial's process -----------------------------------------------------------------------


class ThisTrial:
    """The trial that this process is: its parameters, and the way back for its result.

    On the local platform it goes to the manager itself, for two reasons. With `trialConcurrency`
    above 1, `nni.get_next_parameter()` returns whatever is next in the queue, while manager, web UI
    and `nnictl resume` go by the trial's id: up to half of the trials then run with another
    trial's parameters. And `import nni` takes two seconds of CPU, several times the trial's work.

    Attributes
    ----------
    parameters : as the tuner has handed them out

    Raises
    ------
    ExperimentError
        Not started by NNI, or its manager does not answer.
    """

    def __init__(self) -> None:
        self._channel = os.environ.get("NNI_TRIAL_COMMAND_CHANNEL", "")
        self._id = os.environ.get("NNI_TRIAL_JOB_ID", "")
        self._is_local = os.environ.get("NNI_PLATFORM") == "local"
        if not self._id:
            raise ExperimentError("this is a trial: NNI must start it, see `nnictl create`")
        if self._is_local:
            record = _own_record(self._id, manager_port() or 0)
            self._parameter_id, parameters = record["parameter_id"], record["parameters"]
        else:
            import nni

            parameters = nni.get_next_parameter()
        self.parameters: dict[str, Any] = dict(parameters)
        self._reported = 0

    def report_intermediate(self, metrics: dict[str, Any]) -> None:
        """Send a point of the trial's curve, as `nni.report_intermediate_result`."""
        if self._is_local:
            self._send_metric("PERIODICAL", self._reported, metrics)
        else:
            import nni

            nni.report_intermediate_result(metrics)
        self._reported += 1

    def report_final(self, metrics: dict[str, Any]) -> None:
        """Send the result, as `nni.report_final_result`; raises `ExperimentError`."""
        if self._is_local:
            self._send_metric("FINAL", 0, metrics)
        else:
            import nni

            nni.report_final_result(metrics)

    def _send_metric(self, kind: str, sequence: int, metrics: dict[str, Any]) -> None:
        metric = {
            "parameter_id": self._parameter_id,
            "trial_job_id": self._id,
            "type": kind,
            "sequence": sequence,
            "value": json.dumps(metrics, allow_nan=False),
        }
        _send("PUT", self._channel, {"type": "metric", "metric": json.dumps(metric)})


def _own_record(trial_id: str, port: int) -> dict[str, Any]:
    """What the manager has under a trial's id: parameter id and parameters."""
    deadline = time.monotonic() + _OWN_RECORD_SECONDS
    while True:
        try:
            job = get(port, f"/trial-jobs/{trial_id}")
            if job.get("hyperParameters"):
                return dict(json.loads(job["hyperParameters"][0]))
        except ExperimentError:
            # Asked for a trial that it has not stored yet, the manager answers with an error.
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise ExperimentError(f"NNI has no parameters for trial {trial_id}")
        time.sleep(0.05)


# ---- REST ---------------------------------------------------------------------------------------


def get(port: int, path: str, timeout_s: float = 20.0) -> Any:
    """Read from the manager's REST interface on this machine.

    Raises
    ------
    ExperimentError
        No manager answers on the port, or it answers with an error.
    """
    answer = _send("GET", _rest(port) + path, timeout_s=timeout_s)
    try:
        return json.loads(answer)
    except ValueError as error:
        raise ExperimentError(f"NNI at port {port}, {path}: not JSON: {answer[:80]!r}") from error


def no_more_trials(port: int) -> None:
    """Have the manager say DONE: there are no more trials than those that have ended.

    A tuner that hands out nothing more leaves an experiment waiting for ever.

    Raises
    ------
    ExperimentError
        No manager answers on the port.
    """
    experiment = get(port, "/experiment")
    experiment["params"]["maxTrialNumber"] = sum(trial.is_over for trial in trials(port))
    _send("PUT", f"{_rest(port)}/experiment?update_type=MAX_TRIAL_NUM", experiment)


def _rest(port: int) -> str:
    return f"http://{HOST}:{port}/api/v1/nni"


def _send(method: str, url: str, data: Any = None, timeout_s: float = 20.0) -> bytes:
    body = None if data is None else json.dumps(data).encode()
    try:
        request = urllib.request.Request(url, body, method=method)
        request.add_header("Content-Type", "application/json")
        # The manager is on this machine: never by a proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout_s) as response:
            answer: bytes = response.read()
            return answer
    except (OSError, ValueError) as error:
        raise ExperimentError(f"no answer from NNI at {url} ({error})") from error


@dataclass(frozen=True)
class Status:
    """State of an experiment: NNI's word for it, and the errors it has met."""

    word: str
    errors: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether NNI has given up."""
        return self.word == "ERROR"


def search_space(port: int) -> Any:
    """The search space that the user has given; raises `ExperimentError`."""
    return get(port, "/experiment")["params"].get("searchSpace")


def status(port: int) -> Status:
    """State of the experiment on a port; raises `ExperimentError`."""
    answer = get(port, "/check-status")
    return Status(answer["status"], tuple(answer["errors"]))


@dataclass(frozen=True)
class Trial:
    """A trial as the manager knows it.

    Attributes
    ----------
    id : NNI's id of the trial
    sequence : its number in the web UI
    status : NNI's word for its state
    parameter_id, parameters : what it was started with
    metrics : its final result; None before
    intermediates : its intermediate results in order
    """

    id: str
    sequence: int
    status: str
    parameter_id: int | None
    parameters: dict[str, Any]
    metrics: dict[str, Any] | None
    intermediates: tuple[Any, ...]

    @property
    def is_over(self) -> bool:
        """Whether it has ended; `ADD_RESUMED` and `UNKNOWN` are among the words for not yet."""
        return self.status in _OVER


def trials(port: int) -> list[Trial]:
    """All trials of the experiment on a port, in the order in which they were started.

    Raises
    ------
    ExperimentError
        No manager answers on the port.
    """
    jobs = get(port, "/trial-jobs")
    return join_metrics(jobs, get(port, "/metric-data"))


def own_trials() -> list[Trial]:
    """All trials of this tuner's experiment, as `trials`; none outside an experiment."""
    port = manager_port()
    return trials(port) if port else []


def join_metrics(jobs: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> list[Trial]:
    """Put trials and metrics together, as REST gives them.

    A metric belongs to the parameters with its `parameterId`: under another trial's id it may
    stand by NNI's parameter swap. A resumed experiment gives the same number to two trials; then
    the trial's id decides between them.
    """
    finals: dict[int, dict[str, Any]] = {}
    curves: dict[int, dict[int, Any]] = {}
    records = [json.loads((job.get("hyperParameters") or ["{}"])[0]) for job in jobs]
    for metric in metrics:
        owner = _owner(metric, jobs, records)
        # JSON within JSON: the manager stores what the trial has written.
        value = json.loads(json.loads(metric["data"]))
        if owner is None:
            continue
        if metric["type"] == "FINAL":
            finals.setdefault(owner, value if isinstance(value, dict) else {"default": value})
        else:
            curves.setdefault(owner, {})[int(metric["sequence"])] = value
    joined = [
        Trial(
            id=job["trialJobId"],
            sequence=int(job.get("sequenceId", -1)),
            status=job["status"],
            parameter_id=record.get("parameter_id"),
            parameters=dict(record.get("parameters") or {}),
            metrics=finals.get(i),
            intermediates=tuple(v for _, v in sorted(curves.get(i, {}).items())),
        )
        for i, (job, record) in enumerate(zip(jobs, records, strict=True))
    ]
    starts = {job["trialJobId"]: job.get("startTime", 0) for job in jobs}
    return sorted(joined, key=lambda t: (starts[t.id], t.sequence))


def _owner(
    metric: dict[str, Any], jobs: list[dict[str, Any]], records: list[dict[str, Any]]
) -> int | None:
    wanted = metric.get("parameterId")
    found = [
        i
        for i, record in enumerate(records)
        if wanted is not None and str(record.get("parameter_id")) == str(wanted)
    ]
    same_trial = [i for i, job in enumerate(jobs) if job["trialJobId"] == metric["trialJobId"]]
    if len(found) == 1:
        return found[0]
    return next((i for i in same_trial if not found or i in found), None)
