"""Verbs about trained subnets: `export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import Verbs, add_job


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this file."""
    verb = verbs.add_parser("export", help="write a subnet of a trained supernet as INT8 ONNX")
    add_job(verb)
    verb.add_argument("--subnet", required=True, help="subnet code, or largest or smallest")
    verb.add_argument("--output", type=Path, help="default: in the job's work/exported")
    verb.add_argument("--space", default="best", help="space code, or best (default)")
    verb.add_argument("--seed", type=int, help="of the supernet; default: the job's")
    verb.add_argument("--precision", choices=["int8", "float32"], default="int8")
    verb.add_argument(
        "--dynamic-batch", action="store_true", help="any number of images at a time, not one"
    )
    verb.set_defaults(run=_export)


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
