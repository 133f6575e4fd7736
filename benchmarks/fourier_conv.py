"""Where large dense kernels are quicker by way of frequencies, on a CPU.

Dense convolutions of stride 1 that the onnxw hyperspace trains, its largest and its smallest ones,
at r160 and a batch of 16: forward and backward by `nni_spaceevo.network.fourier`, and by torch, in
turns and on one thread, channels last in memory. Beside the times is how many products of two
numbers each takes, by which the package chooses between them. Writes `fourier_conv.json` and
`.png` beside this script.

    python benchmarks/fourier_conv.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from provenance import provenance
from step_costs import seconds_by_turns
from torch import Tensor

from nni_spaceevo.device import keep_memory
from nni_spaceevo.files import to_json, write_atomically
from nni_spaceevo.hyperspace import BlockChoice, ConvStep, load_hyperspace, recipe_of
from nni_spaceevo.network.fourier import fourier_conv2d, products, saves_time

PACKAGES = ("torch",)
BATCH, RESOLUTION = 16, 160
REPEATS = 5
# n, cin, height and width, cout, kernel.
Shape = tuple[int, int, int, int, int]


def shapes() -> list[Shape]:
    """All that are dense, larger than 1x1 and of stride 1 in blocks of extreme widths."""
    onnxw, found = load_hyperspace("onnxw"), set()
    for stage, option in product(onnxw.searchable, onnxw.block_types):
        hw = -(-onnxw.input_hw(stage, RESOLUTION) // stage.stride)
        for end, kernel in product((0, -1), option.kernel_sizes):
            width = stage.widths[end]
            choice = BlockChoice(kernel, width, option.expand_choices[end])
            for step in recipe_of(option.config(width, choice, 1)).steps:
                if isinstance(step, ConvStep) and step.kernel_size > 1 and not step.depthwise:
                    found.add((BATCH, step.cin, hw, step.cout, step.kernel_size))
    return sorted(found)


def measure(shape: Shape, repeats: int) -> dict[str, Any]:
    """Seconds of both ways, by turns, and their products."""
    n, cin, hw, cout, kernel = shape
    x, weight, of_result = (
        torch.randn(size).to(memory_format=torch.channels_last)
        for size in ((n, cin, hw, hw), (cout, cin, kernel, kernel), (n, cout, hw, hw))
    )
    x.requires_grad_()
    weight.requires_grad_()
    ways = {"torch": partial(F.conv2d, padding=kernel // 2), "fourier": fourier_conv2d}

    def step(way: Callable[..., Tensor]) -> Callable[[int], object]:
        return lambda _: torch.autograd.grad(way(x, weight), (x, weight), of_result)

    steps = {name: step(way) for name, way in ways.items()}
    seconds_by_turns(steps, range(1))
    times = seconds_by_turns(steps, range(repeats))
    torchs, fourier = products(x.shape, weight.shape)
    return {
        "images": list(x.shape),
        "weight": list(weight.shape),
        "ms": {way: [round(1e3 * t, 3) for t in times[way]] for way in times},
        "times_faster": round(float(np.median(np.divide(times["torch"], times["fourier"]))), 2),
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


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """What is gained where frequencies are chosen, and what would be elsewhere."""
    lines = []
    for chosen, name in ((True, "by frequencies"), (False, "left to torch")):
        faster = [r["times_faster"] for r in rows if r["chosen"] == chosen]
        if faster:
            low, median, high = np.quantile(faster, [0, 0.5, 1])
            of = f"{low:.2f} to {high:.2f} times as fast, {median:.2f} in the median"
            lines.append(f"{len(faster)} {name}: frequencies are {of}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--limit", type=int, help="only so many of the convolutions")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # As every training of the package.
    keep_memory()
    torch.manual_seed(0)
    rows = []
    for shape in shapes()[: options.limit]:
        rows.append(measure(shape, options.repeats))
        print(rows[-1]["images"], rows[-1]["weight"], rows[-1]["times_faster"], flush=True)
    result = {**provenance(*PACKAGES), "threads": torch.get_num_threads(), "convolutions": rows}
    write_atomically(options.output, to_json(result))
    picture(rows, options.output.with_suffix(".png"))
    print(summary(rows))


if __name__ == "__main__":
    main()
