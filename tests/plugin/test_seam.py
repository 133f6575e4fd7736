from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nni_spaceevo.plugin import seam
from nni_spaceevo.plugin.seam import ExperimentError


class _Manager(BaseHTTPRequestHandler):
    """A stand-in for NNI's manager: fixed answers, and a record of what was sent."""

    answers: ClassVar[dict[str, Any]]
    received: ClassVar[list[tuple[str, Any]]]

    def do_GET(self) -> None:
        known = self.path in self.answers
        answer = self.answers.get(self.path)
        if isinstance(answer, list) and answer and answer[0] == "in turn":
            answer = answer[1] if len(answer) == 2 else answer.pop(1)
        self._answer(200 if known and answer is not None else 500, answer)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, json.loads(body)))
        self._answer(200, {})

    def _answer(self, code: int, content: Any) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def manager() -> Iterator[tuple[int, type[_Manager]]]:
    _Manager.answers, _Manager.received = {}, []
    server = HTTPServer(("127.0.0.1", 0), _Manager)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1], _Manager
    server.shutdown()
    server.server_close()


def _job(trial: str, parameter_id: int, status: str = "SUCCEEDED", start: int = 0) -> Any:
    record = {"parameter_id": parameter_id, "parameters": {"of": parameter_id}}
    return {
        "trialJobId": trial,
        "sequenceId": parameter_id,
        "status": status,
        "startTime": start,
        "hyperParameters": [json.dumps(record)],
    }


def _metric(trial: str, parameter_id: int, value: Any, kind: str = "FINAL", seq: int = 0) -> Any:
    return {
        "trialJobId": trial,
        "parameterId": str(parameter_id),
        "type": kind,
        "sequence": seq,
        "data": json.dumps(json.dumps(value)),
    }


def test_experiment_config_is_read_from_the_command_line() -> None:
    config = {"maxTrialNumber": 3, "trialCodeDirectory": "/job"}
    encoded = base64.b64encode(json.dumps(config).encode()).decode()
    assert seam.experiment_config(["nni", "--exp_params", encoded]) == config
    assert seam.experiment_config(["pytest"]) is None
    assert seam.experiment_config(["pytest", "--exp_params"]) is None


def test_places_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert seam.checkpoint_dir() is None
    assert seam.experiment_id() == ""
    assert not seam.is_resuming()
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path / "abc" / "checkpoint"))
    monkeypatch.setenv("NNI_MODE", "resume")
    assert seam.experiment_id() == "abc"
    assert seam.is_resuming()


@pytest.mark.parametrize(
    ("environ", "port"),
    [
        ({}, None),
        ({"NNI_TUNER_COMMAND_CHANNEL": "ws://localhost:8081/tuner"}, 8081),
        ({"NNI_TRIAL_COMMAND_CHANNEL": "http://localhost:8082/env/local-env/abcde"}, 8082),
    ],
)
def test_manager_port(environ: dict[str, str], port: int | None) -> None:
    assert seam.manager_port(environ) == port


def test_metrics_are_joined_on_the_parameter_id_where_nni_swapped_trials() -> None:
    jobs = [_job("A", 0), _job("B", 1)]
    metrics = [_metric("A", 1, {"default": 10.0}), _metric("B", 0, {"default": 20.0})]
    found = {t.parameters["of"]: t.metrics for t in seam.join_metrics(jobs, metrics)}
    assert found == {0: {"default": 20.0}, 1: {"default": 10.0}}


def test_a_parameter_id_given_twice_by_a_resume_is_told_apart_by_the_trial() -> None:
    jobs = [_job("A", 1, start=1), _job("B", 1, start=2)]
    metrics = [_metric("A", 1, 10.0), _metric("B", 1, 20.0)]
    assert [t.metrics for t in seam.join_metrics(jobs, metrics)] == [
        {"default": 10.0},
        {"default": 20.0},
    ]


def test_intermediates_are_in_order_and_trials_by_start() -> None:
    jobs = [_job("B", 1, "RUNNING", start=5), _job("A", 0, "RUNNING", start=2)]
    metrics = [_metric("A", 0, v, "PERIODICAL", v) for v in (2, 0, 1)]
    first, second = seam.join_metrics(jobs, metrics)
    assert first.intermediates == (0, 1, 2)
    assert second.intermediates == ()
    assert first.metrics is None
    assert not first.is_over


@pytest.mark.parametrize(
    ("word", "over"),
    [("WAITING", False), ("RUNNING", False), ("ADD_RESUMED", False), ("UNKNOWN", False)]
    + [(w, True) for w in ("SUCCEEDED", "FAILED", "USER_CANCELED", "EARLY_STOPPED")],
)
def test_nnis_words_for_the_end(word: str, over: bool) -> None:
    (trial,) = seam.join_metrics([_job("A", 0, word)], [])
    assert trial.is_over is over


