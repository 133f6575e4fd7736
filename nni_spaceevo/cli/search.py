"""The verb `search`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .common import Verbs, add_hyperspace_of_lut, read_lut

if TYPE_CHECKING:
    from ..search import EvolutionConfig

_EVALUATIONS = 5000


def add_verbs(verbs: Verbs) -> None:
    """Add the verb of this file."""
    verb = verbs.add_parser("search", help="search for the best space in this process, without NNI")
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument("--job", type=Path, help="job file (YAML)")
    what.add_argument("--lut", type=Path, help="or a quantized LUT, with the options below")
    lut = verb.add_argument_group("with --lut")
    lut.add_argument(
        "--constraint-ms", type=float, nargs="+", metavar="T", help="latency constraints T"
    )
    add_hyperspace_of_lut(lut)
    lut.add_argument(
        "--output", type=Path, help="folder of state, results and report; default: LUT.search"
    )
    lut.add_argument("--estimator", choices=["exact", "sampled"], help="default: exact")
    lut.add_argument("--samples", type=int, help="subnets drawn, or their share; default: 100000")
    lut.add_argument("--top", type=int, help="best subnets that are averaged; default: 50")
    lut.add_argument("--t", type=float, help="share that should be within T; default: 0.08")
    lut.add_argument("--a", type=float, help="how strongly less is punished; default: 0.01")
    lut.add_argument("--no-report", action="store_true", help="results only, no page")
    verb.add_argument("--evaluations", type=int, default=_EVALUATIONS, help="spaces to score")
    verb.add_argument("--population-size", type=int, default=500)
    verb.add_argument("--sample-size", type=int, default=125)
    verb.add_argument(
        "--evolution-only", action="store_true", help="aging evolution as published throughout"
    )
    verb.add_argument("--seed", type=int, help="default: the job's, or 0")
    verb.set_defaults(run=_search)


def _search(options: argparse.Namespace) -> None:
    if options.job is not None:
        _search_job(options)
    else:
        _search_lut(options)


_WITH_LUT = ("constraint_ms", "hyperspace", "output", "estimator", "samples", "top", "t", "a")


def _search_job(options: argparse.Namespace) -> None:
    from ..jobs.job import Job
    from ..jobs.local_search import search_locally
    from ..jobs.prepare import prepared_lut
    from ..reports.job_report import write_report

    for name in _WITH_LUT:
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: a job file has its own; give --lut")
    if options.no_report:
        raise ConfigError("--no-report: a job's search ends with its report; give --lut")
    job = Job(options.job)
    config = _evolution(options, job.config.seed)
    results = search_locally(job, prepared_lut(job), config, options.evaluations)
    print((write_report(job, results) / "report.md").read_text(encoding="utf-8"))


def _search_lut(options: argparse.Namespace) -> None:
    from ..jobs.local_search import search_lut
    from ..search import QTConfig

    if not options.constraint_ms:
        raise ConfigError("--constraint-ms: give at least one latency constraint T with --lut")
    lut = read_lut(options.lut, options.hyperspace)
    given = {k: v for k in _WITH_LUT[3:] if (v := getattr(options, k)) is not None}
    config = _evolution(options, 0)
    scoring = QTConfig(constraints_ms=tuple(options.constraint_ms), seed=config.seed, **given)
    folder = options.output or options.lut.with_name(f"{options.lut.name}.search")
    results = search_lut(lut, scoring, config, options.evaluations, folder / "state.json")
    results.save(folder / "search.json")
    best = results.best
    print(f"best space: {best.space}, Q-T score {best.score:.4f}")
    if not options.no_report:
        from ..reports.space_report import write_space_report

        print(f"report: {write_space_report(lut, results, scoring, folder)}")


def _evolution(options: argparse.Namespace, seed: int) -> EvolutionConfig:
    from ..search import EvolutionConfig

    return EvolutionConfig(
        population_size=options.population_size,
        sample_size=options.sample_size,
        evolve=None if options.evolution_only else options.evaluations // 2,
        seed=seed if options.seed is None else options.seed,
    )
