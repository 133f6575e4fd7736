"""How well a predictor predicts: error statistics, the gate they must pass, and their table."""

from __future__ import annotations

from typing import Any

import numpy as np

from .features import FloatArray
from .published_report import ROWS, format_published


def error_statistics(predicted: FloatArray, measured: FloatArray) -> dict[str, float | int]:
    """Count, bias, RMSPE, and shares within 5, 10 and 15 %, all but the count in per cent.

    Parameters
    ----------
    predicted, measured : latencies in one unit, shape (n,)
    """
    if not len(measured):
        return {"count": 0}
    error = predicted / measured - 1
    shares = {f"within_{p}": 100 * float(np.mean(np.abs(error) <= p / 100)) for p in (5, 10, 15)}
    rmspe = 100 * float(np.sqrt(np.mean(error**2)))
    return {"count": len(error), "bias": 100 * float(np.mean(error)), "rmspe": rmspe, **shares}


def kendall_tau(a: FloatArray, b: FloatArray) -> float:
    """Kendall's tau-a of two orders of n values; 1 for equal orders, nan for fewer than two."""
    if len(a) < 2:
        return float("nan")
    i, j = np.triu_indices(len(a), 1)
    return float(np.mean(np.sign(a[i] - a[j]) * np.sign(b[i] - b[j])))


# What a predictor must reach on kernels and networks that it was not fitted to.
KERNELS_WITHIN_10 = {"se": 90.0}
KERNELS_WITHIN_10_ELSE = 97.0
NETWORKS_HELD_OUT = 40
NETWORKS_WITHIN_5, NETWORKS_WITHIN_10 = 95.0, 100.0
LEAST_KENDALL_TAU = 0.95
MOST_BIAS_OF_A_THIRD = 1.0


def network_statistics(predicted: FloatArray, measured: FloatArray) -> dict[str, Any]:
    """Errors of whole networks: those of `error_statistics`, the order, and thirds by size.

    Parameters
    ----------
    predicted, measured : latencies in milliseconds, shape (n,)
    """
    report: dict[str, Any] = dict(error_statistics(predicted, measured))
    if len(measured) > 1:
        report["kendall_tau"] = kendall_tau(predicted, measured)
    if len(measured) > 2:
        thirds = np.array_split(np.argsort(measured), 3)
        report["bias_of_thirds"] = [
            100 * float(np.mean(predicted[third] / measured[third] - 1)) for third in thirds
        ]
    return report | {"least_ms": float(measured.min()), "most_ms": float(measured.max())}


def gate_failures(report: dict[str, Any]) -> tuple[str, ...]:
    """What the accuracy gate asks for and a report does not show, one sentence each.

    Parameters
    ----------
    report : errors of "kernels" by type and of "networks", none of them fitted
    """
    failures = []
    for kind, row in report["kernels"].items():
        wanted = KERNELS_WITHIN_10.get(kind, KERNELS_WITHIN_10_ELSE)
        if not row["count"]:
            failures.append(f"{kind}: no kernels held out")
        elif row["within_10"] < wanted:
            failures.append(
                f"{kind}: {row['within_10']:.1f} % of kernels within 10 %, expected {wanted:g} %"
            )
    networks = report["networks"]
    wanted_least = {
        "count": (NETWORKS_HELD_OUT, "{:.0f} held-out networks"),
        "within_5": (NETWORKS_WITHIN_5, "{:.1f} % of networks within 5 %"),
        "within_10": (NETWORKS_WITHIN_10, "{:.1f} % of networks within 10 %"),
        "kendall_tau": (LEAST_KENDALL_TAU, "Kendall's tau {:.3f}"),
    }
    for key, (wanted, text) in wanted_least.items():
        value = networks.get(key, 0)
        # Written so that a figure which is not a number fails.
        if not value >= wanted:
            failures.append(f"{text.format(value)}, expected {wanted:g}")
    for name, bias in zip(
        ("smallest", "middle", "largest"), networks.get("bias_of_thirds", ()), strict=False
    ):
        if not abs(bias) <= MOST_BIAS_OF_A_THIRD:
            failures.append(
                f"bias {bias:+.1f} % in the {name} third of networks, "
                f"expected at most {MOST_BIAS_OF_A_THIRD:g} %"
            )
    return tuple(failures)


def format_report(report: dict[str, Any]) -> str:
    """The report of a predictor folder as a short text table.

    Parameters
    ----------
    report : `LatencyPredictor.report`, the content of `report.json`
    """
    if ROWS in report:
        return format_published(report)
    lines = [f"{'held out':<12}{'count':>6}{'bias %':>8}{'RMSPE %':>9}{'<5 %':>6}{'<10 %':>7}"]
    for name, row in {**report["kernels"], "networks": report["networks"]}.items():
        if row["count"]:
            numbers = f"{row['bias']:>8.1f}{row['rmspe']:>9.1f}{row['within_5']:>6.0f}"
            lines.append(f"{name:<12}{row['count']:>6}{numbers}{row['within_10']:>7.0f}")
        else:
            lines.append(f"{name:<12}{0:>6}  (too few kernels to hold any out)")
    networks, noise = report["networks"], report["noise"]
    if "kendall_tau" in networks:
        lines.append(f"order of networks: Kendall tau {networks['kendall_tau']:.3f}")
    if "bias_of_thirds" in networks:
        thirds = ", ".join(f"{bias:+.1f}" for bias in networks["bias_of_thirds"])
        lines.append(f"bias of small, middle and large networks: {thirds} %")
    if below := report.get("kernels_below_noise"):
        lines.append(f"{below} kernels take no longer than what is subtracted from them; left out")
    lines.append(
        f"noise: {noise['slow_slots']:.0f} % of {noise['slots']} slots slow; "
        f"{report['kernels_measured']} kernels, {report['seconds']:.0f} s"
    )
    return "\n".join(lines)
