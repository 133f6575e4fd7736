"""What to say of a predictor fitted to published latencies: shortfalls, notes, table, picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from .features import FloatArray

# Keys of the report, and titles of the picture's panels.
BLOCKS, ROWS, FRESH_ROWS = "held_out_blocks", "held_out_rows", "rows_with_held_out_blocks"
# Shares of rows, in per cent, that must be predicted within 5 and 10 %.
ROWS_WITHIN = {"within_5": 97.0, "within_10": 99.5}


def _shortfalls(report: Mapping[str, Any], key: str) -> list[str]:
    return [
        f"{report[key][share]:.1f} % of {key.replace('_', ' ')} {share.replace('_', ' ')} %, "
        f"expected {wanted:g} %"
        for share, wanted in ROWS_WITHIN.items()
        # Written so that a figure which is not a number fails.
        if not report[key].get(share, 0) >= wanted
    ]


def goal_failures(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What held-out rows should show and do not, one sentence each.

    Parameters
    ----------
    report : with the errors of `ROWS`, rows that were never fitted
    """
    return tuple(_shortfalls(report, ROWS))


def report_notes(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What a user should know of the errors: unseen blocks, and types that are estimated.

    Parameters
    ----------
    report : with the errors of `FRESH_ROWS`; "noisy", whether measurements are remembered; the
        list "estimated", and "estimating", the errors of such estimates where the truth is known
    """
    notes = []
    if report["noisy"]:
        notes.append(
            "the published latencies scatter like single measurements: of published blocks the "
            "prediction repeats the published value, noise included; of other blocks it is what "
            "blocks like them usually take"
        )
    notes += [
        f"blocks without a published latency are predicted less well: {text}"
        for text in _shortfalls(report, FRESH_ROWS)
    ]
    if report["estimated"]:
        least = min(row["within_15"] for row in report["estimating"].values())
        most = max(row["within_15"] for row in report["estimating"].values())
        notes.append(
            f"estimated, for nothing is published of them: {', '.join(report['estimated'])}. Each "
            "kernel is priced by what the published blocks' kernels cost, such as a dense "
            "convolution's multiply-accumulates; a linear layer as a 1x1 convolution of one pixel. "
            f"Published types estimated so from the others: {least:.0f} to {most:.0f} % of blocks "
            "within 15 %. Stem and head differ more: where they are published (Xeon), the head's "
            "estimates are 7 to 26 % too low and the first convolution's 63 to 67 %"
        )
    return tuple(notes)


def format_published(report: Mapping[str, Any]) -> str:
    """The report of a published device's predictor as a short text table.

    Parameters
    ----------
    report : `LatencyPredictor.report`
    """
    lines = [f"{'held out':<27}{'count':>7}{'bias %':>8}{'RMSPE %':>9}{'<5 %':>7}{'<10 %':>7}"]
    for name, row in {**report["kernels"], **{k: report[k] for k in (ROWS, FRESH_ROWS)}}.items():
        if row["count"]:
            numbers = f"{row['bias']:>8.1f}{row['rmspe']:>9.1f}{row['within_5']:>7.1f}"
            lines.append(f"{name:<27}{row['count']:>7}{numbers}{row['within_10']:>7.1f}")
        else:
            lines.append(f"{name:<27}{0:>7}  (too few to hold any out)")
    rows = report[ROWS]
    lines.append(
        f"{rows['blocks_fitted']} of {rows['distinct_blocks']} distinct blocks of the held-out "
        "rows were fitted, in other rows or alone"
    )
    if report["estimated"]:
        lines.append(f"estimated, not fitted: {', '.join(report['estimated'])}")
    return "\n".join(lines)


def draw_report(name: str, pairs: Mapping[str, tuple[FloatArray, FloatArray]]) -> bytes:
    """Predicted against published latencies as a PNG, one panel a protocol.

    Parameters
    ----------
    name : of the predictor
    pairs : predicted and published milliseconds, two arrays of shape (n,), by title
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(pairs), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(name)
    for i, (title, (predicted, published)) in enumerate(pairs.items()):
        axes = figure.add_subplot(1, len(pairs), i + 1)
        limits = [min(published.min(), predicted.min()), max(published.max(), predicted.max())]
        axes.loglog(published, predicted, ".", markersize=2, alpha=0.3, rasterized=True)
        axes.loglog(limits, limits, color="black", linewidth=0.8)
        axes.loglog(limits, [1.1 * v for v in limits], color="black", linewidth=0.5, ls=":")
        axes.loglog(limits, [v / 1.1 for v in limits], color="black", linewidth=0.5, ls=":")
        axes.set_title(f"{title.replace('_', ' ')} ({len(published)})")
        axes.set_xlabel("published ms (dotted: ±10 %)")
        axes.set_ylabel("predicted ms")
    stream = io.BytesIO()
    # Without the software's version the same picture gives the same bytes everywhere.
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()
