"""What the same subnets cost, and how accurate they are, in ONNX Runtime, OpenVINO and LiteRT.

Takes a trained supernet and exports its largest and its smallest subnet, and what `--subnet` names:
as INT8 ONNX, as INT8 TFLite and as FP32 ONNX. All files are measured in one run by turns, ONNX in
ONNX Runtime and in OpenVINO, TFLite in LiteRT, as `spaceevo bench` does, with the accuracy of each
file in its runtime on all held-out images of the job.

Writes `runtimes.json` (every round), `.md` (the tables) and `.png` beside this script.

    python benchmarks/runtimes.py --job JOB.yaml [--space CODE] [--seed N] [--subnet CODE...]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from msgspec.structs import replace
from outcome import write_outcome
from provenance import provenance
from tqdm import tqdm

from nni_spaceevo.cli.common import add_job, add_supernet
from nni_spaceevo.deploy.bench import Bench
from nni_spaceevo.deploy.sessions import ONNX_RUNTIMES
from nni_spaceevo.errors import SpaceEvoError
from nni_spaceevo.files import plain
from nni_spaceevo.jobs.bench import bench_files
from nni_spaceevo.jobs.export import LARGEST, SMALLEST, export_subnet
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.latency.graph import Precision
from nni_spaceevo.reports.bench_report import bench_picture

PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "ai-edge-litert", "numpy")
# What a subnet is exported as; FP32 is what INT8 is held against.
FILES: tuple[tuple[str, Precision], ...] = (
    ("fp32.onnx", "float32"),
    ("int8.onnx", "int8"),
    ("int8.tflite", "int8"),
)


def exported(job: Job, subnet: str, space: str, seed: int | None, folder: Path) -> list[Path]:
    """The files of a subnet."""
    found = []
    for name, precision in FILES:
        found.append(folder / f"{subnet}.{name}")
        export_subnet(job, subnet, found[-1], space=space, seed=seed, precision=precision)
    return found


def measured(job: Job, subnets: list[str], space: str, seed: int | None, rounds: int) -> Bench:
    """The files of all subnets, one subnet after the other."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            path
            for subnet in tqdm(subnets, "Exporting", unit="subnet")
            for path in exported(job, subnet, space, seed, Path(folder))
        ]
        bench = bench_files(paths, job, rounds, runtimes=ONNX_RUNTIMES)
    # Where the files were on this machine says nothing.
    named = (replace(timing, file=Path(timing.file).name) for timing in bench.files)
    return replace(bench, files=tuple(named))


def shown(found: Bench, subnets: list[str], picture: str) -> str:
    """Machine and protocol, and a table a subnet, whose ratios are to FP32 in ONNX Runtime."""
    parts = [found.text().partition("\n")[0]]
    rows = len(found.files) // len(subnets)
    for i, subnet in enumerate(subnets):
        of_subnet = replace(found, files=found.files[i * rows : (i + 1) * rows])
        parts.append(f"{subnet}:\n\n{of_subnet.table()}")
    return "\n\n".join([*parts, f"![Milliseconds]({picture})"])


def main(arguments: list[str] | None = None) -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_job(parser)
    add_supernet(parser)
    parser.add_argument("--subnet", nargs="+", default=[], help="as `spaceevo export` takes it")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each file; default: 40")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    subnets = [SMALLEST, *options.subnet, LARGEST]
    try:
        found = measured(Job(options.job), subnets, options.space, options.seed, options.rounds)
    except SpaceEvoError as error:
        raise SystemExit(f"error: {error}") from error
    result = {**provenance(*PACKAGES), "bench": plain(found)}
    text = shown(found, subnets, options.output.with_suffix(".png").name)
    write_outcome(options.output, result, text, bench_picture(found))


if __name__ == "__main__":
    main()
