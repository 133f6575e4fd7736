"""Where wide depthwise kernels are trained quicker by columns, on a CPU with AVX2 alone.

Depthwise convolutions of stride 1 and 5x5 or more that the onnxw hyperspace trains, its largest and
its smallest ones, at r160 and a batch of 16: forward and backward by
`nni_spaceevo.network.depthwise`, and by torch, in turns and on one thread, channels last in memory.
Writes `depthwise_conv.json` and `.png` beside this script.

    python benchmarks/depthwise_conv.py
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from conv_ways import BATCH, measure_all, onnxw_steps, tensors, timing

from nni_spaceevo.network.depthwise import depthwise_conv2d, saves_time

# n, channels, height and width, kernel.
Shape = tuple[int, int, int, int]


def shapes() -> list[Shape]:
    """All that are depthwise, wider than 3x3 and of stride 1 in blocks of extreme widths."""
    return sorted(
        {
            (BATCH, step.cin, hw, step.kernel_size)
            for hw, step in onnxw_steps()
            if step.kernel_size > 3 and step.depthwise
        }
    )


def measure(shape: Shape, repeats: int) -> dict[str, Any]:
    """Milliseconds of both ways, by turns."""
    n, channels, hw, kernel = shape
    x, weight = tensors((n, channels, hw, hw), (channels, 1, kernel, kernel))
    torchs = partial(F.conv2d, padding=kernel // 2, groups=channels)
    return {
        **timing(x, weight, repeats, {"torch": torchs, "columns": depthwise_conv2d}),
        "chosen": saves_time(x, weight, stride=1, groups=channels),
    }


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Times faster against channels, a line for each size of images; hollow what torch keeps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=110)
    axes = figure.subplots()
    for size in sorted({row["images"][-1] for row in rows}):
        some = [row for row in rows if row["images"][-1] == size]
        channels = [row["images"][1] for row in some]
        faster = [row["times_faster"] for row in some]
        (line,) = axes.plot(channels, faster, "o-", label=f"{size}x{size}")
        left = [row for row in some if not row["chosen"]]
        at = [row["images"][1] for row in left], [row["times_faster"] for row in left]
        axes.plot(*at, "o", color="white", markeredgecolor=line.get_color())
    axes.axhline(1, color="black", linewidth=0.5)
    axes.set(xscale="log", xlabel="channels", ylim=(0, None))
    axes.set_ylabel("times faster than torch, forward and backward")
    axes.set_xticks([50, 100, 200, 500, 1000, 2000])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, title="pixels")
    figure.savefig(path, metadata={"Software": None})


def main(arguments: list[str] | None = None) -> None:
    """Measure by the options of the command line, and write what comes out."""
    measure_all(Path(__file__), __doc__, "columns", shapes(), measure, picture, arguments)


if __name__ == "__main__":
    main()
