"""How many evaluations the search for a subnet takes, as published and with a surrogate.

Searches the subnets of a trained supernet within one latency constraint, with several seeds, in
two ways:

- surrogate: the default of `spaceevo subnets`, to its end;
- published: evolution in which every subnet is evaluated (population 512, 20 generations), until it
  has a subnet as good as the surrogate's best with the same seed, or has done as many evaluations
  as this script allows. Its first 512 subnets are random ones.

An evaluation takes BatchNorm's statistics anew and runs the INT8 subnet on held-out images: fewer
of both than `spaceevo subnets` takes, so that all searches together can be afforded. Each subnet
has one accuracy, whichever search asks for it, and it is kept in the job's work folder; a run that
was killed goes on there.

Writes `subnet_search.json`, `.md` (the table) and `.png` (best accuracy by evaluations) beside this
script.

    python benchmarks/subnet_search.py --job JOB.yaml [--space CODE] [--quantile Q] [--seeds N]
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from outcome import write_outcome
from provenance import provenance
from tqdm import tqdm

from nni_spaceevo.cli.common import add_job, add_supernet
from nni_spaceevo.errors import SpaceEvoError
from nni_spaceevo.files import digest, exclusive, to_json
from nni_spaceevo.hyperspace import SpaceCode, SubnetCode
from nni_spaceevo.jobs.distillation import images
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.predictors import prepared_predictor
from nni_spaceevo.jobs.subnets import EvaluationsFile, SubnetResult
from nni_spaceevo.jobs.supernets import chosen_space, load_trained, supernet_path
from nni_spaceevo.page import drawing
from nni_spaceevo.quant import INT8
from nni_spaceevo.search.priced import PricedSubnets
from nni_spaceevo.search.subnets import SubnetSearch, SubnetSearchConfig, constraint_at
from nni_spaceevo.supernet.evaluation import EVALUATION, calibrated_subnet, evaluate

SURROGATE, PUBLISHED = WAYS = ("surrogate", "published")
CONFIGS = {SURROGATE: SubnetSearchConfig(), PUBLISHED: SubnetSearchConfig(surrogate=None)}
COLOURS = {SURROGATE: "#2166ac", PUBLISHED: "#d6742a"}

Evaluate = Callable[[SubnetCode], float]


@dataclass(frozen=True)
class Budget:
    """What an evaluation looks at, and how many a search may take."""

    images: int = 1000
    batch_size: int = 128
    batches: int = 2
    most: int = 600


# ---- searches -----------------------------------------------------------------------------------


def accuracies_of(search: SubnetSearch, evaluate_subnet: Evaluate) -> Iterator[float]:
    """Accuracies in the order in which a search asks for subnets."""
    while codes := search.ask():
        for code in codes:
            accuracy = evaluate_subnet(code)
            search.tell(code, accuracy)
            yield accuracy


def until(accuracies: Iterator[float], goal: float, most: int) -> list[float]:
    """Accuracies up to the first that reaches the goal, or so many."""
    found = []
    for accuracy in islice(accuracies, most):
        found.append(accuracy)
        if accuracy >= goal:
            break
    return found


def compare(
    subnets: PricedSubnets, constraint_ms: float, seed: int, evaluate_subnet: Evaluate, most: int
) -> dict[str, list[float]]:
    """Accuracies by way, in the order in which subnets were evaluated."""

    def search(way: str) -> Iterator[float]:
        asked = SubnetSearch(subnets, [constraint_ms], CONFIGS[way], seed)
        return accuracies_of(asked, evaluate_subnet)

    found = {SURROGATE: list(search(SURROGATE))}
    found[PUBLISHED] = until(search(PUBLISHED), max(found[SURROGATE]), most)
    return found


# ---- evaluation ---------------------------------------------------------------------------------


def evaluation(job: Job, code: SpaceCode, seed: int | None, budget: Budget) -> tuple[Evaluate, str]:
    """What evaluates a subnet, and a hash of all that accuracies depend on."""
    supernet, data = load_trained(job, code, seed), images(job)
    order = torch.randperm(data.test_size, generator=torch.Generator().manual_seed(0))
    which, batches = order[: budget.images], (budget.batch_size, budget.batches)

    def evaluate_subnet(subnet: SubnetCode) -> float:
        static = calibrated_subnet(supernet, subnet, data, *batches, INT8)
        return evaluate(static, data, which).accuracy

    content = supernet_path(job, code, seed).read_bytes()
    return evaluate_subnet, digest(
        EVALUATION, content, data.fingerprint, to_json([*batches, len(which)])
    )


def remembered(evaluate_subnet: Evaluate, kept: EvaluationsFile, bar: Any) -> Evaluate:
    """The same, but each subnet once."""

    def known(code: SubnetCode) -> float:
        if str(code) not in kept.results:
            accuracy = evaluate_subnet(code)
            kept.add(SubnetResult(subnet=str(code), accuracy=accuracy, loss=0.0))
        bar.update()
        return kept.results[str(code)].accuracy

    return known


# ---- what comes out -----------------------------------------------------------------------------


def rows_of(found: list[dict[str, list[float]]]) -> list[dict[str, Any]]:
    """By seed: the best accuracy of each way, and the evaluations until the surrogate's best."""
    rows = []
    for seed, ways in enumerate(found):
        goal = max(ways[SURROGATE])
        row: dict[str, Any] = {"seed": seed}
        for way, accuracies in ways.items():
            reached = next((i for i, a in enumerate(accuracies, 1) if a >= goal), None)
            row[way] = {
                "evaluations": len(accuracies),
                "best": round(max(accuracies), 5),
                "reached_after": reached,
            }
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: evaluations until the accuracy that the surrogate ended with."""
    lines = [
        "| seed | accuracy | evaluations by surrogate | as published |",
        "|---|---|---|---|",
    ]
    for row in rows:
        after = [_reached(row[way]) for way in WAYS]
        lines.append(f"| {row['seed']} | {row[SURROGATE]['best']:.2%} | {' | '.join(after)} |")
    return "\n".join(lines)


def _reached(of_way: dict[str, Any]) -> str:
    if of_way["reached_after"] is not None:
        return str(of_way["reached_after"])
    return f"not in {of_way['evaluations']} ({of_way['best']:.2%})"


def picture(found: list[dict[str, list[float]]]) -> bytes:
    """Best accuracy so far against evaluations, a line a seed."""
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with drawing():
        figure = Figure(figsize=(7, 4), layout="constrained", dpi=110)
        axes = figure.subplots()
        for i, ways in enumerate(found):
            for way, accuracies in ways.items():
                best = 100 * np.maximum.accumulate(accuracies)
                label = way if i == 0 else None
                axes.plot(range(1, len(best) + 1), best, color=COLOURS[way], label=label, lw=1.2)
        axes.set_xlabel("subnets evaluated")
        axes.set_ylabel("best INT8 accuracy so far, %")
        axes.legend(loc="lower right")
        figure.savefig(buffer, metadata={"Software": None})
    return buffer.getvalue()


# ---- the whole of it ----------------------------------------------------------------------------


def results(
    job: Job, space: str, seed: int | None, quantile: float, seeds: int, budget: Budget
) -> dict[str, Any]:
    """Search in both ways with each seed, and sum up."""
    code = chosen_space(job, space)
    evaluate_subnet, made_for = evaluation(job, code, seed, budget)
    device = prepared_predictor(job)
    subnets = PricedSubnets(job.hyperspace, code, device)
    T = constraint_at([subnets], quantile, 0)
    path = job.work / "subnet_search_study.json"
    with exclusive(path), tqdm(desc="Evaluating", unit="subnet") as bar:
        kept = EvaluationsFile(path, made_for)
        known = remembered(evaluate_subnet, kept, bar)
        found = [compare(subnets, T, i, known, budget.most) for i in range(seeds)]
        kept.save()
    return {
        "hyperspace": job.hyperspace.name,
        "space": str(code),
        "device": device.name,
        "constraint_ms": T,
        "quantile": quantile,
        "images": min(budget.images, images(job).test_size),
        "recalibration_images": budget.batch_size * budget.batches,
        "most": budget.most,
        "different_subnets": len(kept.results),
        "rows": rows_of(found),
        "accuracies": [{w: [round(a, 5) for a in v] for w, v in ways.items()} for ways in found],
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_job(parser)
    add_supernet(parser)
    parser.add_argument("--quantile", type=float, default=0.5, help="share of subnets within T")
    parser.add_argument("--seeds", type=int, default=5, help="searches of each way")
    parser.add_argument("--images", type=int, default=Budget.images, help="of an evaluation")
    parser.add_argument("--most", type=int, default=Budget.most, help="evaluations of a search")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    budget = Budget(images=options.images, most=options.most)
    given = options.space, options.seed, options.quantile, options.seeds, budget
    try:
        found = results(Job(options.job), *given)
    except SpaceEvoError as error:
        raise SystemExit(f"error: {error}") from error
    result = {**provenance("torch", "numpy", "scikit-learn"), **found}
    write_outcome(options.output, result, table(result["rows"]), picture(result["accuracies"]))


if __name__ == "__main__":
    main()
