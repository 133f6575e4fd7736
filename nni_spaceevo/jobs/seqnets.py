"""The best subnets of a search as INT8 files, measured on this machine."""

from __future__ import annotations

from pathlib import Path

from ..deploy.bench import Bench, FileTiming
from ..files import Record
from .bench import bench_files
from .export import export_subnet
from .job import Job
from .subnets import FoundSubnet, SubnetResults, subnets_folder


class SEQnet(Record, frozen=True):
    """A subnet in hand.

    Attributes
    ----------
    constraint_ms : latency constraint T in milliseconds
    found : what the search says of it
    measured : its INT8 file on this machine, in ONNX Runtime
    """

    constraint_ms: float
    found: FoundSubnet
    measured: FileTiming


class SEQnets(Record, frozen=True):
    """The subnets of a search in hand, measured in one run.

    Attributes
    ----------
    results : of the search
    bench : all files, with machine and protocol
    """

    results: SubnetResults
    bench: Bench

    @property
    def seqnets(self) -> tuple[SEQnet, ...]:
        """One for each constraint, ascending."""
        measured = {Path(timing.file).name: timing for timing in self.bench.files}
        rows = zip(self.results.constraints_ms, self.results.best, strict=True)
        return tuple(SEQnet(constraint_ms=T, found=f, measured=measured[_name(T)]) for T, f in rows)


def seqnets(job: Job, results: SubnetResults, rounds: int = 20) -> SEQnets:
    """Export the best subnet of each constraint, and measure all of them side by side.

    The files lie in the folder of the search, each with the report of its export.

    Parameters
    ----------
    job, results : a search of the job
    rounds : turns of each file

    Raises
    ------
    SpaceEvoError
        As `export_subnet` and `bench_files`.
    """
    return SEQnets(results=results, bench=bench_files(exported(job, results), job, rounds))


def exported(job: Job, results: SubnetResults, folder: Path | None = None) -> list[Path]:
    """The INT8 files of the best subnets of a search, by constraint; raises as `export_subnet`.

    Parameters
    ----------
    job, results : a search of the job
    folder : where they are written; the search's by default
    """
    paths = seqnet_paths(job, results, folder)
    for path, found in zip(paths, results.best, strict=True):
        export_subnet(job, found.subnet, path, space=results.space, seed=results.seed)
    return paths


def seqnet_paths(job: Job, results: SubnetResults, folder: Path | None = None) -> list[Path]:
    """Where `exported` writes the files of a search, by constraint."""
    space = job.hyperspace.space(results.space)
    folder = folder or subnets_folder(job, space, results.seed)
    return [folder / _name(T) for T in results.constraints_ms]


def _name(constraint_ms: float) -> str:
    return f"within_{constraint_ms:g}ms.onnx"
