"""Measured files as a picture, beside the raw times."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from ..deploy.bench import Bench, FileTiming
from ..files import to_json, write_atomically
from ..page import drawing

_BAR, _MEDIAN, _PREDICTED = "#9dbfe0", "#2166ac", "#d6742a"


def write_bench(found: Bench, folder: Path) -> None:
    """Write `bench.json` with every round, `bench.md` and `bench.png`; raises `FileAccessError`."""
    write_atomically(folder / "bench.json", to_json(found))
    write_atomically(folder / "bench.md", f"{found.text()}\n\n![Milliseconds](bench.png)\n")
    write_atomically(folder / "bench.png", bench_picture(found))


def bench_picture(found: Bench) -> bytes:
    """Milliseconds of every file, measured and predicted."""
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with drawing():
        figure = Figure(figsize=(7, 1.2 + 0.4 * len(found.files)), layout="constrained", dpi=110)
        axes = figure.subplots()
        for y, timing in enumerate(reversed(found.files)):
            axes.plot([timing.low_ms, timing.high_ms], [y, y], color=_BAR, linewidth=5)
            axes.plot(timing.median_ms, y, "o", color=_MEDIAN)
            if timing.predicted_ms is not None:
                axes.plot(timing.predicted_ms, y, "D", color=_PREDICTED, fillstyle="none")
        several = len({timing.runtime for timing in found.files}) > 1
        names = [_name(timing, several) for timing in reversed(found.files)]
        axes.set_yticks(np.arange(len(names)), names)
        axes.set_xlim(left=0)
        axes.set_xlabel("ms: 80 % of the runs and their median; diamonds are predictions")
        figure.savefig(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _name(timing: FileTiming, with_runtime: bool) -> str:
    runtime = f", {timing.runtime.split()[0]}" if with_runtime else ""
    accurate = "" if timing.accuracy is None else f", {timing.accuracy:.1%}"
    return Path(timing.file).stem + runtime + accurate
