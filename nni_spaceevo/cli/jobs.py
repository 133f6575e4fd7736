"""Verbs about a whole job: `distill`, `report`, `train` and `demo`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .common import Verbs, add_job, add_supernet

if TYPE_CHECKING:
    from ..distill.stage import EpochLoss
    from ..jobs.job import Job
    from ..supernet.run import SupernetEpoch


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this file."""
    verb = verbs.add_parser("distill", help="teach every elastic stage what the teacher does there")
    add_job(verb)
    verb.add_argument("--task", metavar="STAGE_BLOCK", help="only this one: stage1_mbv2_res")
    verb.add_argument(
        "--dry-run", action="store_true", help="show what would be done; write nothing"
    )
    verb.set_defaults(run=_distill)

    verb = verbs.add_parser("report", help="write the report of the last search again")
    add_job(verb)
    verb.set_defaults(run=_report)

    verb = verbs.add_parser("train", help="train the quantized-for-all supernet of a space")
    add_job(verb)
    add_supernet(verb)
    verb.set_defaults(run=_train)

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
    from ..jobs.job import Job

    job = Job(options.job)
    if options.dry_run:
        from ..jobs.plan import plan

        print(plan(job))
    elif options.task is not None:
        _distill_task(job, options.task)
    else:
        _distill_all(job)


def _distill_all(job: Job) -> None:
    from ..jobs.prepare import distilled

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("several processes work on one task together: name it with --task")
    rows = distilled(job)
    mean = sum(row.loss for row in rows) / len(rows)
    print(f"{job.stages_path}: {len(rows):,} sub-stages, mean INT8 NSR loss {mean:.3f}")


def _distill_task(job: Job, task: str) -> None:
    from ..jobs.distillation import cache_use, distil_task
    from ..jobs.workers import is_first_process
    from ..lut.merge import task_cells

    tasks = task_cells(job.hyperspace)
    if task not in tasks:
        raise ConfigError(
            f"--task {task!r}; hyperspace {job.hyperspace.name!r} has {', '.join(tasks)}"
        )
    done = distil_task(str(job.path), tasks[task], _print_epoch)
    if done and is_first_process():
        if job.config.distill.cache_gb:
            print(cache_use([done]))
        print(done.rows.outcome)


def _print_epoch(loss: EpochLoss) -> None:
    print(
        f"epoch {loss.epoch + 1}, {loss.precision}: NSR loss {loss.random:.3f} of random "
        f"sub-stages, {loss.largest:.3f} of the largest, {loss.smallest:.3f} of the smallest",
        flush=True,
    )


def _report(options: argparse.Namespace) -> None:
    from ..jobs.job import Job
    from ..reports.job_report import write_report

    print((write_report(Job(options.job)) / "report.md").read_text(encoding="utf-8"))


def _train(options: argparse.Namespace) -> None:
    from ..jobs.job import Job
    from ..jobs.supernets import train_supernet

    def report(epoch: SupernetEpoch) -> None:
        print(epoch.outcome, flush=True)

    trained = train_supernet(Job(options.job), options.space, options.seed, report)
    if trained:
        print(trained.outcome)


def _demo(options: argparse.Namespace) -> None:
    from ..plugin.demo import run_demo

    run_demo(options.folder, options.port, keep_web_ui=not options.stop)
