"""What a step of training costs: seconds, several steps by turns, and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

Key = TypeVar("Key")


def seconds_by_turns(
    steps: Mapping[Key, Callable[[int], object]], numbers: Sequence[int]
) -> dict[Key, list[float]]:
    """Seconds of each step for each number, all steps by turns.

    On a GPU all of them are taken once before: what is computed in a shape for the first time takes
    up to seconds more there, since a kernel is chosen, loaded or compiled. Shapes are few, and a
    training has soon seen them all.
    """
    if torch.cuda.is_initialized():
        for number in numbers:
            for step in steps.values():
                step(number)
    times: dict[Key, list[float]] = {key: [] for key in steps}
    for number in numbers:
        for key, step in steps.items():
            _wait()
            start = time.perf_counter()
            step(number)
            _wait()
            times[key].append(time.perf_counter() - start)
    return times


def _wait() -> None:
    """Until the GPU, if one is in use, has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def process_memory_mb(step: Callable[[], object]) -> dict[str, float]:
    """Memory of this process, which must be a fresh one.

    Returns
    -------
    `loaded`, with libraries and weights, before the first step; `peak`, during two of them: an
    optimizer's momenta are there from the second on
    """
    # Linux: the peak counts from here.
    Path("/proc/self/clear_refs").write_text("5")
    loaded = _status_mb("VmRSS")
    for _ in range(2):
        step()
    # Linux counts pages with some delay, and two readings may differ by it.
    return {"loaded": loaded, "peak": max(loaded, _status_mb("VmHWM"))}


def _status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024, 1)


def gpu_memory_mb(step: Callable[[], object]) -> dict[str, float]:
    """Memory of the GPU: `loaded`, all that lies there before a step, and the `peak` during it."""
    torch.cuda.reset_peak_memory_stats()
    loaded = torch.cuda.memory_allocated()
    step()
    peak = torch.cuda.max_memory_allocated()
    return {"loaded": round(loaded / 2**20, 1), "peak": round(peak / 2**20, 1)}
