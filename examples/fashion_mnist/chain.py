"""From images to SEQnets, with subnets of manually designed spaces measured beside them.

    python examples/fashion_mnist/chain.py            # everything, in hours
    python examples/fashion_mnist/chain.py profile    # one step, for which those before are done

What each step leaves in the job's work folder is not done again: stopped or killed, the same
command goes on. The experiments in this folder are the same steps for `nnictl`, with a job of their
own: profile.yml, distill.yml (teacher, stages, LUT), search_space.yml, supernet.yml, subnets.yml,
export.yml, bench.yml.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from nni_spaceevo.errors import SpaceEvoError
from nni_spaceevo.jobs.bench import bench_files
from nni_spaceevo.jobs.comparison import compare_spaces
from nni_spaceevo.jobs.distillation import images
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.local_search import search_locally
from nni_spaceevo.jobs.predictors import prepared_predictor
from nni_spaceevo.jobs.prepare import distilled, prepared_lut, timed
from nni_spaceevo.jobs.seqnets import exported, seqnet_paths
from nni_spaceevo.jobs.subnets import SubnetResults, found_subnets, search_subnets
from nni_spaceevo.jobs.supernets import BEST, chosen_space, train_supernet
from nni_spaceevo.reports.bench_report import write_bench
from nni_spaceevo.reports.comparison_report import write_comparison_report
from nni_spaceevo.reports.job_report import write_report
from nni_spaceevo.search import EvolutionConfig

FOLDER = Path(__file__).parent


def profile(job: Job, options: argparse.Namespace) -> None:
    """Profile this machine, while nothing else of ours keeps it busy."""
    prepared_predictor(job)


def distill(job: Job, options: argparse.Namespace) -> None:
    """Train a teacher, and teach every elastic stage what it does there."""
    distilled(job)


def lut(job: Job, options: argparse.Namespace) -> None:
    """Put losses and latencies together."""
    prepared_lut(job)


def search(job: Job, options: argparse.Namespace) -> None:
    """Evolve spaces; the best one is the searched space."""
    evolution = EvolutionConfig(evolve=options.evaluations // 2, seed=job.config.seed)
    write_report(job, search_locally(job, prepared_lut(job), evolution, options.evaluations))


def supernet(job: Job, options: argparse.Namespace) -> None:
    """Train the quantized-for-all supernet of the searched space, for each seed."""
    for seed in options.seeds:
        train_supernet(job, BEST, seed, lambda epoch: print(epoch.outcome, flush=True))


def subnets(job: Job, options: argparse.Namespace) -> None:
    """Search its best subnets within the job's latencies."""
    for seed in options.seeds:
        print(search_subnets(job, chosen_space(job, BEST), seed).outcome)


def export(job: Job, options: argparse.Namespace) -> None:
    """Write them as INT8 ONNX."""
    for results in _found(job, options):
        print(*exported(job, results), sep="\n")


def bench(job: Job, options: argparse.Namespace) -> None:
    """Measure all files by turns."""
    paths = [path for results in _found(job, options) for path in seqnet_paths(job, results)]
    found = bench_files(paths, job)
    write_bench(found, job.work / "bench")
    print(found.table())


def compare(job: Job, options: argparse.Namespace) -> None:
    """Do the last four steps for the searched and for manually designed spaces, as fair rivals."""
    found = compare_spaces(job, options.seeds, options.manual)
    report = write_comparison_report(found, job.comparison_path)
    print(f"\n{report.read_text(encoding='utf-8')}\n{report}")


def _found(job: Job, options: argparse.Namespace) -> list[SubnetResults]:
    return [found_subnets(job, chosen_space(job, BEST), seed) for seed in options.seeds]


Step = Callable[[Job, argparse.Namespace], None]
STEPS: dict[str, Step] = {
    step.__name__: step
    for step in (profile, distill, lut, search, supernet, subnets, export, bench, compare)
}
# The comparison trains, searches, exports and measures all spaces side by side.
EVERYTHING = ("profile", "distill", "lut", "search", "compare")


def main(arguments: list[str] | None = None) -> None:
    """Do all steps, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("steps", nargs="*", metavar="step", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--job", type=Path, default=FOLDER / "chain.yaml", help="job file")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1), help="of the supernets")
    parser.add_argument(
        "--manual",
        nargs="+",
        default=("mbv2_res", "mbv3_res", "resnet"),
        help="block types of the manually designed spaces",
    )
    parser.add_argument("--evaluations", type=int, default=5000, help="spaces to score")
    options = parser.parse_args(arguments)
    if unknown := [step for step in options.steps if step not in STEPS]:
        parser.error(f"step {unknown[0]!r}; expected {', '.join(STEPS)}")
    try:
        job = Job(options.job)
        # Reads the images, without which there is nothing to do.
        images(job)
        for step in options.steps or EVERYTHING:
            with timed(job, step):
                STEPS[step](job, options)
    except SpaceEvoError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None


if __name__ == "__main__":
    main()
