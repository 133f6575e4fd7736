"""Where networks are trained, in which numbers, and in which order these lie in memory."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import Tensor

from .errors import ConfigError

A = TypeVar("A")
B = TypeVar("B")
# Batches that are read while a GPU works on one.
_AHEAD = 2


def training_device(wanted: Literal["auto", "cpu", "cuda"], section: str) -> torch.device:
    """The CPU, or the GPU that is this process's: number `LOCAL_RANK`, which `torchrun` sets.

    Parameters
    ----------
    wanted : what the settings say; `auto` is a GPU (CUDA) if there is one
    section : of the job file that says it, for errors

    Raises
    ------
    ConfigError
        A GPU is asked for, and torch sees none, or fewer than processes.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{section}: device is cuda, but torch {torch.__version__} sees no GPU; expected a "
            "CUDA build of torch, a driver and a GPU, or device: auto"
        )
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise ConfigError(
            f"{section}: process {number + 1} of a machine that has {count} GPUs; start at most "
            f"one a GPU (torchrun --nproc-per-node {count}), or give device: cpu"
        )
    return torch.device("cuda", number)


def ahead(device: torch.device, read: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """What `read` gives for each item, in order; in a thread, while a GPU works on earlier ones.

    On a CPU nothing is read before it is asked for: the same cores would do both, and images are
    augmented by torch's one generator on the CPU, from which a step there may draw, too.

    Parameters
    ----------
    device : that works on what was read
    read : called for one item after the other; what it raises comes out where its result would
    """
    if device.type == "cpu":
        yield from map(read, items)
        return
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def keep_memory() -> None:
    """Let the C library keep what is freed, for what is allocated next; glibc only.

    A step allocates and frees features of many megabytes, again and again. glibc gives such back at
    once, and the kernel clears every page that it hands out anew: a tenth of a step on a CPU.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch's, so that results do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name(device: torch.device) -> str:
    """A device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Convolutions in bfloat16 if the settings want it; nothing otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def channels_last(x: Tensor) -> Tensor:
    """Features (n, c, h, w) with the channels of a pixel side by side in memory.

    CPUs and GPUs compute convolutions faster in this order; weights must be in it too.
    """
    return x.contiguous(memory_format=torch.channels_last)
