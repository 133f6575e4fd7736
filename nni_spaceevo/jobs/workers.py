"""Work in several processes, of which one that fails or dies takes nothing else with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from queue import SimpleQueue
from typing import Generic, TypeVar

from ..errors import SpaceEvoError, TrainingError

T = TypeVar("T")
R = TypeVar("R")


def is_first_process() -> bool:
    """Whether this is the first of the processes that `torchrun` has started for one task."""
    return os.environ.get("RANK", "0") == "0"


def in_workers(
    function: Callable[[T], R], given: Sequence[T], count: int, devices: int | None = None
) -> Iterator[tuple[T, R | Exception]]:
    """Call a function for each value, in `count` processes, each with one thread's work at a time.

    Parameters
    ----------
    function : importable, with arguments and results that can be sent to a process
    given : what it is called for
    count : number of processes
    devices : that they share, by turns; `LOCAL_RANK` tells each the number of its own. By default
        each has one

    Yields
    ------
    each value with what the function returned or raised, as soon as it has; a process that dies,
    as one does that takes too much memory, is a `TrainingError` and is replaced
    """
    stop = threading.Event()
    with ExitStack() as open_workers:
        free: SimpleQueue[_Worker[T, R]] = SimpleQueue()
        for number in range(count):
            worker: _Worker[T, R] = _Worker(number % (devices or count))
            open_workers.callback(worker.close)
            free.put(worker)

        def call(value: T) -> R:
            worker = free.get()
            try:
                if stop.is_set():
                    raise KeyboardInterrupt
                return worker.call(function, value)
            except KeyboardInterrupt:
                stop.set()
                raise
            finally:
                free.put(worker)

        # A process is a pool of one, for a pool that loses one of several loses all; so somebody
        # has to wait for each, which is all that these threads do.
        threads = open_workers.enter_context(ThreadPoolExecutor(count))
        futures: dict[Future[R], T] = {threads.submit(call, value): value for value in given}
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                yield futures[future], error or future.result()
        finally:
            stop.set()
            for future in futures:
                future.cancel()


class _Worker(Generic[T, R]):
    """A process that does one thing after another, and is replaced if it dies."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._pool: ProcessPoolExecutor | None = None

    def call(self, function: Callable[[T], R], value: T) -> R:
        if self._pool is None:
            start = (os.getpid(), self._number)
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), _start, start)
        try:
            return self._pool.submit(function, value).result()
        except BrokenProcessPool as error:
            self.close()
            raise TrainingError(
                "its process was killed, or needed more memory than there is"
            ) from (error)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def failure(failed: dict[str, Exception], of: int) -> TrainingError:
    """One error for all tasks that have failed, those with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for task, error in failed.items():
        kind = "" if isinstance(error, SpaceEvoError) else f"{type(error).__name__}: "
        reason = str(error).removeprefix(f"{task}: ")
        reasons.setdefault(f"{kind}{reason}", []).append(task)
    told = [f"\n  {', '.join(tasks)}: {reason}" for reason, tasks in reasons.items()]
    return TrainingError(
        f"{len(failed)} of {of} tasks failed; the others are done, and the same command does only "
        f"these again:{''.join(told)}"
    )


def _start(parent: int, number: int) -> None:
    """Have the kernel end this worker with its parent, which kill -9 gives no time to do it."""
    import ctypes
    import signal

    death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.environ["LOCAL_RANK"] = str(number)
