"""What scoring a space and searching a hyperspace cost, on the published LUTs.

Measures, in one run and interleaved: one evaluation by the published procedure written plainly
(loops over a list of dicts, as the paper's pseudo-code), by the vectorised sampled estimator and by
the exact one; the exact one again on hyperspaces of 10^4 to 10^9 spaces; and whole searches of
`mobilew` from the command line, start-up included, with the memory that they take. Writes
`space_search.json` beside this script.

    python benchmarks/space_search.py PUBLISHED
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from nni_spaceevo.files import to_json, write_atomically
from nni_spaceevo.hyperspace import Hyperspace, SpaceCode, load_hyperspace
from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.search import ExactScorer, QTConfig, SampledScorer

CONSTRAINTS = (15.0, 20.0)
EVALUATIONS, SEED = 5000, 7
# The plain procedure takes a good part of a second for each space.
PLAIN_SPACES, SPACES, ROUNDS = 6, 60, 3
# Stem and head, which the published files lack: about what the exact latencies of the x86 ones are.
OTHER_MS = 2.0
PUBLISHED_SPACES = ("mobilew-122222-155400", "mobilew-332160-134200", "mobilew-112220-154410")


def plain_score(cells: list[dict[int, list[dict[str, float]]]], config: QTConfig) -> float:
    """The published procedure as pseudo-code: draw subnets one by one, then look at them."""
    total, drawn = 0.0, []
    for _ in range(config.samples // 500):
        resolution = random.choice(list(cells[0]))
        for _ in range(500):
            rows = [random.choice(cell[resolution]) for cell in cells]
            drawn.append(
                {
                    "loss": sum(row["loss"] for row in rows),
                    "latency": OTHER_MS + sum(row["latency"] for row in rows),
                }
            )
    for T in config.constraints_ms:
        within = [subnet for subnet in drawn if subnet["latency"] <= T]
        if not within:
            continue
        within.sort(key=lambda subnet: subnet["loss"])
        best = within[: config.top]
        top_loss = sum(subnet["loss"] for subnet in best) / len(best)
        p = len(within) / len(drawn) + 1e-5
        total += 1 / (max(1, (config.t / p) ** config.a) * top_loss)
    return total


def plain_cells(lut: QuantizedLUT, code: SpaceCode) -> list[dict[int, list[dict[str, float]]]]:
    """The rows of a space as the plain procedure keeps them."""
    cells = []
    for stage, (block, window) in enumerate(zip(code.blocks, code.windows, strict=True)):
        by_resolution = {}
        for r in lut.hyperspace.distill_resolutions:
            rows = zip(*(v.tolist() for v in lut.cell(stage, block, window, r)), strict=True)
            by_resolution[r] = [{"loss": loss, "latency": ms} for loss, ms in rows]
        cells.append(by_resolution)
    return cells


def per_call(work: Callable[[SpaceCode], Any], codes: list[SpaceCode]) -> float:
    """Seconds of one call, over all codes."""
    start = time.perf_counter()
    for code in codes:
        work(code)
    return (time.perf_counter() - start) / len(codes)


def evaluation_times(lut: QuantizedLUT) -> dict[str, float]:
    """Milliseconds of an evaluation, the median of interleaved rounds, and ratios."""
    config = QTConfig(constraints_ms=CONSTRAINTS)
    rng = np.random.default_rng(0)
    codes = [lut.hyperspace.random_space(rng) for _ in range(SPACES)]
    plain = [plain_cells(lut, code) for code in codes[:PLAIN_SPACES]]
    by_code = dict(zip(codes, plain, strict=False))
    sampled, exact = SampledScorer(lut, config), ExactScorer(lut, config)
    # A cell is transformed once, when it is first met.
    per_call(exact, codes)
    ways: dict[str, tuple[Callable[[SpaceCode], Any], list[SpaceCode]]] = {
        "plain": (lambda code: plain_score(by_code[code], config), codes[:PLAIN_SPACES]),
        "sampled": (sampled, codes),
        "exact": (exact, codes),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (work, spaces) in ways.items():
            taken[name].append(1e3 * per_call(work, spaces))
    found = {f"{name}_ms": round(float(np.median(t)), 3) for name, t in taken.items()}
    for name in ("sampled", "exact"):
        found[f"plain_over_{name}"] = round(found["plain_ms"] / found[f"{name}_ms"], 1)
    return found


def of_fewer_blocks(lut: QuantizedLUT, count: int) -> QuantizedLUT:
    """The LUT with its first block types alone."""
    fields = {f: getattr(lut.hyperspace, f) for f in lut.hyperspace.__struct_fields__}
    fewer = Hyperspace(**fields | {"block_types": lut.hyperspace.block_types[:count]})
    kept = lut.columns["block"] < count
    columns = {name: column[kept] for name, column in lut.columns.items()}
    return replace(lut, columns=columns, hyperspace=fewer)


def scaling(lut: QuantizedLUT) -> list[dict[str, float]]:
    """Exact evaluations on hyperspaces of more and more spaces, in interleaved rounds."""
    rng = np.random.default_rng(1)
    config = QTConfig(constraints_ms=CONSTRAINTS)
    cases = []
    for count in (1, 2, 4, len(lut.hyperspace.block_types)):
        smaller = of_fewer_blocks(lut, count)
        codes = [smaller.hyperspace.random_space(rng) for _ in range(SPACES)]
        scorer = ExactScorer(smaller, config)
        per_call(scorer, codes)
        cases.append((smaller.hyperspace.num_spaces, scorer, codes, []))
    for _ in range(ROUNDS):
        for _, scorer, codes, taken in cases:
            taken.append(1e3 * per_call(scorer, codes))
    return [
        {"spaces": spaces, "exact_ms": round(float(np.median(taken)), 3)}
        for spaces, _, _, taken in cases
    ]


def whole_search(path: Path, folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Seconds and megabytes of `spaceevo search`, start-up included, and its best space."""
    output = folder / f"search{len(list(folder.iterdir()))}"
    command = [sys.executable, "-m", "nni_spaceevo.cli", "search", "--lut", str(path)]
    command += ["--constraint-ms", *map(str, CONSTRAINTS), "--evaluations", str(EVALUATIONS)]
    command += ["--seed", str(SEED), "--output", str(output), "--no-report", *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    results = json.loads((output / "search.json").read_text())
    best = max(results["spaces"], key=lambda s: s["score"])["space"]
    return {
        "seconds": round(seconds, 2),
        "peak_mb": round(usage.ru_maxrss / 1024),
        "evaluations": len(results["spaces"]),
        "best": best,
    }


def main() -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("published", type=Path, help="folder of the published LUTs")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    hyperspace = load_hyperspace("mobilew")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "mobilew.lut"
        other = [f"{r}={OTHER_MS}" for r in hyperspace.distill_resolutions]
        source = options.published / "block_lut_mobilew.csv.gz"
        command = [sys.executable, "-m", "nni_spaceevo.cli", "lut", "import", str(source)]
        command += ["--hyperspace", "mobilew", "--output", str(path), "--other-stages-ms", *other]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lut = QuantizedLUT.load(path, hyperspace)
        searches = {}
        for name, arguments in {
            "default": [],
            "published evolution, exact score": ["--evolution-only"],
            "published evolution, sampled score": ["--evolution-only", "--estimator", "sampled"],
        }.items():
            runs = [whole_search(path, Path(place), arguments) for _ in range(ROUNDS)]
            searches[name] = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
        times = evaluation_times(lut)
        sizes = scaling(lut)
        score = ExactScorer(lut, QTConfig(constraints_ms=CONSTRAINTS))
        for found in searches.values():
            found["exact_score"] = round(score(hyperspace.space(found["best"])).score, 5)
        # What the plain procedure would take: its evaluations alone.
        plain_s = EVALUATIONS * times["plain_ms"] / 1e3
        searches["default"]["plain_over_it"] = round(plain_s / searches["default"]["seconds"])
        published = {c: round(score(hyperspace.space(c)).score, 5) for c in PUBLISHED_SPACES}
    result = {
        **provenance("numpy"),
        "constraints_ms": CONSTRAINTS,
        "evaluation": times,
        "by_size_of_the_hyperspace": sizes,
        "search": searches,
        "published_spaces": published,
    }
    write_atomically(options.output, to_json(result))
    print(to_json(result))


if __name__ == "__main__":
    main()
