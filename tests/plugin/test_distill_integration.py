"""Real distillation experiments: on this machine, and on two that NNI reaches by SSH."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jobs.small_job import write_small_job

from nni_spaceevo.cli import main
from nni_spaceevo.errors import LockedError
from nni_spaceevo.files import exclusive, to_yaml
from nni_spaceevo.jobs.distillation import distilled_rows, rows_folder
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.prepare import merged_lut
from nni_spaceevo.lut.merge import task_cells
from nni_spaceevo.plugin import experiment, seam
from nni_spaceevo.plugin.distill_tuner import TRIAL_COMMAND, distill_search_space
from nni_spaceevo.testing import synthetic_stage_rows

from .browser import PROGRAMS, chromium
from .curves import curve_keys
from .nni_experiments import NNI
from .ssh_hosts import SSHD, Host, make_key

pytestmark = [pytest.mark.slow, pytest.mark.experiment]

# A trial that makes up its losses. The first one of all fails.
QUICK_TRIAL = """
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from nni_spaceevo.plugin import distill_trial
from nni_spaceevo.jobs.distillation import rows_folder
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.testing import synthetic_stage_rows


def quick(path, cell, report):
    for precision in ("fp32", "int8"):
        report(SimpleNamespace(random=0.5, largest=0.4, smallest=0.6, precision=precision))
        time.sleep(0.5)
    folder = rows_folder(Job(path))
    task = next(t for t, its_cell in folder.tasks.items() if its_cell == cell)
    return synthetic_stage_rows(folder.hyperspace, task, folder.made_with)


try:
    Path("failed_once").mkdir()
    sys.exit("not yet")
except FileExistsError:
    distill_trial.distilled_rows = quick
    sys.exit(distill_trial.main(["--job", "spaceevo.yaml"]))
"""


def write_experiment(job: Job, command: str, service: dict[str, Any]) -> Path:
    config = {
        "experimentName": "test",
        "searchSpace": distill_search_space(job.hyperspace),
        "trialCommand": command,
        "trialCodeDirectory": ".",
        "trialConcurrency": 2,
        "nniManagerIp": "127.0.0.1",
        "tuner": {"name": "SpaceEvoDistill", "classArgs": {"job": "spaceevo.yaml"}},
        "trainingService": service,
    }
    path = job.path.parent / "distill.yml"
    path.write_text(to_yaml(config))
    return path


def finished(job: Job) -> set[str]:
    """Tasks whose rows the experiment has."""
    return {path.stem for path in job.rows_path.glob("*.json")}


def wait_for(nni: NNI, condition: Callable[[], Any], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        log = f"{nni.log('nnictl_stderr.log')}\n{nni.log('nnimanager.log')[-6000:]}"
        assert time.monotonic() < deadline, log
        time.sleep(0.1)


def check_trials(nni: NNI, trials: list[seam.Trial], job: Job, *, stayed_up: bool = True) -> None:
    """Every task has one result, and its trial a curve; the tuner lost no manager that stayed."""
    done = [t for t in trials if t.metrics is not None]
    results = Counter(t.metrics["task"] for t in done if t.metrics)
    assert results == dict.fromkeys(task_cells(job.hyperspace), 1)
    for trial in done:
        assert trial.metrics is not None
        rows = rows_folder(job).find(trial.metrics["task"])
        assert rows is not None
        assert trial.metrics["default"] == pytest.approx(rows.mean_loss)
        assert [point["precision"] for point in trial.intermediates] == ["fp32", "int8"]
        assert {"default", "largest", "smallest"} <= trial.intermediates[0].keys()
    assert not stayed_up or "Failed to receive" not in nni.log("dispatcher.log")


def test_failed_and_killed_trials_are_repeated_and_finished_ones_are_not(
    nni: NNI, tmp_path: Path
) -> None:
    job = write_small_job(tmp_path / "job")
    (tmp_path / "job" / "quick_trial.py").write_text(QUICK_TRIAL)
    port = nni.create(write_experiment(job, "python3 quick_trial.py", {"platform": "local"}))
    wait_for(nni, lambda: len(finished(job)) >= 3)
    # All at once, as a power cut: manager, tuner and trials.
    for pid in nni.pids():
        os.kill(pid, signal.SIGKILL)
    wait_for(nni, lambda: not nni.pids())
    nni("stop", nni.last)
    kept = {task: rows_folder(job).file(task).stat().st_mtime_ns for task in finished(job)}
    assert 3 <= len(kept) < 9
    port = nni.resume(nni.last)
    nni.wait(port)
    trials = seam.trials(port)
    assert "FAILED" in [t.status for t in trials]
    check_trials(nni, trials, job)
    assert {task: rows_folder(job).file(task).stat().st_mtime_ns for task in kept} == kept

    alone = write_small_job(tmp_path / "alone")
    for task in task_cells(alone.hyperspace):
        folder = rows_folder(alone)
        folder.add(synthetic_stage_rows(alone.hyperspace, task, folder.made_with), "test")
    merged_lut(alone, lambda line: None)
    assert job.lut_path.read_bytes() == alone.lut_path.read_bytes()
    if chromium() is None:
        pytest.skip(f"all but the page was checked: none of {', '.join(PROGRAMS)} is installed")
    keys = curve_keys(port, "web_ui_distillation", tmp_path / "profile")
    assert {"default", "largest", "smallest"} <= keys


# ---- on several machines ------------------------------------------------------------------------


def four_tasks(folder: Path) -> Job:
    """A job of two stages and two block types, each distilled in a second."""
    distill = {"epochs_fp32": 1, "epochs_int8": 1, "batch_size": 512, "random_substages": 0}
    job = write_small_job(folder, stages=2, distill=distill)
    smaller = msgspec.structs.replace(
        job.hyperspace, block_types=job.hyperspace.block_types[:2], distill_resolutions=(8,)
    )
    (folder / "hyperspace.yaml").write_text(to_yaml(smaller))
    return Job(job.path)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    """Two machines that are up."""
    key = make_key(tmp_path / "user_key")
    pair = Host(tmp_path / "a", key), Host(tmp_path / "b", key)
    try:
        for host in pair:
            host.start()
        yield pair
    finally:
        for host in pair:
            host.power_off()


def is_free(job: Job) -> bool:
    """Whether no tuner is distilling the job."""
    try:
        with exclusive(job.work / "distillation"):
            return True
    except LockedError:
        return False


def trials_if_up(port: int) -> list[seam.Trial] | None:
    """The trials; None if NNI's manager has ended."""
    try:
        return seam.trials(port)
    except seam.ExperimentError:
        return None


