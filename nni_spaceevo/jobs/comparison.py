"""The searched space against manually designed ones, by subnets of each, measured in one run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from ..deploy.bench import FileTiming
from ..device import one_thread, training_device
from ..errors import ConfigError
from ..files import Record, exclusive, to_json, write_atomically
from ..hyperspace import SpaceCode
from ..latency.machine import Machine
from ..lut import LatencyModel
from ..search import make_scorer
from ..search.priced import PricedSubnets
from ..search.subnets import constraint_at, latency_span
from .bench import bench_files
from .distillation import images
from .job import Job
from .predictors import prepared_predictor
from .prepare import constraints, prepared_lut
from .scoring import score_config
from .seqnets import exported
from .subnets import RESULTS, FoundSubnet, SubnetResults, new_search, search_subnets
from .supernets import BEST, chosen_space, train_supernet
from .workers import failure, in_workers

if TYPE_CHECKING:
    from ..supernet.run import SupernetEpoch

SCHEMA = 1
SEARCHED = "searched"

Say = Callable[[str], None]


class Contender(Record, frozen=True):
    """A space that takes part.

    Attributes
    ----------
    name : `SEARCHED`, or "all " and the block type of a manually designed space
    space : space code
    score : Q-T score by the job's LUT and constraints
    """

    name: str
    space: str
    score: float


class Entry(Record, frozen=True):
    """The best subnet of a contender within a latency constraint.

    Attributes
    ----------
    contender : its name
    seed : of its supernet
    constraint_ms : latency constraint T in milliseconds
    found : what the search says of it
    measured : its INT8 file on this machine
    """

    contender: str
    seed: int
    constraint_ms: float
    found: FoundSubnet
    measured: FileTiming

    @property
    def accuracy(self) -> float:
        """On held-out images that its choice has not looked at."""
        assert self.found.unseen_accuracy is not None
        return self.found.unseen_accuracy


class Gap(Record, frozen=True):
    """How much more accurate searched subnets are than those of another contender, as fast.

    Attributes
    ----------
    contender : the other one
    seed : of both supernets
    ms : measured latencies of those searched subnets within which the other has one too
    points : percentage points by which the searched space is more accurate within each
    faster : subnets of the other than which no searched one is as fast
    """

    contender: str
    seed: int
    ms: tuple[float, ...]
    points: tuple[float, ...]
    faster: int


class Comparison(Record, frozen=True):
    """The contents of `comparison.json`.

    Attributes
    ----------
    schema : version of the file format
    machine : where all files were measured, and how
    seeds : of the supernets, and of everything random in searching them
    scored_ms : latency constraints T of the Q-T scores, in milliseconds
    constraints_ms : those of the subnets, the same of all spaces
    images : how many an accuracy is of
    contenders : the searched space first
    left_out : block types of which no uniform space takes part
    entries : by contender, seed and constraint; none where a space has no subnet within T
    """

    schema: int
    machine: Machine
    seeds: tuple[int, ...]
    scored_ms: tuple[float, ...]
    constraints_ms: tuple[float, ...]
    images: int
    contenders: tuple[Contender, ...]
    left_out: tuple[str, ...]
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"comparison schema {self.schema}; this version reads {SCHEMA}")

    def of(self, contender: str, seed: int) -> tuple[Entry, ...]:
        """The entries of a contender's supernet, by constraint."""
        return tuple(e for e in self.entries if (e.contender, e.seed) == (contender, seed))

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Of every other contender and seed, at the latencies measured of the searched subnets."""
        found = []
        for other in self.contenders[1:]:
            for seed in self.seeds:
                ours, theirs = self._curve(SEARCHED, seed), self._curve(other.name, seed)
                points = {}
                for ms, _ in ours:
                    mine, its = accuracy_within(ours, ms), accuracy_within(theirs, ms)
                    if mine is not None and its is not None:
                        points[ms] = 100 * (mine - its)
                fastest = min((ms for ms, _ in ours), default=math.inf)
                gap = Gap(
                    contender=other.name,
                    seed=seed,
                    ms=tuple(points),
                    points=tuple(points.values()),
                    faster=sum(ms < fastest for ms, _ in theirs),
                )
                found.append(gap)
        return tuple(found)

    def _curve(self, contender: str, seed: int) -> list[tuple[float, float]]:
        """Measured milliseconds and accuracy of each subnet, one that is best twice once."""
        different = {entry.found.subnet: entry for entry in self.of(contender, seed)}
        return [(entry.measured.median_ms, entry.accuracy) for entry in different.values()]


def accuracy_within(subnets: Sequence[tuple[float, float]], ms: float) -> float | None:
    """The accuracy that a space reaches within a latency.

    Between two of its subnets it is interpolated, as if there were a subnet of every latency.

    Parameters
    ----------
    subnets : measured milliseconds and accuracy of each
    ms : the latency

    Returns
    -------
    None below the fastest subnet
    """
    ordered = sorted(subnets)
    if not ordered or ms < ordered[0][0]:
        return None
    times, accuracies = np.array(ordered).T
    # A slower subnet that is less accurate would not be taken.
    return float(np.interp(ms, times, np.maximum.accumulate(accuracies)))


def contenders(job: Job, block_types: Sequence[str] | None = None) -> tuple[Contender, ...]:
    """The best space of the job's search, and for each block type the best uniform space.

    A uniform space has one block type and one width window index in every stage; which window is
    best the Q-T score says, as of the searched space.

    Parameters
    ----------
    job : its LUT is made if there is none
    block_types : those of the uniform spaces; all of the hyperspace by default

    Raises
    ------
    ConfigError
        No search has been made yet.
    CodeError
        An unknown block type.
    """
    h = job.hyperspace
    best = chosen_space(job, BEST)
    lut = prepared_lut(job)
    score = make_scorer(lut, score_config(job, constraints(job, lut)))
    found = [Contender(name=SEARCHED, space=str(best), score=score(best).score)]
    for name in dict.fromkeys(block_types or (option.type for option in h.block_types)):
        number = h.block_types.index(h.option(name))
        uniform = [space for space in h.uniform_spaces() if space.blocks[0] == number]
        scores = {space: score(space).score for space in uniform if space != best}
        if scores:
            chosen = max(scores, key=lambda space: scores[space])
            found.append(Contender(name=f"all {name}", space=str(chosen), score=scores[chosen]))
    return tuple(found)


def compare_spaces(
    job: Job,
    seeds: Sequence[int] = (),
    block_types: Sequence[str] | None = None,
    rounds: int = 20,
    say: Say = print,
) -> Comparison:
    """Train the supernet of every contender, search it, and measure all best subnets by turns.

    Supernets have the same settings and seeds, searches the same latency constraints: the job's
    `subnets`, whose quantiles are those of random subnets of all contenders together. As many
    supernets are trained at a time as there are GPUs, or else cores. What earlier runs have trained
    and evaluated is not done again.

    Parameters
    ----------
    job : after its search
    seeds : of the supernets; the job's by default
    block_types : of the manually designed spaces; all by default
    rounds : turns of each file
    say : receives a line a step

    Returns
    -------
    the comparison; `comparison.json` in `job.comparison_path` has it too

    Raises
    ------
    SpaceEvoError
        As `contenders`, `train_supernet`, `search_subnets` and `bench_files`.
    """
    numbers = tuple(dict.fromkeys(seeds or (job.config.seed,)))
    if not job.config.supernet.int8.epochs:
        raise ConfigError(
            f"{job.path}: supernet.int8.epochs is 0; expected an LSQ+ phase, for INT8 subnets are "
            "compared"
        )
    with exclusive(job.comparison_path / "comparison.json"):
        taking_part = contenders(job, block_types)
        device = prepared_predictor(job)
        common = common_constraints(job, taking_part, device)
        # What cannot be searched is refused before hours of training.
        tasks = [
            _Task(str(job.path), contender, seed, within)
            for seed in numbers
            for contender in taking_part
            if (within := _reachable(job, contender, seed, common, device))
        ]
        done = _all_done(job, tasks, say)
        bench = bench_files([path for _, paths in done for path in paths], job, rounds)
        measured = iter(bench.files)
        entries = [
            Entry(
                contender=task.contender.name,
                seed=task.seed,
                constraint_ms=T,
                found=subnet,
                measured=next(measured),
            )
            for task, (found, _) in zip(tasks, done, strict=True)
            for T, subnet in zip(found.constraints_ms, found.best, strict=True)
        ]
        order = [contender.name for contender in taking_part]
        types = {t for c in taking_part[1:] for t in _block_types(job, c)}
        result = Comparison(
            schema=SCHEMA,
            machine=bench.machine,
            seeds=numbers,
            scored_ms=constraints(job, prepared_lut(job)),
            constraints_ms=common,
            images=images(job).test_size // 2,
            contenders=taking_part,
            left_out=tuple(o.type for o in job.hyperspace.block_types if o.type not in types),
            entries=tuple(sorted(entries, key=lambda e: order.index(e.contender))),
        )
        write_atomically(job.comparison_path / "comparison.json", to_json(result))
    return result


def common_constraints(
    job: Job, taking_part: Sequence[Contender], device: LatencyModel
) -> tuple[float, ...]:
    """Latency constraints T in milliseconds of all contenders, ascending."""
    config = job.config
    if config.subnet_constraints_ms:
        return tuple(sorted(config.subnet_constraints_ms))
    spaces = [_priced(job, contender, device) for contender in taking_part]
    return tuple(sorted({constraint_at(spaces, q, config.seed) for q in config.subnet_quantiles}))


@dataclass(frozen=True)
class _Task:
    """A supernet to be trained and searched."""

    job: str
    contender: Contender
    seed: int
    constraints_ms: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.contender.name} ({self.contender.space}), seed {self.seed}"


_Done = tuple[SubnetResults, list[Path]]


def _all_done(job: Job, tasks: Sequence[_Task], say: Say) -> list[_Done]:
    """What all tasks come to, as many of them at a time as there are GPUs, or else cores.

    Raises
    ------
    TrainingError
        Some have failed, after all others are done; names each with its reason.
    """
    device = training_device(job.config.supernet.device, "supernet")
    count = torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1
    done: dict[_Task, _Done] = {}
    failed: dict[str, Exception] = {}
    with tqdm(None, "Training and searching supernets", len(tasks), mininterval=1) as bar:
        for task, outcome in in_workers(_do, tasks, min(count, len(tasks))):
            if isinstance(outcome, Exception):
                failed[str(task)] = outcome
                say(f"{task} has failed")
            else:
                done[task] = outcome
                say(f"{task.contender.name}: {outcome[0].outcome}")
            bar.update()
    if failed:
        raise failure(failed, len(tasks))
    return [done[task] for task in tasks]


def _do(task: _Task) -> _Done:
    """Train, search and export, in a process of its own."""

    def report(epoch: SupernetEpoch) -> None:
        print(f"{task}, {epoch.outcome}", flush=True)

    job = Job(task.job)
    # Several at a time have a core each, and results do not depend on how many there are.
    with one_thread():
        train_supernet(job, task.contender.space, task.seed, report)
        # Beside the comparison: the user's own search of this supernet stays what it is.
        folder = job.comparison_path / f"seed{task.seed}" / task.contender.space
        space, within = _code(job, task.contender), task.constraints_ms
        found = search_subnets(job, space, task.seed, within, folder / RESULTS)
        return found, exported(job, found, folder)


def _reachable(
    job: Job, contender: Contender, seed: int, common: tuple[float, ...], device: LatencyModel
) -> tuple[float, ...]:
    """Those of the constraints that a contender's fastest subnet meets.

    Raises
    ------
    ConstraintError
        They are so near to it that no subnet is found.
    """
    fastest, _ = latency_span(_priced(job, contender, device), seed)
    if within := tuple(T for T in common if fastest <= T):
        new_search(job, _code(job, contender), device, within, seed)
    return within


def _block_types(job: Job, contender: Contender) -> set[str]:
    return {job.hyperspace.block_types[b].type for b in _code(job, contender).blocks}


def _priced(job: Job, contender: Contender, device: LatencyModel) -> PricedSubnets:
    return PricedSubnets(job.hyperspace, _code(job, contender), device)


def _code(job: Job, contender: Contender) -> SpaceCode:
    return job.hyperspace.space(contender.space)
