"""Measuring many models: interleaved passes, gated on a reference kernel, resumable.

Minimum over visits seconds apart repeats within 1 %, where the mean of consecutive runs, as
nn-Meter takes it, is off by a third: a shared machine has slow windows. A visit counts only if
the reference kernel, timed just before, ran near its best; scaling by it would do harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from tqdm import tqdm

from ..errors import DeviceError
from .journal import Journal, Slot
from .kernel_graph import idle_model, kernel_model
from .lowering import RuntimeKernel
from .session import TimedSession, one_core

# A visit is slow if the reference kernel took this much longer than its best.
_GATE = 1.03
# A device is refused if more than this share of models never met a quiet moment.
_TOO_NOISY = 0.25
# After a session is built, caches and clock need about half a millisecond to settle.
_WARMUP = 10
_REFERENCE = RuntimeKernel("conv", 14, 64, 64, 3)
_REFERENCE_WARMUP, _REFERENCE_RUNS = 20, 10


@dataclass(frozen=True)
class Job:
    """A model to be measured.

    Attributes
    ----------
    key : its name in the journal
    build : makes the model
    optimize : run as a network (all graph optimisations) or as it stands
    keep : keep the session between visits, for models that are slow to build
    """

    key: str
    build: Callable[[], onnx.ModelProto]
    optimize: bool = False
    keep: bool = False


def kernel_key(kernel: RuntimeKernel, copies: int) -> str:
    """Journal key of parallel copies of a kernel."""
    return f"{kernel.key}x{copies}"


def kernel_job(kernel: RuntimeKernel, copies: int) -> Job:
    """Job of parallel copies of a kernel."""
    return Job(kernel_key(kernel, copies), lambda: kernel_model(kernel, copies))


def idle_job(copies: int) -> Job:
    """Job of a graph that does nothing."""
    return Job(f"idle{copies}", lambda: idle_model(copies))


@dataclass(frozen=True)
class Noise:
    """Slots by key, judged against the reference kernel's time when it is quiet."""

    slots: dict[str, list[Slot]]
    best_reference_us: float

    @classmethod
    def of(cls, slots: Iterable[Slot], keys: Sequence[str]) -> Noise:
        """Sort the slots of the given keys."""
        by_key: dict[str, list[Slot]] = {key: [] for key in keys}
        for slot in slots:
            if slot.key in by_key:
                by_key[slot.key].append(slot)
        taken = [s.reference_us for group in by_key.values() for s in group]
        # Not the least: one lucky moment must not make all others look slow.
        return cls(by_key, float(np.percentile(taken, 5)) if taken else 0.0)

    def quiet(self, key: str) -> int:
        """Number of quiet visits to a model."""
        return sum(s.reference_us <= _GATE * self.best_reference_us for s in self.slots[key])

    def least_us(self) -> dict[str, float]:
        """Least time of every model over all its visits."""
        return {key: min(s.us for s in group) for key, group in self.slots.items() if group}

    def report(self) -> dict[str, float | int]:
        """Number of slots and per cent of them that were slow."""
        total = sum(map(len, self.slots.values()))
        quiet = sum(map(self.quiet, self.slots))
        return {"slots": total, "slow_slots": 100 * (1 - quiet / max(total, 1))}

    def check(self) -> None:
        """Raise `DeviceError` if too many models were never measured in a quiet moment."""
        unlucky = sum(self.quiet(key) == 0 for key in self.slots) / max(len(self.slots), 1)
        if unlucky <= _TOO_NOISY:
            return
        taken = [s.reference_us for group in self.slots.values() for s in group]
        over = 100 * (float(np.median(taken)) / self.best_reference_us - 1)
        raise DeviceError(
            f"the device is too noisy: {100 * unlucky:.0f} % of {len(self.slots)} models never met "
            f"a quiet moment (allowed {100 * _TOO_NOISY:.0f} %), and the reference kernel took "
            f"{over:.0f} % over its best in the median. Stop other work and run again; what was "
            "measured in quiet moments is kept"
        )


def measure_all(
    jobs: Sequence[Job], journal: Journal, rounds: int, repeats: int, seed: int, progress: bool
) -> Noise:
    """Visit every model in `rounds` quiet moments, in at most twice as many passes.

    Parameters
    ----------
    jobs : models; those that the journal already has enough of are skipped
    rounds : quiet visits wanted of each
    repeats : runs in a visit, after warm-up runs
    seed : of the order of visits
    progress : show a bar

    Raises
    ------
    DeviceError
        The device is too noisy, or the runtime refuses a model.
    """
    keys = [job.key for job in jobs]
    visitor = _Visitor(repeats)
    with (
        one_core(),
        journal.writing() as pen,
        tqdm(total=len(jobs) * rounds, desc="measuring", unit="visit", disable=not progress) as bar,
    ):
        for number in range(2 * rounds):
            noise = Noise.of(journal.slots, keys)
            missing = {key: rounds - noise.quiet(key) for key in keys}
            bar.n = len(jobs) * rounds - sum(max(m, 0) for m in missing.values())
            bar.refresh()
            pending = [job for job in jobs if missing[job.key] > 0]
            for i in np.random.default_rng([seed, number]).permutation(len(pending)):
                pen.add(visitor.visit(pending[i]))
                bar.update()
    noise = Noise.of(journal.slots, keys)
    noise.check()
    return noise


class _Visitor:
    def __init__(self, repeats: int) -> None:
        self._repeats = repeats
        self._reference = TimedSession(kernel_model(_REFERENCE, 1), optimize=False)
        self._kept: dict[str, TimedSession] = {}

    def visit(self, job: Job) -> Slot:
        """Build the session or take the kept one, time the reference, then the model."""
        start = time.perf_counter()
        session = self._kept.get(job.key)
        if session is None:
            session = TimedSession(job.build(), job.optimize)
            if job.keep:
                self._kept[job.key] = session
        reference_us = self._reference.least_us(_REFERENCE_WARMUP, _REFERENCE_RUNS)
        us = session.least_us(_WARMUP, self._repeats)
        seconds = time.perf_counter() - start
        return Slot(key=job.key, us=us, reference_us=reference_us, seconds=round(seconds, 6))
