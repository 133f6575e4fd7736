"""The verbs `subnets` and `compare`: subnets of trained supernets, and of several of them."""

from __future__ import annotations

import argparse

from .common import Verbs, add_job, add_supernet


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this file."""
    verb = verbs.add_parser(
        "subnets", help="find, export and measure the best subnets of a trained supernet"
    )
    add_job(verb)
    add_supernet(verb)
    verb.add_argument(
        "--constraint-ms",
        type=float,
        nargs="+",
        default=(),
        metavar="T",
        help="latency constraints T; default: the job's",
    )
    verb.add_argument("--rounds", type=int, default=20, help="of measuring; default: 20")
    verb.set_defaults(run=_subnets)

    verb = verbs.add_parser(
        "compare", help="train and measure the searched space beside manually designed ones"
    )
    add_job(verb)
    verb.add_argument("--seeds", type=int, nargs="+", default=(), help="default: the job's")
    verb.add_argument(
        "--manual",
        nargs="+",
        metavar="BLOCK",
        help="block types of the manually designed spaces; default: all",
    )
    verb.add_argument("--rounds", type=int, default=20, help="of measuring; default: 20")
    verb.set_defaults(run=_compare)


def _subnets(options: argparse.Namespace) -> None:
    from ..jobs.job import Job
    from ..jobs.seqnets import seqnets
    from ..jobs.subnets import search_subnets, subnets_folder
    from ..jobs.supernets import chosen_space
    from ..reports.subnet_report import write_subnet_report

    job = Job(options.job)
    space = chosen_space(job, options.space)
    results = search_subnets(job, space, options.seed, tuple(options.constraint_ms))
    print(results.outcome)
    found = seqnets(job, results, options.rounds)
    report = write_subnet_report(found, subnets_folder(job, space, options.seed))
    print(f"\n{found.bench.table()}\n\n{report}")


def _compare(options: argparse.Namespace) -> None:
    from ..jobs.comparison import compare_spaces
    from ..jobs.job import Job
    from ..reports.comparison_report import write_comparison_report

    job = Job(options.job)
    found = compare_spaces(job, options.seeds, options.manual, options.rounds)
    report = write_comparison_report(found, job.comparison_path)
    print(f"\n{report.read_text(encoding='utf-8')}\n{report}")
