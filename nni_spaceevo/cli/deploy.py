"""Verbs about trained subnets: `export` and `bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import Verbs, add_job, add_supernet


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this file."""
    verb = verbs.add_parser("export", help="write a subnet of a trained supernet as an INT8 file")
    add_job(verb)
    add_supernet(verb)
    verb.add_argument(
        "--subnet",
        required=True,
        help="subnet code, largest, smallest, or seqnet1, seqnet2, …: the best within the first, "
        "second, … latency constraint of the search",
    )
    verb.add_argument(
        "--output", type=Path, help="x.onnx or x.tflite; default: ONNX in the job's work/exported"
    )
    verb.add_argument("--precision", choices=["int8", "float32"], default="int8")
    verb.add_argument(
        "--dynamic-batch", action="store_true", help="ONNX: any number of images at a time, not one"
    )
    verb.set_defaults(run=_export)

    verb = verbs.add_parser("bench", help="measure ONNX and TFLite files, side by side")
    verb.add_argument("files", type=Path, nargs="+", metavar="FILE", help="ONNX or TFLite files")
    verb.add_argument("--job", type=Path, help="job file: adds predictions and accuracies")
    verb.add_argument("--output", type=Path, help="folder for bench.json, bench.md and bench.png")
    verb.add_argument("--rounds", type=int, default=20, help="turns of each file; default: 20")
    verb.add_argument("--threads", type=int, default=1, help="of the runtimes; default: 1")
    verb.add_argument(
        "--runtime",
        nargs="+",
        choices=["onnxruntime", "openvino"],
        help="of ONNX files; both measure each under each; default: onnxruntime",
    )
    verb.add_argument("--device", help="adb:SERIAL, a phone; default: this machine")
    verb.add_argument(
        "--benchmark-binary",
        type=Path,
        help="TFLite's benchmark_model built for the phone, which it is copied to and removed from",
    )
    verb.set_defaults(run=_bench)


def _export(options: argparse.Namespace) -> None:
    from ..jobs.export import export_subnet
    from ..jobs.job import Job

    report = export_subnet(
        Job(options.job),
        options.subnet,
        options.output,
        space=options.space,
        seed=options.seed,
        precision=options.precision,
        dynamic_batch=options.dynamic_batch,
    )
    print(report.outcome)


def _bench(options: argparse.Namespace) -> None:
    from ..files import require_writable
    from ..jobs.bench import bench_files
    from ..jobs.job import Job

    if options.output is not None:
        require_writable(options.output / "bench.json")
    job = None if options.job is None else Job(options.job)
    found = bench_files(
        options.files,
        job,
        options.rounds,
        options.threads,
        runtimes=options.runtime,
        device=options.device,
        program=options.benchmark_binary,
    )
    print(found.text())
    if options.output is not None:
        from ..reports.bench_report import write_bench

        write_bench(found, options.output)
