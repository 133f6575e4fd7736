"""Pictures of predictors: how well one predicts, and latencies over channels.

Drawn in the style of the pages; equal data give equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import write_atomically
from ..page import Html, drawing, plain_ticks, svg
from .comparison import VECTOR, StepCurve
from .features import FloatArray
from .report import KERNELS_WITHIN_10, KERNELS_WITHIN_10_ELSE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2166ac", "#d6742a", "#8a8f98"
# Networks whose latencies span more than this are drawn on logarithmic axes.
_WIDE_SPAN = 8.0
_COLUMNS = 3


def write_accuracy_plot(report: dict[str, Any], path: Path) -> None:
    """Draw how well a predictor predicts, as PNG; equal reports give equal files.

    Parameters
    ----------
    report : `LatencyPredictor.report`
    path : the picture to write

    Raises
    ------
    FileAccessError
        The picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with drawing():
        # The default metadata names matplotlib's version.
        canvas = FigureCanvasAgg(_accuracy_figure(report))
        canvas.print_png(buffer, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def accuracy_svg(report: dict[str, Any]) -> Html:
    """The same picture as `write_accuracy_plot`, as an `<svg>` element."""
    with drawing():
        return svg(_accuracy_figure(report), "predicted against measured, and kernel errors")


def steps_svg(curves: Sequence[StepCurve]) -> Html:
    """Microseconds over channels, one panel a curve, as an `<svg>` element.

    Parameters
    ----------
    curves : n of them, at least one
    """
    from matplotlib.figure import Figure

    rows = -(-len(curves) // _COLUMNS)
    with drawing():
        figure = Figure(figsize=(11, 2.8 * rows), dpi=100, layout="constrained")
        panels = figure.subplots(rows, _COLUMNS, squeeze=False)
        for axes in panels.flat[len(curves) :]:
            axes.set_visible(False)
        for axes, curve in zip(panels.flat, curves, strict=False):
            _draw_steps(axes, curve)
        for axes in panels[:, 0]:
            axes.set_ylabel("microseconds")
        panels[0, 0].legend(loc="upper left", fontsize=8)
        return svg(figure, "microseconds over channels")


# ---- accuracy ------------------------------------------------------------------------------------


def _accuracy_figure(report: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=80, layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 0.9])
    pairs = report.get("predicted_and_measured_ms", {})
    named = (
        ("used for calibration", pairs.get("calibration_networks", []), GREY, "x"),
        ("held out", pairs.get("networks", []), BLUE, "o"),
    )
    drawn = [(name, np.array(p, float), c, m) for name, p, c, m in named if len(p)]
    for axes in (left, middle):
        axes.set_xlabel("measured, ms")
    left.set(ylabel="predicted, ms", title="Whole networks")
    middle.set(ylabel="error, % of measured", title="Their errors")
    if drawn:
        _draw_networks(left, middle, drawn)
    else:
        left.text(0.5, 0.5, "no networks kept", ha="center", transform=left.transAxes)
    _draw_kernel_errors(right, report.get("kernels", {}))
    return figure


def _draw_networks(
    left: Axes, right: Axes, drawn: Sequence[tuple[str, FloatArray, str, str]]
) -> None:
    measured = np.concatenate([pairs[:, 1] for _, pairs, _, _ in drawn])
    low, high = 0.9 * measured.min(), 1.1 * measured.max()
    span = np.geomspace(low, high, 50)
    for percent, shade in ((10, "#eef3f9"), (5, "#d9e6f3")):
        label = f"within {percent} %"
        left.fill_between(
            span, span * (1 - percent / 100), span * (1 + percent / 100), color=shade, label=label
        )
        right.axhspan(-percent, percent, color=shade, lw=0)
    for name, pairs, colour, marker in drawn:
        error = 100 * (pairs[:, 0] / pairs[:, 1] - 1)
        style: dict[str, Any] = {"color": colour, "ls": "none", "ms": 4, "alpha": 0.8}
        left.plot(pairs[:, 1], pairs[:, 0], marker, label=name, **style)
        right.plot(pairs[:, 1], error, marker, **style)
    right.axhline(0, color=GREY, lw=0.8)
    largest = max(float(np.abs(100 * (p[:, 0] / p[:, 1] - 1)).max()) for _, p, _, _ in drawn)
    right.set_ylim(-max(12.0, 1.1 * largest), max(12.0, 1.1 * largest))
    left.set(xlim=(low, high), ylim=(low, high))
    left.legend(loc="upper left", fontsize=8)
    if high > _WIDE_SPAN * low:
        left.set_yscale("log")
        for axes in (left, right):
            axes.set_xscale("log")
            plain_ticks(axes)


def _draw_kernel_errors(axes: Axes, kernels: dict[str, Any]) -> None:
    """A bar a kernel type: shares of held-out kernels within 5 and 10 %, and what is asked for."""
    rows = [(kind, row) for kind, row in sorted(kernels.items(), reverse=True) if row["count"]]
    for y, (kind, row) in enumerate(rows):
        first = y == len(rows) - 1
        for share, colour, height in (("10", "#bcd3e8", 0.68), ("5", BLUE, 0.34)):
            label = f"within {share} %" if first else None
            axes.barh(y, row[f"within_{share}"], color=colour, height=height, label=label)
        wanted = KERNELS_WITHIN_10.get(kind, KERNELS_WITHIN_10_ELSE)
        label = "10 % wanted" if first else None
        axes.plot([wanted, wanted], [y - 0.42, y + 0.42], color=ORANGE, lw=1.5, label=label)
    names = [f"{kind}  ({row['count']})" for kind, row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.grid(axis="y", visible=False)
    axes.set(xlim=(0, 101), title="Held-out kernels (count)", xlabel="% of kernels")
    if rows:
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.4, -0.13)}
        axes.legend(**place, ncols=3, fontsize=8, reverse=True)


# ---- steps ---------------------------------------------------------------------------------------


def _draw_steps(axes: Axes, curve: StepCurve) -> None:
    """Two lines, for the two sides of a step; only sides of which anything was measured."""
    whole = curve.widths % VECTOR == 0
    groups = (
        (f"multiples of {VECTOR}", whole, curve.measured[:, 0] % VECTOR == 0, BLUE),
        ("other multiples of 8", ~whole, curve.measured[:, 0] % VECTOR != 0, ORANGE),
    )
    for name, line, points, colour in groups:
        if not points.any():
            continue
        widths, us = curve.measured[points].T
        axes.plot(curve.widths[line], curve.predicted_us[line], color=colour, lw=1.2, label=name)
        axes.plot(widths, us, "o", color=colour, ms=3.5)
    axes.set_title(curve.title, fontsize=9)
    axes.set_xlabel("channels")
    highest = max(curve.predicted_us.max(initial=0), curve.measured[:, 1].max())
    axes.set_ylim(0, 1.08 * highest)
