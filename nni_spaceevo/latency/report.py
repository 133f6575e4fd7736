"""How well a predictor predicts: error statistics and their table."""

from __future__ import annotations

from typing import Any

import numpy as np

from .features import FloatArray


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


def format_report(report: dict[str, Any]) -> str:
    """The report of a predictor folder as a short text table.

    Parameters
    ----------
    report : `LatencyPredictor.report`, the content of `report.json`
    """
    lines = [f"{'held out':<12}{'count':>6}{'bias %':>8}{'RMSPE %':>9}{'<5 %':>6}{'<10 %':>7}"]
    for name, row in {**report["kernels"], "networks": report["networks"]}.items():
        if row["count"]:
            numbers = f"{row['bias']:>8.1f}{row['rmspe']:>9.1f}{row['within_5']:>6.0f}"
            lines.append(f"{name:<12}{row['count']:>6}{numbers}{row['within_10']:>7.0f}")
        else:
            lines.append(f"{name:<12}{0:>6}  (too few kernels to hold any out)")
    networks, noise = report["networks"], report["noise"]
    if "kendall_tau" in networks:
        lines.append(f"order of networks: Kendall tau {networks['kendall_tau']:.2f}")
    lines.append(
        f"noise: {noise['slow_slots']:.0f} % of {noise['slots']} slots slow; "
        f"{report['kernels_measured']} kernels, {report['seconds']:.0f} s"
    )
    return "\n".join(lines)
