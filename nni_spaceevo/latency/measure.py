"""Measuring many models: interleaved passes, gated on a reference kernel, resumable.

Minimum over visits seconds apart repeats within 1 %, where the mean of consecutive runs, as
nn-Meter takes it, is off by a third: a shared machine has slow windows. A visit waits for a
moment, within limits, in which the reference kernel runs near its best, and counts only if it
found one; scaling by the reference would do harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ..errors import DeviceError
from ..hyperspace import mparams
from .devices.device import Device, Timed
from .journal import Journal, Slot
from .lowering import RuntimeKernel
from .machine import free_memory_mb, one_core
from .sampling import Network

# A visit is slow if the reference kernel took this much longer than its best.
_GATE = 1.03
# A device is refused if more than this share of models never met a quiet moment.
_TOO_NOISY = 0.25
# A model is visited at most this many times as often as quiet visits are wanted.
_PATIENCE = 2
# After a model is built or another has run, caches and clock need a few runs to settle. Long
# models get fewer runs; short ones at most ten and what the options ask for.
_WARMUP_US, _MOST_WARMUP = 10_000, 10
_RUNS_US = 10_000
# Networks outgrow the caches, and what neighbours of a shared host do to its memory comes and goes
# without the reference kernel's notice: they are visited briefly, and so many times as often. The
# least of 28 visits repeats within 2 %, of 9 longer ones only within 5 to 9 %.
NETWORK_VISITS = 10
# A visit that ended in a slow moment is tried so many times.
_TRIES = 3
# Share of the free memory for models kept between visits.
_ROOM = 0.25
# A visit in a slow moment is postponed, for at most this long, and while all waiting together has
# taken no more time than all visits and a start.
_PAUSE_S, _LONGEST_WAIT_S, _WAIT_AT_START_S = 0.05, 5.0, 30.0
_REFERENCE = RuntimeKernel("conv", 14, 64, 64, 3)
_REFERENCE_WARMUP, _REFERENCE_RUNS = 20, 10


@dataclass(frozen=True)
class Job:
    """A model to be measured.

    Attributes
    ----------
    key : its name in the journal
    build : makes it ready to run
    keep_mb : megabytes that it takes if it is kept between visits, for models that are slow to
        build; None builds it anew at every visit
    visits : visits to it for each round
    """

    key: str
    build: Callable[[], Timed]
    keep_mb: float | None = None
    visits: int = 1


def kernel_key(kernel: RuntimeKernel, copies: int) -> str:
    """Journal key of parallel copies of a kernel."""
    return f"{kernel.key}x{copies}"


def kernel_job(device: Device, kernel: RuntimeKernel, copies: int) -> Job:
    """Job of parallel copies of a kernel."""
    return Job(kernel_key(kernel, copies), lambda: device.kernel(kernel, copies))


def network_job(device: Device, n: Network) -> Job:
    """Job of a whole network."""
    # Runtimes pack the weights anew, and may keep them as they came too.
    bytes_each = 2 * (1 if device.precision == "int8" else 4)
    return Job(
        n.key,
        lambda: device.network(n.blocks, n.code.resolution),
        keep_mb=bytes_each * mparams(n.kernels),
        visits=NETWORK_VISITS,
    )


def idle_job(device: Device, copies: int) -> Job:
    """Job of a model that does nothing."""
    return Job(f"idle{copies}", lambda: device.idle(copies))


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
        return cls(by_key, _best(taken))

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
        return {"slots": total, "slow_slots": 100 * (total - quiet) / max(total, 1)}

    @property
    def seconds(self) -> float:
        """What the visits took, building included."""
        return sum(s.seconds for group in self.slots.values() for s in group)

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


def _best(reference_us: Sequence[float]) -> float:
    """The reference kernel's time when all is quiet, 0 if it was never timed."""
    # Not the least: one lucky moment must not make all others look slow.
    return float(np.percentile(reference_us, 5)) if len(reference_us) else 0.0


