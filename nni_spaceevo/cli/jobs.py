"""Verbs about a whole job: `distill`, `report` and `demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import Verbs, add_job


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this file."""
    verb = verbs.add_parser("distill", help="teach every elastic stage what the teacher does there")
    add_job(verb)
    verb.add_argument(
        "--dry-run", action="store_true", help="show what would be done; write nothing"
    )
    verb.set_defaults(run=_distill)

    verb = verbs.add_parser("report", help="write the report of the last NNI search again")
    add_job(verb)
    verb.set_defaults(run=_report)

    verb = verbs.add_parser("demo", help="the digits example, from nothing to a report")
    verb.add_argument(
        "--folder",
        type=Path,
        help="where to run; default: the checkout's example, else ./spaceevo-digits",
    )
    verb.add_argument("--port", type=int, default=8080, help="of NNI's web UI")
    verb.add_argument("--stop", action="store_true", help="end the web UI when the search is done")
    verb.set_defaults(run=_demo)


def _distill(options: argparse.Namespace) -> None:
    from ..jobs.distillation import plan
    from ..jobs.job import Job
    from ..jobs.prepare import distilled

    job = Job(options.job)
    if options.dry_run:
        print(plan(job))
        return
    rows = distilled(job)
    mean = sum(row.loss for row in rows) / len(rows)
    print(f"{job.stages_path}: {len(rows):,} sub-stages, mean INT8 NSR loss {mean:.3f}")


def _report(options: argparse.Namespace) -> None:
    from ..jobs.job import Job
    from ..reports.job_report import write_report

    print((write_report(Job(options.job)) / "report.md").read_text(encoding="utf-8"))


def _demo(options: argparse.Namespace) -> None:
    from ..plugin.demo import run_demo

    run_demo(options.folder, options.port, keep_web_ui=not options.stop)
