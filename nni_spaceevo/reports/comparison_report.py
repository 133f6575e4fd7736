"""The searched space against manually designed ones: a table, a picture, and what they say."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files import write_atomically
from ..jobs.comparison import SEARCHED, Comparison, Entry
from ..page import drawing

# The searched space's, then others'.
_COLOURS = ("#2166ac", "#d6742a", "#5aa469", "#8e6bbf", "#b5485d", "#7a7f87")


def write_comparison_report(found: Comparison, folder: Path) -> Path:
    """Write `report.md` and `comparison.png`.

    Returns
    -------
    the report's path

    Raises
    ------
    FileAccessError
        The folder cannot be written.
    """
    write_atomically(folder / "comparison.png", _picture(found))
    path = folder / "report.md"
    write_atomically(path, _text(found))
    return path


def conclusions(found: Comparison) -> list[str]:
    """A sentence for each other space: whether the searched one is more accurate, just as fast."""
    return [_conclusion(found, other.name) for other in found.contenders[1:]]


def _conclusion(found: Comparison, name: str) -> str:
    gaps = [gap for gap in found.gaps if gap.contender == name]
    points = [p for gap in gaps for p in gap.points]
    faster = sum(gap.faster for gap in gaps)
    alone = f" {faster} of its subnets are faster than any searched one." if faster else ""
    if not points:
        return f"- {name}: no latency that both reach, so nothing to compare.{alone}"
    means = [float(np.mean(gap.points)) for gap in gaps if gap.points]
    ahead, error = sum(p > 0 for p in points), _error(found, name)
    if len(means) < 2:
        verdict = "**one seed, which does not tell**"
    elif abs(np.mean(means)) < 2 * error or min(means) < 0 < max(means):
        verdict = "**not distinguishable**"
    elif np.mean(means) > 0:
        verdict = "the searched space is more accurate"
    else:
        verdict = "the searched space is **less accurate**"
    return (
        f"- {name}: {verdict}, {_spread(means, '+.2f')} points on average of {len(means)} seed(s), "
        f"where a difference of two subnets has a standard error of {error:.2f}; it is the better "
        f"one at {ahead} of {len(points)} latencies.{alone}"
    )


def _error(found: Comparison, name: str) -> float:
    """Standard error of a difference of two accuracies, in points, as if of separate images."""
    accuracies = [e.accuracy for e in found.entries if e.contender in (SEARCHED, name)]
    p = float(np.mean(accuracies))
    return 100 * float(np.sqrt(2 * p * (1 - p) / found.images))


def _text(found: Comparison) -> str:
    machine, names = found.machine, {c.name: c for c in found.contenders}
    seeds = ", ".join(map(str, found.seeds))
    left_out = f" Left out: all {', all '.join(found.left_out)}." if found.left_out else ""
    lines = [
        "# Searched and manually designed spaces",
        "",
        f"INT8 subnets, measured by turns on {machine.cpu} with {machine.runtime}, "
        f"{machine.threads} thread(s). Supernets of all spaces have the same settings; seeds: "
        f"{seeds}. After ± is the standard deviation over seeds.",
        "",
        "| space | Q-T score | T, ms | predicted, ms | measured, ms | accuracy, % | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, contender in names.items():
        for T in found.constraints_ms:
            entries = [e for e in found.entries if (e.contender, e.constraint_ms) == (name, T)]
            cells = _cells(entries) if entries else ["", "no subnet as fast", "", "0"]
            row = [f"{name} `{contender.space}`", f"{contender.score:.4f}", f"{T:g}", *cells]
            lines.append(f"| {' | '.join(row)} |")
    lines += [
        "",
        "Each subnet is the best that its search has found within T on one half of the held-out "
        f"images; its accuracy is on the other half, {found.images:,} images. Uniform spaces have "
        "one block type and one window index, the one with the highest Q-T score, which is of "
        f"T = {_list(found.scored_ms)} ms.{left_out}",
        "",
        "![Accuracy against measured latency](comparison.png)",
        "",
        "At equal measured latency:",
        "",
        *conclusions(found),
        "",
        "Compared is at each measured latency of a searched subnet, of the same seed, what both "
        "spaces reach within it; between two subnets accuracy is interpolated, as if the other "
        "space had one of every latency. Distinguishable are spaces whose difference is over two "
        "standard errors and has the same sign with every seed. Which window is best for a uniform "
        "space the Q-T score says; where block losses rank badly, another one may be better.",
    ]
    return "\n".join(lines) + "\n"


def _cells(entries: Sequence[Entry]) -> list[str]:
    return [
        _spread([e.found.predicted_ms for e in entries], ".4f"),
        _spread([e.measured.median_ms for e in entries], ".4f"),
        _spread([100 * e.accuracy for e in entries], ".2f"),
        str(len(entries)),
    ]


def _list(values: Sequence[float]) -> str:
    return " and ".join(f"{value:g}" for value in values)


def _spread(values: Sequence[float], style: str) -> str:
    """The mean, and the standard deviation of several."""
    mean = f"{np.mean(values):{style}}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {np.std(values, ddof=1):{style.removeprefix('+')}}"


def _picture(found: Comparison) -> bytes:
    """Accuracy against measured latency, a line a seed."""
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with drawing():
        figure = Figure(figsize=(7.5, 4.5), layout="constrained", dpi=110)
        axes = figure.subplots()
        for i, contender in enumerate(found.contenders):
            colour = _COLOURS[min(i, len(_COLOURS) - 1)]
            is_searched = contender.name == SEARCHED
            label: str | None = contender.name
            for seed in found.seeds:
                entries = sorted(found.of(contender.name, seed), key=lambda e: e.measured.median_ms)
                if not entries:
                    continue
                axes.plot(
                    [e.measured.median_ms for e in entries],
                    [100 * e.accuracy for e in entries],
                    "D-" if is_searched else "o-",
                    color=colour,
                    label=label,
                    linewidth=1.6 if is_searched else 1,
                    markersize=5 if is_searched else 4,
                    zorder=3 if is_searched else 2,
                )
                label = None
        axes.set_xlabel("measured INT8 latency, ms")
        axes.set_ylabel("INT8 accuracy on unseen held-out images, %")
        axes.legend(loc="lower right")
        figure.savefig(buffer, metadata={"Software": None})
    return buffer.getvalue()