def measure_all(
    device: Device,
    jobs: Sequence[Job],
    journal: Journal,
    rounds: int,
    repeats: int,
    seed: int,
    progress: bool,
) -> Noise:
    """Visit every model in `rounds` quiet moments, in at most twice as many passes.

    Parameters
    ----------
    device : where the reference kernel runs
    jobs : models; those that the journal already has enough of are skipped
    rounds : quiet visits wanted of each, times `Job.visits`
    repeats : runs in a visit of a short model, after warm-up runs
    seed : of the order of visits
    progress : show a bar, with the share of slow moments

    Raises
    ------
    DeviceError
        The device is too noisy, or the runtime refuses a model.
    """
    keys = [job.key for job in jobs]
    wanted = {job.key: rounds * job.visits for job in jobs}
    visitor = _Visitor(device, repeats, [slot.reference_us for slot in journal.slots])
    with (
        one_core(),
        journal.writing() as pen,
        tqdm(
            total=sum(wanted.values()), desc="measuring", unit="visit", disable=not progress
        ) as bar,
    ):
        for number in range(_PATIENCE * max(wanted.values(), default=0)):
            noise = Noise.of(journal.slots, keys)
            missing = {key: wanted[key] - noise.quiet(key) for key in keys}
            tired = {k for k in keys if len(noise.slots[k]) >= _PATIENCE * wanted[k]}
            missing |= dict.fromkeys(tired, 0)
            bar.n = sum(wanted.values()) - sum(max(m, 0) for m in missing.values())
            bar.set_postfix_str(f"{noise.report()['slow_slots']:.0f} % of moments slow")
            pending = [job for job in jobs if missing[job.key] > 0]
            for i in np.random.default_rng([seed, number]).permutation(len(pending)):
                pen.add(visitor.visit(pending[i]))
                bar.update()
    noise = Noise.of(journal.slots, keys)
    noise.check()
    return noise


class _Visitor:
    """Visits models, if it can in quiet moments.

    Parameters
    ----------
    device : where the models run
    repeats : runs in a visit of a short model
    references_us : times of the reference kernel so far
    """

    def __init__(self, device: Device, repeats: int, references_us: list[float]) -> None:
        self._repeats = repeats
        self._reference = device.kernel(_REFERENCE, 1)
        self._references_us = references_us
        self._patience_s = _WAIT_AT_START_S
        self._room_mb = _ROOM * free_memory_mb()
        self._kept: dict[str, Timed] = {}

    def visit(self, job: Job) -> Slot:
        """Build the model or take the kept one, wait for quiet, then time the model."""
        start = time.perf_counter()
        timed = self._kept.get(job.key)
        if timed is None:
            timed = job.build()
            if job.keep_mb is not None and job.keep_mb <= self._room_mb:
                self._room_mb -= job.keep_mb
                self._kept[job.key] = timed
        building = time.perf_counter() - start
        reference_us = self._quiet_reference_us()
        start = time.perf_counter()
        us, reference_us = self._least_us(timed, reference_us)
        seconds = building + time.perf_counter() - start
        self._patience_s += seconds
        return Slot(key=job.key, us=us, reference_us=reference_us, seconds=round(seconds, 6))

    def _least_us(self, timed: Timed, reference_us: float) -> tuple[float, float]:
        """Least time of all tries, and the slower of the references around the quietest of them."""
        # This run warms up as well; long models get no other.
        once = timed.least_us(0, 1)
        warmup = min(int(_WARMUP_US / once), _MOST_WARMUP)
        runs = int(np.clip(_RUNS_US / once, 1, self._repeats))
        least, quietest = float("inf"), float("inf")
        for _ in range(_TRIES):
            least = min(least, timed.least_us(warmup, runs))
            after_us = self._reference.least_us(_REFERENCE_WARMUP, _REFERENCE_RUNS)
            quietest = min(quietest, max(reference_us, after_us))
            if quietest <= _GATE * _best(self._references_us):
                break
            reference_us = self._quiet_reference_us()
        return least, quietest

    def _quiet_reference_us(self) -> float:
        """Time of the reference kernel, near its best where patience allows."""
        start, waited = time.perf_counter(), 0.0
        # Nothing is known yet of what is quiet at the very first visit.
        limit = min(self._patience_s, _LONGEST_WAIT_S) if self._references_us else 0.0
        while True:
            us = self._reference.least_us(_REFERENCE_WARMUP, _REFERENCE_RUNS)
            if us <= _GATE * _best(self._references_us) or waited >= limit:
                break
            time.sleep(_PAUSE_S)
            waited = time.perf_counter() - start
        self._patience_s -= waited
        self._references_us.append(us)
        return us
