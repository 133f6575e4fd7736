"""The report of a search: the best space beside the manually designed and the random ones."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import to_json, write_atomically
from ..hyperspace import Hyperspace, SpaceCode
from ..jobs.command import program
from ..jobs.job import Job
from ..jobs.prepare import stored_lut
from ..jobs.results import LOCAL, SearchResults, last_search
from ..jobs.scoring import score_config
from ..lut import QuantizedLUT
from ..search import BATCH, QTConfig, SpaceScore, make_scorer, sample_subnets

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANDOM_SPACES = 101
_SCATTER = 1500


@dataclass(frozen=True)
class Comparison:
    """The best space found, beside what it has to beat.

    Attributes
    ----------
    best : the best space of the search
    uniform : the manually designed spaces, best first
    random : scores of random spaces, ascending
    """

    best: SpaceScore
    uniform: tuple[SpaceScore, ...]
    random: tuple[float, ...]

    @property
    def random_median(self) -> float:
        """Score of the median random space."""
        return statistics.median(self.random)


def compare(lut: QuantizedLUT, best: SpaceCode, config: QTConfig) -> Comparison:
    """Score the best space, all uniform spaces and random ones in the same way."""
    hyperspace = lut.hyperspace
    score = make_scorer(lut, config)
    codes = dict.fromkeys(hyperspace.uniform_spaces())
    uniform = sorted(map(score, codes), key=lambda s: (-s.score, s.code))
    rng = np.random.default_rng(config.seed)
    drawn = (hyperspace.random_space(rng) for _ in range(RANDOM_SPACES))
    random = sorted(score(code).score for code in drawn)
    return Comparison(score(best), tuple(uniform), tuple(random))


def write_report(job: Job, results: SearchResults | None = None) -> Path:
    """Write `report.md`, `report.json` and `report.png`.

    Parameters
    ----------
    job : whose LUT and constraints the scores come from
    results : the search; by default the job's last one

    Raises
    ------
    ConfigError
        Nothing has been searched yet, or by other settings than the job has now.

    Returns
    -------
    the folder: the job's report folder, or a folder beside it for a search without NNI
    """
    results = results or last_search(job)
    hyperspace = job.hyperspace
    lut = stored_lut(job)
    config = score_config(job, results.constraints_ms)
    comparison = compare(lut, hyperspace.space(results.best.space), config)
    folder = job.work / "local_report" if results.experiment == LOCAL else job.report_path
    write_atomically(folder / "report.md", format_comparison(job, results, comparison, folder))
    write_atomically(folder / "report.json", to_json(_as_data(hyperspace, results, comparison)))
    _draw(folder / "report.png", lut, results, comparison, config)
    return folder


def _rank(comparison: Comparison) -> int:
    """How many in a hundred random spaces score below the best."""
    below = sum(score < comparison.best.score for score in comparison.random)
    return round(100 * below / len(comparison.random))


def format_comparison(
    job: Job, results: SearchResults, comparison: Comparison, folder: Path
) -> str:
    """The report as Markdown that reads well in a terminal."""
    hyperspace, best = job.hyperspace, comparison.best
    constraints = " / ".join(f"{T:g}" for T in results.constraints_ms)
    rows = [("best space found", best)]
    rows += [(f"uniform {_block_name(hyperspace, s.code)}", s) for s in _best_of_each(comparison)]
    lines = [
        f"# Search space for {hyperspace.name}, INT8 latency within {constraints} ms",
        "",
        f"Best of {len(results.spaces)} scored spaces: **{best.code}**, Q-T score {best.score:.4f}",
        "",
        "| space | code | Q-T score | within T | top loss | subnets, ms |",
        "|---|---|---|---|---|---|",
        *(_table_row(name, score) for name, score in rows),
        f"| median of {RANDOM_SPACES} random spaces | | {comparison.random_median:.4f} | | | |",
        "",
        f"It scores {_over(best.score, comparison.uniform[0].score)} the best uniform "
        f"(manually designed) space, {_over(best.score, comparison.random_median)} the "
        f"median random space, and above {_rank(comparison)} % of the random spaces.",
        "",
        "| stage | block type | widths |",
        "|---|---|---|",
        *_stage_rows(hyperspace, best.code),
        "",
        f"Picture: {folder / 'report.png'}",
        "",
        *_next_command(job, results, best.code),
    ]
    return "\n".join(lines)


def _over(score: float, other: float) -> str:
    """How much higher a score is than another, which is 0 where nothing keeps within T."""
    return f"{score / other - 1:+.1%} against" if other else "something, where there is 0 for"


def _next_command(job: Job, results: SearchResults, best: SpaceCode) -> list[str]:
    if results.experiment != LOCAL:
        what = "Next, score thousands of spaces in this process:"
        command = f"search --job {job.path} --evaluations 3000"
    else:
        what = "Next, see what its smallest and largest subnets cost:"
        command = f"predict --job {job.path} --space {best}"
    return [what, "", f"    {program('spaceevo')} {command}", ""]


def _best_of_each(comparison: Comparison) -> list[SpaceScore]:
    """The best uniform space of each block type."""
    found: dict[int, SpaceScore] = {}
    for score in comparison.uniform:
        found.setdefault(score.code.blocks[0], score)
    return list(found.values())


def _block_name(hyperspace: Hyperspace, code: SpaceCode) -> str:
    return hyperspace.block_types[code.blocks[0]].type


def _table_row(name: str, s: SpaceScore) -> str:
    shares = " / ".join(f"{share:.1%}" for share in s.shares)
    losses = " / ".join("-" if loss == float("inf") else f"{loss:.3f}" for loss in s.top_losses)
    span = f"{s.min_ms:.3f} to {s.max_ms:.3f}"
    return f"| {name} | {s.code} | {s.score:.4f} | {shares} | {losses} | {span} |"


def _stage_rows(hyperspace: Hyperspace, code: SpaceCode) -> list[str]:
    chosen = zip(hyperspace.searchable, code.blocks, code.windows, strict=True)
    return [
        f"| {stage.name} | {hyperspace.block_types[block].type} | "
        f"{', '.join(map(str, stage.windows[window]))} |"
        for stage, block, window in chosen
    ]


def _as_data(
    hyperspace: Hyperspace, results: SearchResults, comparison: Comparison
) -> dict[str, Any]:
    best = comparison.best
    return {
        "schema": 1,
        "hyperspace": hyperspace.name,
        "constraints_ms": list(results.constraints_ms),
        "scored_spaces": len(results.spaces),
        "best": {
            "space": str(best.code),
            "qt_score": best.score,
            "shares": list(best.shares),
            "top_losses": [None if v == float("inf") else v for v in best.top_losses],
            "min_ms": best.min_ms,
            "max_ms": best.max_ms,
            "stages": hyperspace.parameters(best.code),
        },
        "uniform": [{"space": str(s.code), "qt_score": s.score} for s in comparison.uniform],
        "random": {"spaces": RANDOM_SPACES, "median_qt_score": comparison.random_median},
    }


# ---- picture ----


def _draw(
    path: Path,
    lut: QuantizedLUT,
    results: SearchResults,
    comparison: Comparison,
    config: QTConfig,
) -> None:
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure of its own, not pyplot's: the report is also written in NNI's threads.
    figure = Figure(figsize=(13, 8), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[3, 1.3])
    _draw_scores(figure.add_subplot(grid[0, 0]), results, comparison)
    _draw_subnets(figure.add_subplot(grid[0, 1]), lut, comparison, config)
    _draw_spaces(figure.add_subplot(grid[1, :]), lut.hyperspace, comparison)
    title = f"{comparison.best.code}   on {lut.header.device}"
    figure.suptitle(title, fontsize=14)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_atomically(path, buffer.getvalue())


def _draw_scores(axes: Axes, results: SearchResults, comparison: Comparison) -> None:
    scores = [s.score for s in results.spaces]
    order = range(1, len(scores) + 1)
    axes.plot(order, scores, "o", color="0.65", markersize=4, label="scored space")
    axes.step(order, np.maximum.accumulate(scores), where="post", color="C0", label="best so far")
    axes.axhline(comparison.uniform[0].score, color="C1", ls="--", label="best uniform space")
    axes.axhline(comparison.random_median, color="C3", ls=":", label="median random space")
    axes.set(xlabel="scored spaces", ylabel="Q-T score", title="Search")
    axes.legend(loc="lower right")


def _draw_subnets(axes: Axes, lut: QuantizedLUT, comparison: Comparison, config: QTConfig) -> None:
    rng = np.random.default_rng(0)
    pairs = (
        ("best uniform space", comparison.uniform[0], "C1"),
        ("best space", comparison.best, "C0"),
    )
    for name, score, colour in pairs:
        # A resolution is drawn for 500 subnets at a time: few batches would show few resolutions.
        loss, latency = sample_subnets(lut, score.code, 50 * BATCH, rng)
        shown = rng.choice(len(loss), _SCATTER, replace=False)
        axes.plot(
            latency[shown], loss[shown], ".", color=colour, alpha=0.35, markersize=4, label=name
        )
    for T in config.constraints_ms:
        axes.axvline(T, color="0.2", lw=1, ls="--")
        axes.annotate(f" T = {T:g} ms", (T, axes.get_ylim()[1]), va="top", fontsize=9)
    axes.set(xlabel="predicted INT8 latency, ms", ylabel="sum of NSR losses", title="Subnets")
    axes.legend(loc="upper right", markerscale=3)


def _draw_spaces(axes: Axes, hyperspace: Hyperspace, comparison: Comparison) -> None:
    """A row of boxes a space: the block type and widths of every stage."""
    from matplotlib.patches import Rectangle

    rows = (("best", comparison.best.code), ("best uniform", comparison.uniform[0].code))
    for y, (name, code) in enumerate(reversed(rows)):
        axes.text(-0.05, y + 0.5, name, ha="right", va="center")
        chosen = zip(hyperspace.searchable, code.blocks, code.windows, strict=True)
        for x, (stage, block, window) in enumerate(chosen):
            box = Rectangle((x, y + 0.06), 0.96, 0.88, color=f"C{block}", alpha=0.45)
            axes.add_patch(box)
            widths = stage.windows[window]
            label = f"{hyperspace.block_types[block].type}\n{widths[0]} to {widths[-1]} channels"
            axes.text(x + 0.48, y + 0.5, label, ha="center", va="center", fontsize=9)
    stages = hyperspace.searchable
    for x, stage in enumerate(stages):
        axes.text(x + 0.48, len(rows) + 0.08, stage.name, ha="center", va="bottom")
    axes.set(xlim=(-0.6, len(stages)), ylim=(0, len(rows) + 0.35))
    axes.axis("off")
