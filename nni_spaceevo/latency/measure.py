"""Measuring many models: interleaved passes, gated on a reference kernel, resumable.

Minimum over visits seconds apart repeats within 1 %, where the mean of consecutive runs, as
nn-Meter takes it, is off by a third: a shared machine has slow windows. A visit waits for a
moment, within limits, in which the reference kernel runs near its best, and counts only if it
found one; scaling by the reference would do harm.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import DeviceError, LockedError
from ..files import digest, exclusive
from ..hyperspace import mparams
from .devices.device import Device, Timed
from .journal import Journal, Slot
from .kernel_graph import copies_of
from .lowering import RuntimeKernel
from .machine import free_memory_mb, pinned
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
# without the reference kernel's notice: they are visited without regard to it, and so many times as
# often. Not the least of these visits counts: one in a rare moment with all of the memory's
# bandwidth would decide. On a busy host the least of two times 18 visits differed by over 6 % for a
# tenth of the networks, their lower quintile by over 2.3 %.
NETWORK_VISITS, NETWORK_QUANTILE = 6, 20
# A visit that ended in a slow moment is tried so many times.
_TRIES = 3
# Share of the free memory for models kept between visits, and megabytes that a runtime takes for a
# model beside its weights and tensors.
_ROOM, _MODEL_MB = 0.4, 2.0
# A visit in a slow moment is postponed, for at most this long, and while all waiting together has
# taken no more time than half of all visits' and a start.
_PAUSE_S, _LONGEST_WAIT_S, _WAIT_AT_START_S, _WAIT_PER_VISIT = 0.05, 5.0, 30.0, 0.5
# Whether megabytes of weights stay in the last cache from run to run of a kernel depends on the
# neighbours, for all guests of a host share it: of convolutions with 8 to 16 MB, one in four took
# over 10 % more or less in one session than in another. In a network they never stay, for megabytes
# of others pass through in between. So convolutions with that many begin each run without. Linear
# layers and squeeze-and-excite wait for the memory alone, and its bandwidth comes and goes: cold,
# visits to one linear layer differed by a factor of two.
_TIMED_COLD = ("conv1x1", "conv")
_COLD_MB, _PASSING_MB, _COLD_RUNS = 4.0, 64, 5
_REFERENCE = RuntimeKernel("conv", 14, 64, 64, 3)
_REFERENCE_WARMUP, _REFERENCE_RUNS = 20, 10
# What is quiet is worked out anew after so many visits.
_FEW = 50


@dataclass(frozen=True)
class Job:
    """A model to be measured.

    Attributes
    ----------
    key : its name in the journal
    build : makes it ready to run
    keep_mb : megabytes that it takes while it is kept between visits
    visits : visits to it for each round; several are made whether the moment is quiet or not
    cold : each run begins with none of its weights in the caches
    """

    key: str
    build: Callable[[], Timed]
    keep_mb: float = 0.0
    visits: int = 1
    cold: bool = False


def cold_mb(device: Device) -> float | None:
    """Millions of weights from which convolutions are timed cold; None on a device elsewhere."""
    return _COLD_MB / _bytes_each(device) if device.runs_here else None


def _is_cold(device: Device, kernel: RuntimeKernel) -> bool:
    least = cold_mb(device)
    return least is not None and kernel.type in _TIMED_COLD and kernel.weights >= 1e6 * least


def copies_on(device: Device, kernel: RuntimeKernel) -> int:
    """Number of parallel copies to time; they share their weights, which only one finds cold."""
    return 1 if _is_cold(device, kernel) else copies_of(kernel)


def kernel_key(kernel: RuntimeKernel, copies: int) -> str:
    """Journal key of parallel copies of a kernel."""
    return f"{kernel.key}x{copies}"


def kernel_job(device: Device, kernel: RuntimeKernel, copies: int) -> Job:
    """Job of parallel copies of a kernel."""
    tensors = kernel.hw**2 * kernel.cin + copies * kernel.hw_out**2 * kernel.cout
    elements = kernel.weights + tensors
    return Job(
        kernel_key(kernel, copies),
        lambda: device.kernel(kernel, copies),
        keep_mb=_keep_mb(device, elements / 1e6),
        cold=_is_cold(device, kernel),
    )


def _bytes_each(device: Device) -> int:
    return 1 if device.precision == "int8" else 4


def _keep_mb(device: Device, millions: float) -> float:
    # Runtimes pack the weights anew, and may keep them as they came too.
    return 2 * _bytes_each(device) * millions + _MODEL_MB


def network_job(device: Device, n: Network) -> Job:
    """Job of a whole network."""
    return Job(
        n.key,
        lambda: device.network(n.blocks, n.code.resolution),
        keep_mb=_keep_mb(device, mparams(n.kernels)),
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

    def network_us(self, networks: Sequence[Network]) -> NDArray[np.float64]:
        """Time of networks: the lower quintile of all visits to each, shape (n,)."""
        groups = [[s.us for s in self.slots[n.key]] for n in networks]
        return np.array([np.percentile(us, NETWORK_QUANTILE) for us in groups])

    def report(self) -> dict[str, float | int]:
        """Number of slots, per cent of them that were slow, and the reference kernel's time."""
        total = sum(map(len, self.slots.values()))
        quiet = sum(map(self.quiet, self.slots))
        return {
            "slots": total,
            "slow_slots": 100 * (total - quiet) / max(total, 1),
            "reference_us": round(self.best_reference_us, 3),
        }

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


