"""How good the found spaces are: against the published ones, random search, and the bound.

For several sets of constraints and seeds: the default search, the published evolution and random
search, all with the same number of exact evaluations. Writes `space_quality.json` beside this
script and prints a table in Markdown.

    python benchmarks/space_quality.py PUBLISHED
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance
from scipy.stats import wilcoxon

from nni_spaceevo.files import to_json, write_atomically
from nni_spaceevo.hyperspace import SpaceCode, load_hyperspace
from nni_spaceevo.lut import OtherStages, QuantizedLUT
from nni_spaceevo.lut.published import import_published
from nni_spaceevo.search import EvolutionConfig, ExactScorer, QTConfig, make_search, score_bound

SETS: list[tuple[str, tuple[float, ...]]] = [
    ("onnxw", (8.0,)),
    ("onnxw", (10.0,)),
    ("onnxw", (15.0,)),
    ("onnxw", (20.0,)),
    ("onnxw", (8.0, 10.0, 15.0)),
    ("mobilew", (15.0, 20.0)),
    ("mobilew", (10.0,)),
    ("mobilew", (25.0,)),
]
PUBLISHED = {
    "onnxw": ("onnxw-151122-023231", "onnxw-121122-133333"),
    "mobilew": ("mobilew-122222-155400", "mobilew-332160-134200", "mobilew-112220-154410"),
}
WAYS = ("default", "evolution", "random")
OTHER_MS = 2.0


@cache
def published_lut(folder: Path, name: str) -> QuantizedLUT:
    """A published LUT with the same milliseconds for stem and head everywhere."""
    hyperspace = load_hyperspace(name)
    other = OtherStages.given(hyperspace, dict.fromkeys(hyperspace.distill_resolutions, OTHER_MS))
    return import_published([folder / f"block_lut_{name}.csv.gz"], hyperspace, other)


@cache
def scorer(folder: Path, name: str, constraints_ms: tuple[float, ...]) -> ExactScorer:
    """One scorer a process and a set of constraints: it keeps its transforms."""
    return ExactScorer(published_lut(folder, name), QTConfig(constraints_ms=constraints_ms))


def search(
    folder: Path, case: tuple[str, tuple[float, ...]], way: str, seed: int, evaluations: int
) -> dict[str, Any]:
    """Best of one search, and how many evaluations it took to get there."""
    name, constraints_ms = case
    score = scorer(folder, name, constraints_ms)
    hyperspace = score.lut.hyperspace
    rng = np.random.default_rng(seed)
    evolve = evaluations // 2 if way == "default" else None
    first = score_bound(score.lut, score.config).codes if way == "default" else ()
    loop = make_search(hyperspace, EvolutionConfig(seed=seed, evolve=evolve), first)
    best: tuple[float, SpaceCode, int] | None = None
    for i in range(evaluations):
        code = hyperspace.random_space(rng) if way == "random" else loop.ask()
        value = score(code).score
        loop.tell(code, value)
        if best is None or value > best[0]:
            best = (value, code, i + 1)
    assert best is not None
    return {"way": way, "seed": seed, "score": best[0], "space": str(best[1]), "after": best[2]}


def one_case(
    folder: Path, case: tuple[str, tuple[float, ...]], seeds: int, evaluations: int
) -> dict[str, Any]:
    """All searches of one set of constraints, with what they are compared to."""
    name, constraints_ms = case
    score = scorer(folder, name, constraints_ms)
    hyperspace = score.lut.hyperspace
    runs = [search(folder, case, w, s, evaluations) for w in WAYS for s in range(seeds)]
    by_way = {w: [r["score"] for r in runs if r["way"] == w] for w in WAYS}
    published = {c: score(hyperspace.space(c)).score for c in PUBLISHED[name]}
    uniform = max(score(code).score for code in hyperspace.uniform_spaces())
    found = by_way["default"]
    best = max(runs, key=lambda r: (r["score"], r["space"]))
    # One-sided: are the differences to random search, seed by seed, above zero?
    p_value = {
        w: float(wilcoxon(by_way[w], by_way["random"], alternative="greater").pvalue)
        for w in ("default", "evolution")
    }
    bound = score_bound(score.lut, score.config).score
    return {
        "hyperspace": name,
        "constraints_ms": constraints_ms,
        "best": best["space"],
        "best_score": best["score"],
        "bound": bound,
        "within_bound_percent": 100 * (bound / best["score"] - 1),
        "published": published,
        "best_uniform": uniform,
        "seeds_at_least_published": sum(f >= max(published.values()) for f in found),
        "median": {w: float(np.median(by_way[w])) for w in WAYS},
        "least": {w: min(by_way[w]) for w in WAYS},
        "better_than_random_p": p_value,
        "runs": runs,
    }


def table(cases: list[dict[str, Any]], seeds: int) -> str:
    """The results as a Markdown table."""
    lines = [
        "| hyperspace | T, ms | best space | score | bound | best published | best uniform "
        "| random, median | evolution, median | default, median | least | ≥ published |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for c in cases:
        constraints = ", ".join(f"{T:g}" for T in c["constraints_ms"])
        median = c["median"]
        lines.append(
            f"| {c['hyperspace']} | {constraints} | `{c['best']}` | {c['best_score']:.4f} "
            f"| {c['bound']:.4f} | {max(c['published'].values()):.4f} | {c['best_uniform']:.4f} "
            f"| {median['random']:.4f} | {median['evolution']:.4f} | {median['default']:.4f} "
            f"| {c['least']['default']:.4f} | {c['seeds_at_least_published']} of {seeds} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("published", type=Path, help="folder of the published LUTs")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=5000)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        jobs = [
            pool.submit(one_case, options.published, case, options.seeds, options.evaluations)
            for case in SETS
        ]
        cases = [job.result() for job in jobs]
    result = {
        **provenance("numpy"),
        "evaluations": options.evaluations,
        "seeds": options.seeds,
        "other_stages_ms": OTHER_MS,
        "cases": cases,
    }
    write_atomically(options.output, to_json(json.loads(to_json(result))))
    print(table(cases, options.seeds))


if __name__ == "__main__":
    main()
