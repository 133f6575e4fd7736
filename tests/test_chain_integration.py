"""The example's chain as its users run it: killed anywhere it goes on, and each step goes alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jobs.small_job import SUBNETS, SUPERNET, write_small_job

from nni_spaceevo.files import packed_folder, plain, read_json
from nni_spaceevo.jobs.comparison import SEARCHED, Comparison
from nni_spaceevo.jobs.job import Job

pytestmark = pytest.mark.slow

SCRIPT = packed_folder("examples") / "fashion_mnist" / "chain.py"


def command(job: Job, *steps: str) -> list[str]:
    options = ("--seeds", "0", "--manual", "resnet", "--evaluations", "9")
    return [sys.executable, str(SCRIPT), *steps, "--job", str(job.path), *options]


def small_job(folder: Path) -> Job:
    return write_small_job(folder, stages=1, supernet=SUPERNET, subnets=SUBNETS)


def finish(job: Job, *steps: str) -> str:
    done = subprocess.run(command(job, *steps), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_once_there_is(job: Job, pattern: str) -> None:
    """Start the chain, and kill it with all its processes when a file appears."""
    running = subprocess.Popen(
        command(job),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 300
    while not list(job.work.glob(pattern)):
        assert running.poll() is None, f"the chain ended before there was {pattern}"
        assert time.monotonic() < end, f"no {pattern}"
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def outcome(job: Job) -> dict[str, Any]:
    """All that does not depend on the clock."""
    found: dict[str, Any] = plain(read_json(job.comparison_path / "comparison.json", Comparison))
    for entry in found["entries"]:
        del entry["measured"]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A chain that nothing has stopped."""
    job = small_job(tmp_path_factory.mktemp("whole"))
    assert "# Searched and manually designed spaces" in finish(job)
    return job


def test_a_chain_that_was_killed_at_each_step_ends_as_one_that_was_not(
    whole: Job, tmp_path: Path
) -> None:
    job = small_job(tmp_path)
    # The teacher is trained; the first stage is distilled; supernets are being trained; one is.
    for pattern in ("teacher.pt", "rows/*.json", "supernets/seed0/*", "supernets/seed0/*.pt"):
        kill_once_there_is(job, pattern)
    finish(job)
    assert outcome(job) == outcome(whole)
    assert job.lut_path.read_bytes() == whole.lut_path.read_bytes()


def test_steps_go_one_by_one(whole: Job, tmp_path: Path) -> None:
    job = small_job(tmp_path)
    missing = subprocess.run(command(job, "supernet"), capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "error: space 'best': no " in missing.stderr
    finish(job, "profile", "distill", "lut", "search")
    table = finish(job, "supernet", "subnets", "export", "bench")
    assert (job.work / "bench" / "bench.png").read_bytes()[:4] == b"\x89PNG"
    assert ".onnx" in table
    # The comparison trains the same supernet.
    space = outcome(whole)["contenders"][0]
    assert space["name"] == SEARCHED
    file = f"seed0/{space['space']}.pt"
    assert (job.supernets_path / file).read_bytes() == (whole.supernets_path / file).read_bytes()


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    refused = subprocess.run(
        command(small_job(tmp_path), "dance"), capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "step 'dance'; expected profile, distill, lut, search" in refused.stderr
