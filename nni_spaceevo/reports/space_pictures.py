"""The pictures of the report of a search: one small drawing each, which a phone can stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..page import Html, drawing, plain_ticks, svg, tag
from .space_study import Points, SpaceFigures, SpaceStudy, StageFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE_INCHES = (4.0, 2.9)
# More dots than these are one cloud, and make a large page.
_DOTS = 1500
_INK, _SOFT, _FAINT = "#202428", "#8a9099", "#c6cbd1"
_COLOURS = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#e15759"),
    *("#2aa198", "#9c755f", "#d37295", "#b6992d", "#6b6ecf"),
)
# Beyond ten block types colours repeat with other lines.
_LINES = (("-", "solid"), ("--", "dashed"), (":", "dotted"), ("-.", "double"))


def colour_key(study: SpaceStudy, with_best: bool) -> Html:
    """What the lines of pictures are: block types, and the best space."""
    lines = [("best space found", f"4px solid {_INK}")] if with_best else []
    lines += [
        (name, f"3px {line[1]} {colour}")
        for name, (colour, line) in _styles(study.stages[0]).items()
    ]
    spans = (tag("span", name, style=f"border-bottom: {line}") for name, line in lines)
    return tag("div", *spans, class_="key")


def _styles(stage: StageFigures) -> dict[str, tuple[str, tuple[str, str]]]:
    """Colour and line of each block type, the same everywhere."""
    return {
        block.block_type: (_COLOURS[i % len(_COLOURS)], _LINES[i // len(_COLOURS) % len(_LINES)])
        for i, block in enumerate(stage.blocks)
    }


@contextmanager
def _picture(title: str, made: list[Html], **labels: str) -> Iterator[Axes]:
    """Axes to draw on; appends the finished drawing to `made`."""
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        yield axes
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set(**labels)
        plain_ticks(axes)
        made.append(tag("div", svg(figure, title)))


def _constraints(axes: Axes, constraints_ms: Sequence[float]) -> None:
    for T in constraints_ms:
        axes.axvline(T, color=_SOFT, lw=1, ls="--", zorder=1)
        axes.text(
            *(T, 0.98, f"T = {T:g} ms "),
            transform=axes.get_xaxis_transform(),
            rotation=90,
            ha="right",
            va="top",
            fontsize=8,
            color=_INK,
            bbox={"color": "white", "alpha": 0.8, "pad": 0.5},
        )


def _lines(study: SpaceStudy) -> Iterator[tuple[SpaceFigures, dict[str, Any]]]:
    """The spaces, each with how its line is drawn; the best on top."""
    styles = _styles(study.stages[0])
    for space in reversed(study.uniform):
        colour, (line, _) = styles[space.name]
        yield space, {"color": colour, "ls": line, "lw": 1.4}
    yield study.best, {"color": _INK, "lw": 2.6}


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


# ---- the search ----------------------------------------------------------------------------------


def search_picture(study: SpaceStudy) -> Html:
    """Score over evaluations."""
    made: list[Html] = []
    with _picture(
        "Score over evaluations", made, xlabel="scored spaces", ylabel="Q-T score"
    ) as axes:
        scores = np.array(study.scores)
        order = np.arange(1, len(scores) + 1)
        shown = slice(None, None, -(-len(scores) // _DOTS))
        axes.plot(order[shown], scores[shown], ".", color=_FAINT, ms=3, label="scored space")
        so_far = np.maximum.accumulate(scores)
        rises = np.flatnonzero(np.diff(so_far, prepend=-np.inf))
        # To beyond the last space, so that one space alone has a line too.
        x, y = [*order[rises], len(scores) + 1], [*so_far[rises], so_far[-1]]
        axes.step(x, y, where="post", color=_INK, lw=2, label="best so far")
        uniform = study.uniform[0].score
        axes.axhline(uniform, color="#e0701a", ls="--", lw=1.4, label="best uniform space")
        axes.axhline(study.bound.score, color="#1b7f4b", ls=":", lw=1.8, label="proven bound")
        axes.figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return made[0]


def front_picture(study: SpaceStudy) -> Html:
    """What the best subnet loses, over its latency."""
    made: list[Html] = []
    labels = {"xlabel": "INT8 latency, ms", "ylabel": "loss of the best subnet"}
    with _picture("The best subnet within each latency", made, **labels) as axes:
        for space, line in _lines(study):
            x, y = _xy(space.front)
            axes.step(x, y, where="post", **line)
        _constraints(axes, study.scoring.constraints_ms)
    return made[0]


# ---- distributions -------------------------------------------------------------------------------


def latency_picture(study: SpaceStudy) -> Html:
    """How latencies are distributed."""
    made: list[Html] = []
    labels = {"xlabel": "INT8 latency, ms", "ylabel": "share of subnets per step, %"}
    with _picture("Latencies of all subnets", made, **labels) as axes:
        for space, line in _lines(study):
            x, y = _xy(space.latencies)
            if space is study.best:
                axes.fill_between(x, 100 * np.array(y), step="mid", color=_FAINT, alpha=0.5, lw=0)
            axes.step(x, 100 * np.array(y), where="mid", **line)
        axes.set_xscale("log")
        # Room for the constraints' names.
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
        _constraints(axes, study.scoring.constraints_ms)
    return made[0]


def loss_pictures(study: SpaceStudy) -> list[Html]:
    """How losses are distributed within each constraint."""
    made: list[Html] = []
    top = study.scoring.top / study.scoring.samples
    labels = {"xlabel": "loss", "ylabel": "share of all subnets, %"}
    for i, T in enumerate(study.scoring.constraints_ms):
        with _picture(f"Losses within T = {T:g} ms", made, **labels) as axes:
            for space, line in _lines(study):
                x, y = _xy(space.losses[i])
                axes.plot(x, 100 * np.array(y), **line)
            axes.set_yscale("log")
            for share, text in ((study.scoring.t, "wanted"), (top, "scored")):
                axes.axhline(100 * share, color=_SOFT, lw=1, ls="--", zorder=1)
                axes.text(
                    *(1, 100 * share, f"{100 * share:g} % {text}"),
                    transform=axes.get_yaxis_transform(),
                    ha="right",
                    va="bottom",
                    fontsize=8,
                )
    return made


# ---- stages --------------------------------------------------------------------------------------


def stage_pictures(study: SpaceStudy) -> list[Html]:
    """Latency and loss of each stage by block type."""
    made: list[Html] = []
    labels = {"xlabel": "INT8 latency of the stage, ms", "ylabel": "loss of the stage"}
    for i, stage in enumerate(study.stages):
        ms, loss = study.reference.stage_ms[i], study.reference.stage_losses[i]
        with _picture(f"{stage.stage}: {stage.block_type}", made, **labels) as axes:
            styles = _styles(stage)
            for block in stage.blocks:
                colour, (line, _) = styles[block.block_type]
                chosen = block.block_type == stage.block_type
                x, y = _xy(block.front)
                axes.step(
                    x,
                    y,
                    where="post",
                    color=colour,
                    ls=line,
                    lw=3 if chosen else 1.4,
                    zorder=3 if chosen else 2,
                )
            axes.axhline(loss, color=_SOFT, lw=1, ls="--", zorder=1)
            axes.plot([ms], [loss], "o", color=_INK, ms=6, zorder=4)
            axes.set_xscale("log")
    return made
