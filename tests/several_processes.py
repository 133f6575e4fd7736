"""Programs that run as several processes of one task."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

_PATIENCE_S = 300


def torchrun(count: int, *command: str, cwd: Path) -> str:
    """Run a Python program with torchrun; returns what its processes print."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [sys.executable, *launch, *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def side_by_side(count: int, *command: str, cwd: Path) -> list[tuple[int, str]]:
    """Run a Python program as processes that nobody ends if one fails: exit codes and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        errors = [process.communicate(timeout=_PATIENCE_S)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(p.returncode, error) for p, error in zip(running, errors, strict=True)]
