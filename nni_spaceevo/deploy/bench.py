"""How fast model files are, several side by side, each by the runtimes that run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import trange

from ..errors import ConfigError
from ..files import Record
from ..latency.machine import Machine, describe_machine, pinned
from .sessions import ONNX_RUNTIMES, TFLITE, Session, open_session, runtimes_of

SCHEMA = 2
# Of one file in one round: long against the clock, short against the machine's slow moments.
_ROUND_S = 0.05
_WARMUP_RUNS = 3
_FEWEST_RUNS = 3


class FileTiming(Record, frozen=True):
    """What a file costs.

    Attributes
    ----------
    file : path as given
    runtime : what ran it, and its version
    size_kb : of the file, in 1,000 bytes
    median_ms : of all runs, in milliseconds
    low_ms, high_ms : between which 80 % of the runs were
    rounds_ms : median of each round
    predicted_ms : what the job's predictor says of an exported subnet; None of other files
    accuracy : on the job's held-out images; None without a job
    """

    file: str
    runtime: str
    size_kb: float
    median_ms: float
    low_ms: float
    high_ms: float
    rounds_ms: tuple[float, ...]
    predicted_ms: float | None = None
    accuracy: float | None = None

    def ratio_to(self, other: FileTiming) -> float:
        """How many times as long it takes: the median over rounds, which both saw alike."""
        return float(np.median(np.array(self.rounds_ms) / np.array(other.rounds_ms)))


class Bench(Record, frozen=True):
    """Files measured in one run.

    Attributes
    ----------
    schema : version of the format
    machine : where; it names all runtimes
    files : in the order given, once for each runtime
    """

    schema: int
    machine: Machine
    files: tuple[FileTiming, ...]

    def text(self) -> str:
        """Machine, protocol and `table`, as Markdown."""
        m = self.machine
        governor = f", governor {m.governor}" if m.governor else ""
        return (
            f"{m.cpu} ({', '.join(m.flags) or 'no INT8 extensions'}; {m.cores} cores{governor}), "
            f"{m.runtime}: {m.protocol}\n\n{self.table()}"
        )

    def table(self) -> str:
        """A Markdown table; ratios are to the first row."""
        lines = [
            "| file | runtime | ms (80 % of runs) | to the first | predicted, ms | accuracy | kB |",
            "|---|---|---|---|---|---|---|",
        ]
        for f in self.files:
            predicted = "" if f.predicted_ms is None else f"{f.predicted_ms:.3f}"
            accuracy = "" if f.accuracy is None else f"{f.accuracy:.2%}"
            lines.append(
                f"| {f.file} | {f.runtime} "
                f"| {f.median_ms:.3f} ({f.low_ms:.3f} to {f.high_ms:.3f}) "
                f"| {f.ratio_to(self.files[0]):.2f}x | {predicted} | {accuracy} | {f.size_kb:.0f} |"
            )
        return "\n".join(lines)


class Entrant(ABC):
    """A file with what runs it.

    Attributes
    ----------
    path : the file
    runtime : what runs it, and its version
    """

    path: Path
    runtime: str

    @abstractmethod
    def round_ms(self) -> NDArray[np.float64]:
        """Milliseconds of the runs of one round, shape (runs,)."""


def time_files(
    paths: Sequence[Path],
    rounds: int = 20,
    threads: int = 1,
    runtimes: Sequence[str] = ONNX_RUNTIMES[:1],
) -> Bench:
    """Time files by turns, round after round, batch 1, on random inputs.

    Parameters
    ----------
    paths : ONNX and TFLite files with float inputs, of which only the first axis may be open
    rounds : how often each file has its turn
    threads : of the runtimes, kept on as many cores where there are so many
    runtimes : "onnxruntime", "openvino" or both: each ONNX file has its turn under each; LiteRT
        runs TFLite files

    Raises
    ------
    ConfigError
        No file, fewer than one round or thread, an input of another kind, or another runtime.
    DeviceError
        A runtime is not installed, or cannot read a file.
    """
    check_files(paths, rounds, threads, runtimes)
    # A runtime's threads stay where the one that starts them is.
    with pinned(threads) as cores:
        sessions = [
            open_session(path, runtime, threads)
            for path in paths
            for runtime in runtimes_of(path, runtimes)
        ]
        found = by_turns([_Local(session) for session in sessions], rounds)
    names = {session.runtime: session.options for session in sessions}
    options = {
        f"{name.split()[0]} {key}": value
        for name, chosen in names.items()
        for key, value in chosen.items()
    }
    protocol = (
        f"batch 1, {threads} thread(s) on {_named(cores)}, inputs and outputs bound, {rounds} "
        f"rounds of the files by turns, about {_ROUND_S * 1e3:.0f} ms each after {_WARMUP_RUNS} "
        "runs of warm-up; median of all runs"
    )
    return Bench(SCHEMA, describe_machine(", ".join(names), {}, options, protocol, threads), found)


def _named(cores: Sequence[int]) -> str:
    return f"core {', '.join(map(str, cores))}" if cores else "any cores"


def check_files(paths: Sequence[Path], rounds: int, threads: int, runtimes: Sequence[str]) -> None:
    """Raise `ConfigError` where `time_files` would at once."""
    check_rounds(paths, rounds, threads)
    if not runtimes or not {*runtimes} <= {*ONNX_RUNTIMES}:
        raise ConfigError(
            f"bench: runtimes {', '.join(runtimes) or 'none'}; expected some of "
            f"{', '.join(ONNX_RUNTIMES)} for ONNX files ({TFLITE} files run in LiteRT)"
        )


def check_rounds(paths: Sequence[Path], rounds: int, threads: int) -> None:
    """Raise `ConfigError` where there is nothing to measure."""
    if not paths or min(rounds, threads) < 1:
        raise ConfigError(
            f"bench: {len(paths)} files, {rounds} rounds, {threads} threads; expected one or more "
            "of each"
        )


def by_turns(entrants: Sequence[Entrant], rounds: int) -> tuple[FileTiming, ...]:
    """Give each entrant its turn in every round; raises what `round_ms` raises."""
    runs: list[list[NDArray[np.float64]]] = [[] for _ in entrants]
    for number in trange(rounds, desc="Timing", disable=None, leave=False):
        # Another one begins each round, so that none always follows the same one.
        for i in np.roll(np.arange(len(entrants)), -number).tolist():
            runs[i].append(entrants[i].round_ms())
    return tuple(map(_timing, entrants, runs))


def _timing(entrant: Entrant, runs: list[NDArray[np.float64]]) -> FileTiming:
    low, median, high = np.quantile(np.concatenate(runs), (0.1, 0.5, 0.9))
    return FileTiming(
        file=str(entrant.path),
        runtime=entrant.runtime,
        size_kb=entrant.path.stat().st_size / 1e3,
        median_ms=float(median),
        low_ms=float(low),
        high_ms=float(high),
        rounds_ms=tuple(float(np.median(times)) for times in runs),
    )


class _Local(Entrant):
    """A file on this machine."""

    def __init__(self, session: Session) -> None:
        self.path, self.runtime = session.path, session.runtime
        self._timed = session.timed()
        self._runs = 0

    def round_ms(self) -> NDArray[np.float64]:
        """Of as many runs as fill a round, after warm-up."""
        if not self._runs:
            typical_s = float(np.median(self._timed.times_us(_WARMUP_RUNS, _FEWEST_RUNS))) / 1e6
            self._runs = max(_FEWEST_RUNS, round(_ROUND_S / typical_s))
        return self._timed.times_us(_WARMUP_RUNS, self._runs) / 1e3