def left_behind(host: Host) -> list[Path]:
    """Folders with rows on a machine's own disk."""
    files = host.home.glob("nni-experiments/*/environments/*/upload/*/work/rows/*.json")
    return sorted({path.parent for path in files})


@pytest.mark.skipif(not SSHD.exists(), reason="needs Debian's openssh-server")
def test_machines_that_share_no_disk_make_one_lut_though_one_goes_down(
    hosts: tuple[Host, Host], nni: NNI, tmp_path: Path
) -> None:
    alone = four_tasks(tmp_path / "alone")
    for cell in task_cells(alone.hyperspace).values():
        distilled_rows(str(alone.path), cell)
    merged_lut(alone, lambda line: None)
    job = four_tasks(tmp_path / "job")
    # All machines learn from one teacher: it travels with trialCodeDirectory.
    job.work.mkdir()
    job.teacher_path.write_bytes(alone.teacher_path.read_bytes())
    service = {"platform": "remote", "machineList": [host.machine for host in hosts]}
    port = nni.create(write_experiment(job, f"{TRIAL_COMMAND} spaceevo.yaml", service))

    # NNI gives the machines trials in turn: the second one has finished one and begun another.
    wait_for(nni, lambda: len(finished(job)) >= 2 and seam.trials(port)[3:])
    wait_for(nni, hosts[1].is_distilling)
    hosts[1].power_off()
    # The lost task is handed out again, to the other machine; or NNI's manager ends with the
    # connection, as it does if that breaks at a bad moment.
    wait_for(nni, lambda: (trials := trials_if_up(port)) is None or len(trials) == 5)
    if (trials := trials_if_up(port)) is not None:
        assert "USER_CANCELED" in [t.status for t in trials]
        experiment.stop(nni.last)
    else:
        nni("stop", nni.last)
        # The tuner follows its manager some seconds later.
        wait_for(nni, lambda: is_free(job))
    before = finished(job)
    assert 2 <= len(before) < 4

    hosts[1].start()
    port = nni.resume(nni.last)
    nni.wait(port, seconds=300)
    check_trials(nni, seam.trials(port), job, stayed_up=trials is not None)
    assert job.lut_path.read_bytes() == alone.lut_path.read_bytes()

    # What lies on the machines' own disks gives the same LUT.
    copies = [left_behind(host) for host in hosts]
    assert all(copies)
    again = four_tasks(tmp_path / "again")
    folders = [str(path) for path in (*copies[1], *copies[0])]
    assert not main(["lut", "merge", *folders, "--job", str(again.path)])
    assert again.lut_path.read_bytes() == alone.lut_path.read_bytes()