@contextmanager
def measuring(device: Device) -> Iterator[None]:
    """Have the place where a device runs for oneself.

    Two processes that measure there would share a core, and each would find it quiet.

    Raises
    ------
    LockedError
        Another process of this user's measures there.
    """
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    path = folder / f"nni_spaceevo-{os.getuid()}" / digest(device.place)
    with ExitStack() as held:
        try:
            held.enter_context(exclusive(path))
        except LockedError as error:
            raise LockedError(
                f"{device.name}: another process measures on {device.place}; wait for it to "
                "finish, or stop it"
            ) from error
        yield


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

    Models are kept, as many at a time as the memory has room for, and built again halfway: now and
    then one is slow for as long as it lives (of 288 hswish in OpenVINO two took four and five times
    as long in all five visits, and not when they were built again).

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

    def missing() -> dict[str, int]:
        noise = Noise.of(journal.slots, keys)
        bar.set_postfix_str(f"{noise.report()['slow_slots']:.0f} % of moments slow")
        return {job.key: _visits_left(job, noise, wanted[job.key]) for job in jobs}

    visitor = _Visitor(device, repeats, [slot.reference_us for slot in journal.slots])
    with (
        pinned(),
        journal.writing() as pen,
        tqdm(
            total=sum(wanted.values()), desc="measuring", unit="visit", disable=not progress
        ) as bar,
    ):
        left = missing()
        for batch in _batches([job for job in jobs if left[job.key]], seed):
            visits = max(wanted[job.key] for job in batch)
            for number in range(_PATIENCE * visits):
                if number in (0, visits // 2):
                    visitor.forget()
                left = missing()
                bar.n = sum(wanted.values()) - sum(left.values())
                pending = [job for job in batch if left[job.key]]
                if not pending:
                    break
                for i in np.random.default_rng([seed, number]).permutation(len(pending)):
                    pen.add(visitor.visit(pending[i]))
                    bar.update()
    noise = Noise.of(journal.slots, keys)
    noise.check()
    return noise


def _visits_left(job: Job, noise: Noise, wanted: int) -> int:
    """Visits that a model still needs, if all to come are quiet."""
    made = len(noise.slots[job.key])
    if job.visits > 1:
        return max(wanted - made, 0)
    return max(wanted - noise.quiet(job.key), 0) if made < _PATIENCE * wanted else 0


def _batches(jobs: Sequence[Job], seed: int) -> list[list[Job]]:
    """Jobs whose models find room together; networks come last, in a random order."""
    # What networks of one batch have in common, such as a slow hour, must not be what those that
    # calibrate have in common.
    order = np.random.default_rng([seed, len(jobs)]).permutation(len(jobs))
    networks = [jobs[i] for i in order if jobs[i].visits > 1]
    room_mb = _ROOM * free_memory_mb()
    batches: list[list[Job]] = []
    taken_mb = math.inf
    for job in (*(job for job in jobs if job.visits == 1), *networks):
        taken_mb += job.keep_mb
        if taken_mb > room_mb:
            batches.append([])
            taken_mb = job.keep_mb
        batches[-1].append(job)
    return batches


@dataclass(frozen=True)
class _Cold:
    """A model before each of whose runs something else has passed through the caches."""

    timed: Timed
    pass_by: Callable[[], None]

    def least_us(self, warmup: int, runs: int) -> float:
        """Shortest of the runs; they are few, and none warms up for the next."""
        least = math.inf
        for _ in range(min(runs, _COLD_RUNS)):
            self.pass_by()
            least = min(least, self.timed.least_us(0, 1))
        return least


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
        self._gate_us = _GATE * _best(references_us)
        self._patience_s, self._waited_s = _WAIT_AT_START_S, 0.0
        self._kept: dict[str, Timed] = {}
        self._passing = np.zeros(0, np.int64)

    def forget(self) -> None:
        """Let go of all models; they are built again when they are visited."""
        self._kept.clear()

    def _pass_by(self) -> None:
        """Read more than caches keep."""
        if not len(self._passing):
            self._passing = np.ones(_PASSING_MB * 1_000_000 // 8, np.int64)
        self._passing.sum()

    def visit(self, job: Job) -> Slot:
        """Build the model or take the kept one, wait for quiet, then time the model."""
        start = time.perf_counter()
        timed = self._kept.get(job.key)
        if timed is None:
            timed = job.build()
            if job.cold:
                timed = _Cold(timed, self._pass_by)
            self._kept[job.key] = timed
        building = time.perf_counter() - start
        waits = job.visits == 1
        reference_us = self._quiet_reference_us(waits)
        start, waited = time.perf_counter(), self._waited_s
        us, reference_us = self._least_us(timed, reference_us, _TRIES if waits else 1)
        seconds = building + time.perf_counter() - start - (self._waited_s - waited)
        self._patience_s += _WAIT_PER_VISIT * seconds
        return Slot(key=job.key, us=us, reference_us=reference_us, seconds=round(seconds, 6))

    def _least_us(self, timed: Timed, reference_us: float, tries: int) -> tuple[float, float]:
        """Least time of all tries, and the slower of the references around the quietest of them."""
        # This run warms up as well; long models get no other.
        once = timed.least_us(0, 1)
        warmup = min(int(_WARMUP_US / once), _MOST_WARMUP)
        runs = int(np.clip(_RUNS_US / once, 1, self._repeats))
        least, quietest = float("inf"), float("inf")
        for number in range(tries):
            if number:
                reference_us = self._quiet_reference_us()
            least = min(least, timed.least_us(warmup, runs))
            after_us = self._reference.least_us(_REFERENCE_WARMUP, _REFERENCE_RUNS)
            quietest = min(quietest, max(reference_us, after_us))
            if quietest <= self._quiet_us():
                break
        return least, quietest

    def _quiet_reference_us(self, waits: bool = True) -> float:
        """Time of the reference kernel, if it waits near its best where patience allows."""
        start, waited = time.perf_counter(), 0.0
        # Nothing is known yet of what is quiet at the very first visit.
        waits = waits and bool(self._references_us)
        limit = min(self._patience_s, _LONGEST_WAIT_S) if waits else 0.0
        while True:
            us = self._reference.least_us(_REFERENCE_WARMUP, _REFERENCE_RUNS)
            if us <= self._quiet_us() or waited >= limit:
                break
            time.sleep(_PAUSE_S)
            waited = time.perf_counter() - start
        self._patience_s -= waited
        self._waited_s += waited
        self._references_us.append(us)
        return us

    def _quiet_us(self) -> float:
        """Time of the reference kernel up to which a moment is quiet."""
        # Thousands of times hardly change it from one visit to the next.
        if len(self._references_us) < _FEW or len(self._references_us) % _FEW == 0:
            self._gate_us = _GATE * _best(self._references_us)
        return self._gate_us
