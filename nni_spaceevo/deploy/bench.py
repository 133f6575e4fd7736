"""How fast ONNX files are on this machine, several side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tqdm import trange

from ..errors import ConfigError, DeviceError
from ..files import Record
from ..latency.machine import Machine, describe_machine, one_core
from .runtime import open_session

SCHEMA = 1
# Of one file in one round: long against the clock, short against the machine's slow moments.
_ROUND_S = 0.05
_WARMUP_RUNS = 3
_FEWEST_RUNS = 3


class FileTiming(Record, frozen=True):
    """What a file costs.

    Attributes
    ----------
    file : path as given
    size_kb : of the file, in 1,000 bytes
    median_ms : of all runs, in milliseconds
    low_ms, high_ms : between which 80 % of the runs were
    rounds_ms : median of each round
    predicted_ms : what the job's predictor says of an exported subnet; None of other files
    accuracy : on the job's held-out images; None without a job
    """

    file: str
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
    machine : where
    files : in the order given
    """

    schema: int
    machine: Machine
    files: tuple[FileTiming, ...]

    def table(self) -> str:
        """A Markdown table; ratios are to the first file."""
        lines = [
            "| file | ms (80 % of runs) | to the first | predicted, ms | accuracy | kB |",
            "|---|---|---|---|---|---|",
        ]
        for f in self.files:
            predicted = "" if f.predicted_ms is None else f"{f.predicted_ms:.3f}"
            accuracy = "" if f.accuracy is None else f"{f.accuracy:.2%}"
            lines.append(
                f"| {f.file} | {f.median_ms:.3f} ({f.low_ms:.3f} to {f.high_ms:.3f}) "
                f"| {f.ratio_to(self.files[0]):.2f}x | {predicted} | {accuracy} | {f.size_kb:.0f} |"
            )
        return "\n".join(lines)


def time_files(paths: Sequence[Path], rounds: int = 20, threads: int = 1) -> Bench:
    """Time files by turns, round after round, batch 1, on random inputs.

    Parameters
    ----------
    paths : ONNX files with float inputs, of which only the first axis may be open
    rounds : how often each file has its turn
    threads : of ONNX Runtime; one is kept on one core

    Raises
    ------
    ConfigError
        No file, fewer than one round or thread, or an input of another kind.
    DeviceError
        ONNX Runtime cannot read a file.
    """
    if not paths or min(rounds, threads) < 1:
        raise ConfigError(
            f"bench: {len(paths)} files, {rounds} rounds, {threads} threads; expected one or more "
            "of each"
        )
    sessions = [_Bound(path, threads) for path in paths]
    runs: list[list[NDArray[np.float64]]] = [[] for _ in paths]
    with one_core() if threads == 1 else nullcontext():
        counts = [session.runs_a_round() for session in sessions]
        for number in trange(rounds, desc="Timing", disable=None, leave=False):
            # Another file begins each round, so that none always follows the same one.
            for i in np.roll(np.arange(len(paths)), -number):
                runs[i].append(sessions[i].times_ms(counts[i]))
    options = {"graph_optimization_level": "ORT_ENABLE_ALL", "intra_op_num_threads": str(threads)}
    protocol = (
        f"batch 1, {threads} thread(s), inputs and outputs bound, {rounds} rounds of the files by "
        f"turns, about {_ROUND_S * 1e3:.0f} ms each after {_WARMUP_RUNS} runs of warm-up; median "
        "of all runs"
    )
    machine = describe_machine(f"onnxruntime {ort.__version__}", {}, options, protocol, threads)
    return Bench(SCHEMA, machine, tuple(map(_timing, paths, runs)))


def _timing(path: Path, runs: list[NDArray[np.float64]]) -> FileTiming:
    low, median, high = np.quantile(np.concatenate(runs), (0.1, 0.5, 0.9))
    return FileTiming(
        file=str(path),
        size_kb=path.stat().st_size / 1e3,
        median_ms=float(median),
        low_ms=float(low),
        high_ms=float(high),
        rounds_ms=tuple(float(np.median(times)) for times in runs),
    )


class _Bound:
    """A file ready to run on fixed random inputs."""

    def __init__(self, path: Path, threads: int) -> None:
        session = open_session(path, threads)
        self._session, self._binding = session, session.io_binding()
        rng = np.random.default_rng(0)
        for value in session.get_inputs():
            shape = [1 if i == 0 and isinstance(n, str) else n for i, n in enumerate(value.shape)]
            if value.type != "tensor(float)" or not all(isinstance(n, int) for n in shape):
                raise ConfigError(
                    f"{path}: input {value.name!r} is {value.type} {value.shape}; expected floats "
                    "of fixed size, but for the number of images"
                )
            self._binding.bind_cpu_input(value.name, rng.normal(size=shape).astype(np.float32))
        names = [value.name for value in session.get_outputs()]
        for name in names:
            self._binding.bind_output(name)
        try:
            # Learns the outputs' sizes; from then on they are written in place.
            session.run_with_iobinding(self._binding)
        except Exception as error:  # ORT's errors share no base class.
            raise DeviceError(f"{path}: ONNX Runtime cannot run it ({error})") from error
        for name, value in zip(names, self._binding.get_outputs(), strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def runs_a_round(self) -> int:
        """Runs that fill a round."""
        typical_s = float(np.median(self.times_ms(_FEWEST_RUNS))) / 1e3
        return max(_FEWEST_RUNS, round(_ROUND_S / typical_s))

    def times_ms(self, runs: int) -> NDArray[np.float64]:
        """Milliseconds of each of so many runs, after warm-up."""
        run, binding, clock = self._session.run_with_iobinding, self._binding, time.perf_counter_ns
        for _ in range(_WARMUP_RUNS):
            run(binding)
        found = np.empty(runs)
        for i in range(runs):
            start = clock()
            run(binding)
            found[i] = clock() - start
        return found / 1e6
