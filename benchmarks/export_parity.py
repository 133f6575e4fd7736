"""Whether exported files answer as the networks in torch that they were made of.

Exports random INT8 subnets of trained supernets, as ONNX and with `--tflite` also as TFLite, and
runs each file and the fake-quantized network on all held-out images of the job. What
`spaceevo export` reports of every file is collected: the share of equal answers, both accuracies,
the largest difference of a logit, the operators that stay float.

Writes `export_parity.json` and `.md` (a summary) beside this script. Reports are kept in the job's
work folder; a run that was killed goes on there.

    python benchmarks/export_parity.py --job JOB.yaml [--space CODE...] [--seed N] [--subnets N]
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from outcome import write_outcome
from provenance import provenance
from tqdm import tqdm

from nni_spaceevo.cli.common import add_job
from nni_spaceevo.errors import SpaceEvoError
from nni_spaceevo.files import digest, read_json
from nni_spaceevo.hyperspace import SubnetCode
from nni_spaceevo.jobs.export import ExportReport, export_subnet
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.supernets import chosen_space, supernet_path
from nni_spaceevo.supernet.evaluation import EVALUATION

# What an issue of this project asks for.
LEAST_SAME, MOST_APART = 0.995, 0.001


def reports(
    job: Job, space: str, seed: int | None, codes: list[SubnetCode], suffixes: list[str]
) -> list[ExportReport]:
    """Reports of exported subnets, those of an earlier run from its files."""
    content = supernet_path(job, job.hyperspace.space(space), seed).read_bytes()
    folder = job.work / "export_parity" / digest(EVALUATION, content)
    found = []
    for code in tqdm(codes, "Exporting", unit="subnet"):
        for suffix in suffixes:
            path = folder / f"{digest(str(code))}{suffix}"
            kept = path.with_name(f"{path.name}.json")
            if not kept.is_file():
                export_subnet(job, str(code), path, space=space, seed=seed)
                path.unlink()  # What is wanted is its report.
            found.append(read_json(kept, ExportReport))
    return found


def summary(found: list[ExportReport]) -> dict[str, Any]:
    """What all files of one format come to."""
    agreements = [report.agreement for report in found]
    apart = [abs((a.accuracy or 0) - (a.network_accuracy or 0)) for a in agreements]
    relative = [a.largest_difference / a.logit_deviation for a in agreements]
    stays: Counter[str] = Counter()
    for report in found:
        stays.update(report.operators.in_float)
    return {
        "runtime": found[0].runtime,
        "files": len(found),
        "images": agreements[0].images,
        "least_same": min(a.same for a in agreements),
        "median_same": float(np.median([a.same for a in agreements])),
        "files_below_least_same": sum(a.same < LEAST_SAME for a in agreements),
        "largest_accuracy_difference": round(max(apart), 6),
        "files_above_accuracy_difference": sum(d > MOST_APART + 1e-9 for d in apart),
        "largest_logit_difference": max(a.largest_difference for a in agreements),
        "largest_logit_difference_in_deviations": round(max(relative), 3),
        "in_float": dict(stays),
        "reasons": {k: v for report in found for k, v in report.operators.reasons.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, a row a runtime."""
    lines = [
        "| runtime | files | same answers, median (least) | accuracy apart, at most | "
        "largest difference of a logit | in float |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        floats = ", ".join(f"{n} {op}" for op, n in row["in_float"].items()) or "nothing"
        lines.append(
            f"| {row['runtime']} | {row['files']} | {row['median_same']:.2%} "
            f"({row['least_same']:.2%}) | {100 * row['largest_accuracy_difference']:.2f} points "
            f"| {row['largest_logit_difference']:.3g} "
            f"({row['largest_logit_difference_in_deviations']:.2g} deviations) | {floats} |"
        )
    return "\n".join(lines)


def results(
    job: Job, spaces: list[str], seed: int | None, count: int, suffixes: list[str]
) -> dict[str, Any]:
    """Export and compare what an earlier run has not, of all spaces together, and sum up."""
    chosen, rng = [chosen_space(job, space) for space in spaces], np.random.default_rng(0)
    found = []
    for i, code in enumerate(chosen):
        mine = count * (i + 1) // len(chosen) - count * i // len(chosen)
        codes = [job.hyperspace.random_subnet(code, rng) for _ in range(mine)]
        found += reports(job, str(code), seed, codes, suffixes)
    formats = [[r for r in found if r.file.endswith(suffix)] for suffix in suffixes]
    return {
        "hyperspace": job.hyperspace.name,
        "spaces": [str(code) for code in chosen],
        "block_types": [
            [job.hyperspace.block_types[b].type for b in code.blocks] for code in chosen
        ],
        "summary": [summary(of_format) for of_format in formats],
        "reports": found,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_job(parser)
    parser.add_argument("--space", nargs="+", default=["best"], help="space codes, or best")
    parser.add_argument("--seed", type=int, help="of the supernets; default: the job's")
    parser.add_argument("--subnets", type=int, default=50, help="random ones of all spaces")
    parser.add_argument("--tflite", action="store_true", help="TFLite files too")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    suffixes = [".onnx", ".tflite"] if options.tflite else [".onnx"]
    try:
        job = Job(options.job)
        found = results(job, options.space, options.seed, options.subnets, suffixes)
    except SpaceEvoError as error:
        raise SystemExit(f"error: {error}") from error
    result = {**provenance("torch", "onnx", "onnxruntime", "numpy"), **found}
    write_outcome(options.output, result, table(result["summary"]))


if __name__ == "__main__":
    main()
