"""Where large dense kernels are quicker by way of frequencies, on a CPU.

Dense convolutions of stride 1 that the onnxw hyperspace trains, its largest and its smallest ones,
at r160 and a batch of 16: forward and backward by `nni_spaceevo.network.fourier`, and by torch, in
turns and on one thread, channels last in memory. Beside the times is how many products of two
numbers each takes, by which the package chooses between them. Writes `fourier_conv.json` and
`.png` beside this script.

    python benchmarks/fourier_conv.py
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from conv_ways import BATCH, measure_all, onnxw_steps, tensors, timing

from nni_spaceevo.network.fourier import fourier_conv2d, products, saves_time

# n, cin, height and width, cout, kernel.
Shape = tuple[int, int, int, int, int]


def shapes() -> list[Shape]:
    """All that are dense, larger than 1x1 and of stride 1 in blocks of extreme widths."""
    return sorted(
        {
            (BATCH, step.cin, hw, step.cout, step.kernel_size)
            for hw, step in onnxw_steps()
            if step.kernel_size > 1 and not step.depthwise
        }
    )


def measure(shape: Shape, repeats: int) -> dict[str, Any]:
    """Milliseconds of both ways, by turns, and their products."""
    n, cin, hw, cout, kernel = shape
    x, weight = tensors((n, cin, hw, hw), (cout, cin, kernel, kernel))
    torchs, fourier = products(x.shape, weight.shape)
    ways = {"torch": partial(F.conv2d, padding=kernel // 2), "fourier": fourier_conv2d}
    return {
        **timing(x, weight, repeats, ways),
        "mega_products": {"torch": round(torchs / 1e6, 1), "fourier": round(fourier / 1e6, 1)},
        "chosen": saves_time(x, weight, stride=1, groups=1),
    }


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Times faster against times fewer products, a point for each convolution."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained", dpi=110)
    axes = figure.subplots()
    kernels = sorted({row["weight"][-1] for row in rows})
    for kernel, colour in zip(kernels, ("#8a8f98", "#67a9cf", "#2166ac"), strict=False):
        for chosen, marker in ((True, "o"), (False, "x")):
            some = [r for r in rows if r["weight"][-1] == kernel and r["chosen"] == chosen]
            fewer = [r["mega_products"]["torch"] / r["mega_products"]["fourier"] for r in some]
            label = f"{kernel}x{kernel}, {'by frequencies' if chosen else 'left to torch'}"
            faster = [r["times_faster"] for r in some]
            if some:
                axes.plot(fewer, faster, marker, color=colour, label=label)
    axes.axhline(1, color="black", linewidth=0.5)
    axes.set(xscale="log", yscale="log", xlabel="products, torch's / by way of frequencies")
    axes.set_ylabel("times faster than torch, forward and backward")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Software": None})


def main(arguments: list[str] | None = None) -> None:
    """Measure by the options of the command line, and write what comes out."""
    measure_all(Path(__file__), __doc__, "frequencies", shapes(), measure, picture, arguments)


if __name__ == "__main__":
    main()
