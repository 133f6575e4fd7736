"""The subnets of a search: accuracy against latency, predicted beside measured."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from ..files import to_json, write_atomically
from ..jobs.seqnets import SEQnets
from ..page import drawing

_OTHERS, _FRONT, _MEASURED = "#c9ced6", "#2166ac", "#d6742a"


def write_subnet_report(found: SEQnets, folder: Path) -> Path:
    """Write `report.md`, `subnets.png` and `bench.json`.

    Returns
    -------
    the report's path

    Raises
    ------
    FileAccessError
        The folder cannot be written.
    """
    write_atomically(folder / "bench.json", to_json(found.bench))
    write_atomically(folder / "subnets.png", _picture(found))
    path = folder / "report.md"
    write_atomically(path, _text(found))
    return path


def _text(found: SEQnets) -> str:
    results, machine = found.results, found.bench.machine
    lines = [
        f"# Subnets of {results.space}, seed {results.seed}",
        "",
        f"{len(results.evaluated)} subnets evaluated. Latency predicted by {results.device}, "
        f"measured on {machine.cpu} with {machine.runtime}, {machine.threads} thread(s).",
        "",
        "| T, ms | predicted, ms | measured, ms (80 % of runs) | measured / T | accuracy | "
        "on unseen images | of the file | MFLOPs | MParams |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for s in found.seqnets:
        m, f = s.measured, s.found
        lines.append(
            f"| {s.constraint_ms:g} | {f.predicted_ms:.4g} "
            f"| {m.median_ms:.4g} ({m.low_ms:.4g} to {m.high_ms:.4g}) "
            f"| {m.median_ms / s.constraint_ms:.2f} | {f.accuracy:.2%} "
            f"| {_percent(f.unseen_accuracy)} | {_percent(m.accuracy)} | {f.mflops:.4g} "
            f"| {f.mparams:.4g} |"
        )
    lines += [
        "",
        "The search chooses by the accuracy on one half of the held-out images; the other half is "
        "unseen, and the file's accuracy is on all of them. By prediction all are within T; "
        f"measured, {_over(found)}.",
        "",
        "![Accuracy against latency](subnets.png)",
        "",
        "| T, ms | file | subnet |",
        "|---|---|---|",
    ]
    lines += [
        f"| {s.constraint_ms:g} | {Path(s.measured.file).name} | `{s.found.subnet}` |"
        for s in found.seqnets
    ]
    return "\n".join(lines) + "\n"


def _over(found: SEQnets) -> str:
    over = [s for s in found.seqnets if s.measured.median_ms > s.constraint_ms]
    if not over:
        return "all are too"
    worst = max(s.measured.median_ms / s.constraint_ms for s in over)
    return f"{len(over)} of {len(found.seqnets)} take longer, up to {worst:.2f} T"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _picture(found: SEQnets) -> bytes:
    """Accuracy of the evaluated subnets against latency, and the measured ones."""
    from matplotlib.figure import Figure

    results, buffer = found.results, io.BytesIO()
    ms, accuracy = np.array(results.evaluated).T
    with drawing():
        figure = Figure(figsize=(7, 4), layout="constrained", dpi=110)
        axes = figure.subplots()
        axes.plot(ms, accuracy * 100, ".", color=_OTHERS, label="evaluated")
        front = [(f.predicted_ms, f.accuracy * 100) for f in results.front]
        axes.plot(*zip(*front, strict=True), ".-", color=_FRONT, label="Pareto front, predicted ms")
        for i, s in enumerate(found.seqnets):
            axes.axvline(s.constraint_ms, color=_OTHERS, linewidth=0.8, linestyle=":")
            y = s.found.accuracy * 100
            axes.plot([s.measured.low_ms, s.measured.high_ms], [y, y], color=_MEASURED)
            label = "best within T, measured" if i == 0 else None
            axes.plot(s.measured.median_ms, y, "D", color=_MEASURED, label=label)
        axes.set_xlabel("INT8 latency in ms; dotted: the constraints T")
        axes.set_ylabel("INT8 accuracy, %")
        axes.legend(loc="lower right")
        figure.savefig(buffer, metadata={"Software": None})
    return buffer.getvalue()
