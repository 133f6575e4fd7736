"""What the benchmarks of training convolutions share: two ways by turns, and what comes out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance
from step_costs import seconds_by_turns
from torch import Tensor

from nni_spaceevo.device import keep_memory
from nni_spaceevo.files import to_json, write_atomically
from nni_spaceevo.hyperspace import BlockChoice, ConvStep, load_hyperspace, recipe_of

PACKAGES = ("torch",)
BATCH, RESOLUTION = 16, 160
REPEATS = 5
Rows = list[dict[str, Any]]


def onnxw_steps() -> Iterator[tuple[int, ConvStep]]:
    """Height and width, and convolution, of stride 1 in blocks of extreme widths, some twice."""
    onnxw = load_hyperspace("onnxw")
    for stage, option in product(onnxw.searchable, onnxw.block_types):
        hw = -(-onnxw.input_hw(stage, RESOLUTION) // stage.stride)
        for end, kernel in product((0, -1), option.kernel_sizes):
            width = stage.widths[end]
            choice = BlockChoice(kernel, width, option.expand_choices[end])
            for step in recipe_of(option.config(width, choice, 1)).steps:
                if isinstance(step, ConvStep):
                    yield hw, step


def tensors(*sizes: Sequence[int]) -> list[Tensor]:
    """Random ones, channels last in memory, that want gradients."""
    found = (torch.randn(*size).to(memory_format=torch.channels_last) for size in sizes)
    return [x.requires_grad_() for x in found]


def timing(
    x: Tensor, weight: Tensor, repeats: int, ways: dict[str, Callable[[Tensor, Tensor], Tensor]]
) -> dict[str, Any]:
    """Milliseconds forward and backward by `torch` and by one other way, and how many times faster.

    Parameters
    ----------
    x, weight : of a convolution that keeps the size of images
    repeats : by turns
    ways : `torch` and the other
    """
    n, _, *hw = x.shape
    of_result = torch.randn(n, len(weight), *hw).to(memory_format=torch.channels_last)

    def step(way: Callable[[Tensor, Tensor], Tensor]) -> Callable[[int], object]:
        return lambda _: torch.autograd.grad(way(x, weight), (x, weight), of_result)

    steps = {name: step(way) for name, way in ways.items()}
    seconds_by_turns(steps, range(1))
    times = seconds_by_turns(steps, range(repeats))
    (other,) = set(times) - {"torch"}
    return {
        "images": list(x.shape),
        "weight": list(weight.shape),
        "ms": {way: [round(1e3 * t, 3) for t in times[way]] for way in times},
        "times_faster": round(float(np.median(np.divide(times["torch"], times[other]))), 2),
    }


def summary(rows: Rows, way: str) -> str:
    """What is gained where a way is chosen, and what would be elsewhere."""
    lines = []
    for chosen, name in ((True, f"by {way}"), (False, "left to torch")):
        faster = [row["times_faster"] for row in rows if row["chosen"] == chosen]
        if faster:
            low, median, high = np.quantile(faster, [0, 0.5, 1])
            of = f"{low:.2f} to {high:.2f} times as fast, {median:.2f} in the median"
            lines.append(f"{len(faster)} {name}: {way} are {of}")
    return "\n".join(lines)


def measure_all(
    script: Path,
    about: str | None,
    way: str,
    shapes: Sequence[Any],
    measure: Callable[[Any, int], dict[str, Any]],
    picture: Callable[[Rows, Path], None],
    arguments: list[str] | None,
) -> None:
    """Measure by the options of the command line, and write what comes out.

    Parameters
    ----------
    script, about : beside which results are written, and its docstring
    way : that is compared with torch
    shapes, measure : all convolutions, and what measures one, so many times
    picture : of the results
    arguments : of the command line; None takes the process's
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--limit", type=int, help="only so many of the convolutions")
    parser.add_argument("--output", type=Path, default=script.with_suffix(".json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # As every training of the package.
    keep_memory()
    torch.manual_seed(0)
    rows = []
    for shape in shapes[: options.limit]:
        rows.append(measure(shape, options.repeats))
        print(rows[-1]["images"], rows[-1]["weight"], rows[-1]["times_faster"], flush=True)
    result = {**provenance(*PACKAGES), "threads": torch.get_num_threads(), "convolutions": rows}
    write_atomically(options.output, to_json(result))
    picture(rows, options.output.with_suffix(".png"))
    print(summary(rows, way))
