"""`spaceevo`: one verb per step from a device and images to a search space."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import SpaceEvoError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code, 1 after an error."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except SpaceEvoError as error:
        print(f"spaceevo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("spaceevo: stopped; the same command continues", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="spaceevo", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="verb")

    verb = verbs.add_parser("doctor", help="what this machine lacks, and what to know")
    verb.set_defaults(run=_doctor)

    verb = verbs.add_parser("register", help="make NNI know the SpaceEvo tuner")
    verb.add_argument("--undo", action="store_true", help="make NNI forget it")
    verb.set_defaults(run=_register)

    verb = verbs.add_parser("profile", help="fit a latency predictor for this machine")
    verb.add_argument("--hyperspace", required=True, help="YAML file or preset")
    verb.add_argument("--output", type=Path, required=True, help="predictor folder to write")
    verb.add_argument("--seed", type=int, default=0)
    verb.set_defaults(run=_profile)

    verb = _job_verb(verbs, "predict", "INT8 latency of subnets of a space")
    verb.add_argument("--space", required=True, help="space code")
    verb.add_argument("subnet", nargs="*", help="subnet codes; none: smallest and largest")
    verb.set_defaults(run=_predict)

    verb = _job_verb(verbs, "lut", "distil all stages and build the quantized LUT")
    verb.set_defaults(run=_lut)

    verb = _job_verb(verbs, "search", "aging evolution in this process, without NNI")
    verb.add_argument("--evaluations", type=int, default=5000, help="spaces to score")
    verb.add_argument("--population-size", type=int, default=500)
    verb.add_argument("--sample-size", type=int, default=125)
    verb.add_argument("--seed", type=int, help="default: the job's")
    verb.set_defaults(run=_search)

    verb = _job_verb(verbs, "report", "write the report of the last NNI search again")
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
    return parser


def _job_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text)
    verb.add_argument("--job", type=Path, required=True, help="job file (YAML)")
    return verb


def _doctor(options: argparse.Namespace) -> int:
    from .plugin.doctor import diagnose, show

    findings = diagnose()
    print(show(findings))
    return 0 if all(f.ok for f in findings) else 1


def _register(options: argparse.Namespace) -> None:
    from .plugin.registration import register, unregister

    print(unregister() if options.undo else register())


def _profile(options: argparse.Namespace) -> None:
    from .hyperspace import load_hyperspace
    from .latency import format_report
    from .latency.profile import ProfileOptions, profile_device

    hyperspace = load_hyperspace(options.hyperspace)
    predictor = profile_device(hyperspace, options.output, ProfileOptions(seed=options.seed))
    print(format_report(predictor.report))
    print(f"predictor {predictor.name} -> {options.output}")


def _predict(options: argparse.Namespace) -> None:
    from .hyperspace import chain_kernels, mflops, mparams
    from .plugin.job import Job
    from .plugin.prepare import prepared_predictor

    job = Job(options.job)
    hyperspace, space = job.hyperspace, job.hyperspace.space(options.space)
    ends = (hyperspace.smallest_subnet(space), hyperspace.largest_subnet(space))
    codes = [hyperspace.subnet(space, c) for c in options.subnet] or list(ends)
    chains = []
    for code in codes:
        blocks = [b for _, stage in hyperspace.subnet_blocks(space, code) for b in stage]
        chains.append(chain_kernels(blocks, code.resolution))
    latencies = prepared_predictor(job, say=lambda line: None).network_ms(chains)
    for code, chain, ms in zip(codes, chains, latencies, strict=True):
        print(f"{ms:.3f} ms  {mflops(chain):.1f} MFLOPs  {mparams(chain):.2f} MParams  {code}")


def _lut(options: argparse.Namespace) -> None:
    from .plugin.job import Job
    from .plugin.prepare import prepared_lut

    job = Job(options.job)
    lut = prepared_lut(job)
    low, high = lut.latency_span
    print(f"{job.lut_path}: {len(lut)} sub-stages, subnets of {low:.3f} to {high:.3f} ms")


def _search(options: argparse.Namespace) -> None:
    from .plugin.job import Job
    from .plugin.local_search import search_locally
    from .plugin.prepare import prepared_lut
    from .plugin.report import write_report
    from .search import EvolutionConfig

    job = Job(options.job)
    config = EvolutionConfig(
        population_size=options.population_size,
        sample_size=options.sample_size,
        seed=job.config.seed if options.seed is None else options.seed,
    )
    results = search_locally(job, prepared_lut(job), config, options.evaluations)
    print((write_report(job, results) / "report.md").read_text(encoding="utf-8"))


def _report(options: argparse.Namespace) -> None:
    from .plugin.job import Job
    from .plugin.report import write_report

    print((write_report(Job(options.job)) / "report.md").read_text(encoding="utf-8"))


def _demo(options: argparse.Namespace) -> None:
    from .plugin.demo import run_demo

    run_demo(options.folder, options.port, keep_web_ui=not options.stop)


if __name__ == "__main__":
    sys.exit(main())