def test_a_local_trial_takes_what_the_manager_has_under_its_id(
    manager: tuple[int, type[_Manager]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, handler = manager
    _local_trial(monkeypatch, port)
    # The first question comes before the manager has stored the trial.
    handler.answers["/api/v1/nni/trial-jobs/B"] = ["in turn", None, {}, _job("B", 7)]
    trial = seam.ThisTrial()
    assert trial.parameters == {"of": 7}
    trial.report_final({"default": 0.5, "space": "x-0-0"})
    ((path, sent),) = handler.received
    metric = json.loads(sent["metric"])
    assert (path, sent["type"], metric["type"]) == ("/env/local-env/B", "metric", "FINAL")
    assert (metric["parameter_id"], metric["trial_job_id"]) == (7, "B")
    assert json.loads(metric["value"]) == {"default": 0.5, "space": "x-0-0"}


def test_a_local_trials_curve_is_numbered(
    manager: tuple[int, type[_Manager]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, handler = manager
    _local_trial(monkeypatch, port)
    handler.answers["/api/v1/nni/trial-jobs/B"] = _job("B", 7)
    trial = seam.ThisTrial()
    for loss in (0.75, 0.5):
        trial.report_intermediate({"default": loss})
    trial.report_final({"default": 0.25})
    sent = [json.loads(content["metric"]) for _, content in handler.received]
    assert [(m["type"], m["sequence"]) for m in sent] == [
        ("PERIODICAL", 0),
        ("PERIODICAL", 1),
        ("FINAL", 0),
    ]
    assert [json.loads(m["value"])["default"] for m in sent] == [0.75, 0.5, 0.25]


def test_elsewhere_a_trial_speaks_through_nni(monkeypatch: pytest.MonkeyPatch) -> None:
    import nni

    said: list[tuple[str, Any]] = []
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "B")
    monkeypatch.setenv("NNI_PLATFORM", "remote")
    monkeypatch.setattr(nni, "get_next_parameter", lambda: {"task": "x"})
    monkeypatch.setattr(nni, "report_intermediate_result", lambda m: said.append(("curve", m)))
    monkeypatch.setattr(nni, "report_final_result", lambda m: said.append(("final", m)))
    trial = seam.ThisTrial()
    assert trial.parameters == {"task": "x"}
    trial.report_intermediate({"default": 1.0})
    trial.report_final({"default": 2.0})
    assert said == [("curve", {"default": 1.0}), ("final", {"default": 2.0})]


def test_the_manager_is_told_that_no_trial_follows(manager: tuple[int, type[_Manager]]) -> None:
    port, handler = manager
    handler.answers["/api/v1/nni/experiment"] = {"id": "x", "params": {"trialConcurrency": 2}}
    handler.answers["/api/v1/nni/trial-jobs"] = [_job("A", 0), _job("B", 1, "FAILED")]
    handler.answers["/api/v1/nni/metric-data"] = []
    seam.no_more_trials(port)
    ((path, sent),) = handler.received
    assert path == "/api/v1/nni/experiment?update_type=MAX_TRIAL_NUM"
    assert sent["params"] == {"trialConcurrency": 2, "maxTrialNumber": 2}


def test_a_tuner_without_manager_has_no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seam, "trials", lambda port: [port])
    monkeypatch.setattr(seam, "manager_port", lambda: 8080)
    assert seam.own_trials() == [8080]
    monkeypatch.setattr(seam, "manager_port", lambda: None)
    assert seam.own_trials() == []


@pytest.mark.parametrize(
    ("config", "here"),
    [
        ({}, True),
        ({"trainingService": {"platform": "local"}}, True),
        ({"trainingService": {"platform": "remote", "machineList": []}}, False),
        ({"trainingService": [{"platform": "local"}, {"platform": "remote"}]}, False),
    ],
)
def test_where_trials_run(config: dict[str, Any], here: bool) -> None:
    assert seam.runs_here(config) is here


def test_a_local_trial_without_manager_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    _local_trial(monkeypatch, 9)
    monkeypatch.setattr(seam, "_OWN_RECORD_SECONDS", 0.2)
    with pytest.raises(ExperimentError, match=r"no answer from NNI at http://127\.0\.0\.1:9/"):
        seam.ThisTrial()


def test_a_trial_outside_nni_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NNI_TRIAL_JOB_ID", raising=False)
    with pytest.raises(ExperimentError, match="NNI must start it"):
        seam.ThisTrial()


def _local_trial(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.delenv("NNI_TUNER_COMMAND_CHANNEL", raising=False)
    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "B")
    channel = f"http://127.0.0.1:{port}/env/local-env/B"
    monkeypatch.setenv("NNI_TRIAL_COMMAND_CHANNEL", channel)


def test_rest_says_what_did_not_answer(manager: tuple[int, type[_Manager]]) -> None:
    port, handler = manager
    handler.answers["/api/v1/nni/check-status"] = {"status": "ERROR", "errors": ["why"]}
    assert seam.status(port) == seam.Status("ERROR", ("why",))
    assert seam.status(port).failed
    with pytest.raises(ExperimentError, match="trial-jobs"):
        seam.get(port, "/trial-jobs")


def test_the_log_of_a_trial_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "abc" / "environments" / "local-env" / "trials" / "T1" / "trial.stderr"
    log.parent.mkdir(parents=True)
    log.touch()
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path / "abc" / "checkpoint"))
    assert seam.trial_log("T1") == log
    assert seam.trial_log("T2") == tmp_path / "abc" / "environments"


def test_the_log_of_a_trial_elsewhere_is_fetched_by_the_manager(
    manager: tuple[int, type[_Manager]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port, handler = manager
    handler.answers["/api/v1/nni/trial-file/T1/stderr"] = "text"
    monkeypatch.setenv("NNI_TUNER_COMMAND_CHANNEL", f"ws://localhost:{port}/tuner")
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path / "abc" / "checkpoint"))
    assert seam.trial_log("T1") == tmp_path / "abc" / "environments"
    copy = tmp_path / "abc" / "trials" / "T1" / "trial.stderr"
    copy.parent.mkdir(parents=True)
    copy.touch()
    assert seam.trial_log("T1") == copy
