"""Where wide depthwise kernels are trained quicker by columns, on a CPU with AVX2 alone.

Depthwise convolutions of stride 1 and 5x5 or more that the onnxw hyperspace trains, its largest and
its smallest ones, at r160 and a batch of 16: forward and backward by
`nni_spaceevo.network.depthwise`, and by torch, in turns and on one thread, channels last in memory.
Writes `depthwise_conv.json` and `.png` beside this script.

    python benchmarks/depthwise_conv.py
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
from nni_spaceevo.network.depthwise import depthwise_conv2d, saves_time

PACKAGES = ("torch",)
BATCH, RESOLUTION = 16, 160
REPEATS = 5
# n, channels, height and width, kernel.
Shape = tuple[int, int, int, int]


def shapes() -> list[Shape]:
    """All that are depthwise, wider than 3x3 and of stride 1 in blocks of extreme widths."""
    onnxw, found = load_hyperspace("onnxw"), set()
    for stage, option in product(onnxw.searchable, onnxw.block_types):
        hw = -(-onnxw.input_hw(stage, RESOLUTION) // stage.stride)
        for end, kernel in product((0, -1), option.kernel_sizes):
            width = stage.widths[end]
            choice = BlockChoice(kernel, width, option.expand_choices[end])
            for step in recipe_of(option.config(width, choice, 1)).steps:
                if isinstance(step, ConvStep) and step.kernel_size > 3 and step.depthwise:
                    found.add((BATCH, step.cin, hw, step.kernel_size))
    return sorted(found)


def measure(shape: Shape, repeats: int) -> dict[str, Any]:
    """Milliseconds of both ways, by turns."""
    n, channels, hw, kernel = shape
    x, weight, of_result = (
        torch.randn(size).to(memory_format=torch.channels_last)
        for size in ((n, channels, hw, hw), (channels, 1, kernel, kernel), (n, channels, hw, hw))
    )
    x.requires_grad_()
    weight.requires_grad_()
    torchs = partial(F.conv2d, padding=kernel // 2, groups=channels)

    def step(way: Callable[..., Tensor]) -> Callable[[int], object]:
        return lambda _: torch.autograd.grad(way(x, weight), (x, weight), of_result)

    steps = {"torch": step(torchs), "columns": step(depthwise_conv2d)}
    seconds_by_turns(steps, range(1))
    times = seconds_by_turns(steps, range(repeats))
    return {
        "images": list(x.shape),
        "weight": list(weight.shape),
        "ms": {way: [round(1e3 * t, 3) for t in times[way]] for way in times},
        "times_faster": round(float(np.median(np.divide(times["torch"], times["columns"]))), 2),
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


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """What is gained where columns are chosen, and what would be elsewhere."""
    lines = []
    for chosen, name in ((True, "by columns"), (False, "left to torch")):
        faster = [row["times_faster"] for row in rows if row["chosen"] == chosen]
        if faster:
            low, median, high = np.quantile(faster, [0, 0.5, 1])
            of = f"{low:.2f} to {high:.2f} times as fast, {median:.2f} in the median"
            lines.append(f"{len(faster)} {name}: columns are {of}")
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
