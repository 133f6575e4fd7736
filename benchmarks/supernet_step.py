"""How fast a sandwich step of a supernet is, and how large, beside the same written plainly.

A step of the space onnxw-151122-023231 at r160 and at r224 with the published settings, in FP32 and
with LSQ+, by turns, and always of the same subnets: the largest, the smallest and two random ones.
`package` is this package. `plain` is the same step as one would write it first: four separate full
forward passes, each followed by its backward pass; fake quantization by a chain of tensor
operations, each of which writes its result; a contiguous copy of every sliced weight; torch's usual
order in memory and its convolutions, of large dense and wide depthwise kernels too. It recomputes
nothing, the largest subnet's logits included: the package makes four passes as well, so in FP32
these last three are all that they differ by. Optimizers, losses and clipping are the same, and that
losses and gradients are is checked first, in one order. Reading images is no part of a step. Writes
`supernet_step.json` and `.png` beside this script.

    python benchmarks/supernet_step.py                    # CPU: batch 16, 8 at r224; two threads
    python benchmarks/supernet_step.py --device cuda      # GPU: batch 64, bfloat16

What else pays on a GPU, torch.compile among it, is in `supernet_gpu.py`. From a GPU's steps this
projects how many hours the published recipe takes on 8 of them, and it writes
`supernet_step_cuda.json` and `.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from memory_order import MemoryOrder
from plain_layers import plain_layers
from provenance import provenance
from step_costs import gpu_memory_mb, process_memory_mb, seconds_by_turns
from torch import Tensor, nn

from nni_spaceevo.device import keep_memory, training_device
from nni_spaceevo.errors import SpaceEvoError
from nni_spaceevo.files import to_json, write_atomically
from nni_spaceevo.hyperspace import Hyperspace, load_hyperspace
from nni_spaceevo.quant import FP32, INT8
from nni_spaceevo.supernet.config import SupernetConfig
from nni_spaceevo.supernet.run import new_supernet
from nni_spaceevo.supernet.sandwich import StepPlan, distillation_loss, dropped_out
from nni_spaceevo.supernet.trainer import SupernetTrainer

PACKAGES = ("torch", "numpy")
SPACE = "onnxw-151122-023231"
RESOLUTIONS = (160, 224)
PRECISIONS = (FP32.name, INT8.name)
WAYS = ("plain", "package")
REPEATS = 4
THREADS = 2
GPUS = 8
# Of losses and gradients on a CPU. In bfloat16, and on a GPU, roundings go other ways, and a whole
# quantized network turns that into other gradients: there the losses alone are compared.
TOLERANCE, LOOSE_TOLERANCE = 1e-3, 0.05
IMAGENET_IMAGES = 1_281_167


@dataclass(frozen=True)
class Setting:
    """What the steps at one resolution have in common.

    Attributes
    ----------
    hyperspace, space : of the supernet; the hyperspace has one resolution
    config : as published but for batch size and device
    """

    hyperspace: Hyperspace
    space: str
    config: SupernetConfig

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return training_device(self.config.device, "supernet")

    @property
    def resolution(self) -> int:
        """Of the images."""
        (resolution,) = self.hyperspace.resolutions
        return resolution

    @property
    def exact(self) -> bool:
        """Whether all ways compute the same up to the order of sums."""
        return self.device.type == "cpu" and not self.config.mixed_precision

    def batch(self) -> tuple[Tensor, Tensor]:
        """Random images (n, channels, resolution, resolution) and labels (n,)."""
        generator = torch.Generator().manual_seed(0)
        h, n = self.hyperspace, self.config.batch_size
        images = torch.randn(
            n, h.in_channels, self.resolution, self.resolution, generator=generator
        )
        (classes,) = h.stages[-1].widths
        labels = torch.randint(classes, (n,), generator=generator)
        return images.to(self.device), labels.to(self.device)


CONFIGS = {
    "cpu": SupernetConfig(device="cpu", batch_size=16),
    "cuda": SupernetConfig(device="cuda", batch_size=64, mixed_precision=True),
}
_LARGE = 200


def published(device: str, resolution: int) -> Setting:
    """The published space and settings on `cpu` or `cuda`."""
    onnxw = load_hyperspace("onnxw")
    hyperspace = msgspec.structs.replace(onnxw, resolutions=(resolution,))
    config = CONFIGS[device]
    if device == "cpu" and resolution > _LARGE:
        # Of a plain step 16 such images take 17 GB.
        config = msgspec.structs.replace(config, batch_size=config.batch_size // 2)
    return Setting(hyperspace, SPACE, config)


class Step:
    """Sandwich steps of a new supernet, by this package.

    Parameters
    ----------
    setting : of the step
    precision : `fp32` or `int8`; the quantizers then have ranges
    """

    def __init__(self, setting: Setting, precision: str) -> None:
        supernet = new_supernet(setting.hyperspace, setting.space, setting.config)
        supernet.to(setting.device)
        self.images, self.labels = setting.batch()
        self.trainer = SupernetTrainer(supernet, setting.config)
        # The first epoch of the phase.
        self._epoch = setting.config.fp32.epochs if precision == INT8.name else 0
        self.trainer.start_epoch(self._epoch)
        self.order = MemoryOrder(supernet, "supernet.model")
        with self.order.kept(), self.trainer._autocast(setting.device):
            self.trainer._start_phase(self.images, self.plan(0))

    def use_own_order(self) -> None:
        """Compute in this way's own order, once it has been checked."""
        self.order.use(torch.channels_last)

    def plan(self, number: int) -> StepPlan:
        """What step `number` trains, the same subnets in both precisions."""
        images = len(self.images)
        # The first of an epoch starts the phase, which is done already.
        plan = self.trainer.plan(0, number + 1, IMAGENET_IMAGES // images, images)
        return replace(plan, epoch=self._epoch)

    def __call__(self, number: int) -> np.ndarray:
        """Train; returns the losses of the largest, the smallest and, on average, the others."""
        with self.order.kept():
            return self._train(number)

    def _train(self, number: int) -> np.ndarray:
        return self.trainer.step(self.images, self.labels, self.plan(number))


class PlainStep(Step):
    """The same step as one would write it first."""

    def use_own_order(self) -> None:
        """It has it already."""

    def _train(self, number: int) -> np.ndarray:
        trainer, plan = self.trainer, self.plan(number)
        supernet, config = trainer.supernet, trainer.config
        trainer._set_learning_rates(plan)
        supernet.zero_grad()
        with plain_layers(), trainer._autocast(self.images.device):
            losses = self._learn(plan)
        nn.utils.clip_grad_value_(supernet.parameters(), config.gradient_limit)
        trainer.optimizer.step()
        trainer.range_optimizer.step()
        return np.array([losses[0], losses[1], np.mean(losses[2:])])

    def _learn(self, plan: StepPlan) -> list[float]:
        """Add the gradients of all subnets, one after the other; returns their losses."""
        supernet, config = self.trainer.supernet, self.trainer.config
        largest, *others = plan.subnets
        features = dropped_out(supernet.features(self.images, largest), config.dropout, plan)
        teacher = supernet.classify(features)
        loss = F.cross_entropy(teacher, self.labels, label_smoothing=config.label_smoothing)
        loss.backward()
        losses = [loss.item()]
        for code in others:
            loss = distillation_loss(supernet(self.images, code), teacher, config).mean()
            loss.backward()
            losses.append(loss.item())
        return losses


def new_step(setting: Setting, precision: str, way: str) -> Step:
    """A step in one way; in all of them it starts with the same weights and ranges."""
    return (PlainStep if way == "plain" else Step)(setting, precision)


# ---- the same, time and memory ----------------------------------------------------------------


def check_same(setting: Setting, found: dict[str, Step]) -> float:
    """Greatest difference of losses and of gradients between the ways, after one step.

    Losses differ relative to that of the largest subnet; gradients of weights and those of
    quantizers' ranges, which are far smaller, each relative to their norm.

    Raises
    ------
    SpaceEvoError
        It is more than rounding explains.
    """
    losses, gradients = {}, {}
    for way, step in found.items():
        losses[way] = step(0)
        gradients[way] = _gradients(step.trainer)
    worst = max(
        float(np.abs(other - losses["package"]).max() / losses["package"][0])
        for other in losses.values()
    )
    if setting.exact:
        for other in gradients.values():
            for theirs, ours in zip(other, gradients["package"], strict=True):
                worst = max(worst, float((theirs - ours).norm() / ours.norm()))
    if not worst < (TOLERANCE if setting.exact else LOOSE_TOLERANCE):
        raise SpaceEvoError(f"the ways differ by {worst:.1%}; expected the same up to rounding")
    return worst


def _gradients(trainer: SupernetTrainer) -> list[Tensor]:
    """Those of weights and, with LSQ+, those of ranges, each in one vector."""
    found = []
    for optimizer in (trainer.optimizer, trainer.range_optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        parts = [p.grad.flatten() for p in parameters if p.grad is not None]
        if parts:
            found.append(torch.cat(parts).double())
    return found


def cpu_memory_mb(setting: Setting, precision: str, way: str, threads: int) -> dict[str, float]:
    """Memory that steps take in this process, which must be a fresh one.

    Parameters
    ----------
    setting, precision, way : of the step
    threads : that torch uses

    Returns
    -------
    `loaded`, with libraries and weights, before the first step; `peak`, during steps
    """
    torch.set_num_threads(threads)
    keep_memory()
    step = new_step(setting, precision, way)
    step.use_own_order()
    return process_memory_mb(lambda: step(0))


# ---- what comes out ---------------------------------------------------------------------------


def measure(setting: Setting, repeats: int) -> list[dict[str, Any]]:
    """Both precisions in all ways, at the setting's resolution."""
    found: dict[tuple[str, str], Step] = {}
    differences = {}
    for precision in PRECISIONS:
        steps = {way: new_step(setting, precision, way) for way in WAYS}
        differences[precision] = check_same(setting, steps)
        for step in steps.values():
            step.use_own_order()
            # Momenta follow the order of the weights, and kernels are chosen anew.
            step.trainer.optimizer.state.clear()
            step(0)
        found |= {(precision, way): step for way, step in steps.items()}
    # Step 0 has been taken.
    times = seconds_by_turns(found, range(1, repeats + 1))
    rows = []
    for precision in PRECISIONS:
        row: dict[str, Any] = {
            "resolution": setting.resolution,
            "batch": setting.config.batch_size,
            "precision": precision,
        }
        row["difference"] = float(f"{differences[precision]:.1e}")
        for way in WAYS:
            row[way] = _timing(times[precision, way], setting.config.batch_size)
            if setting.device.type == "cuda":
                step = found[precision, way]
                row[way]["memory_mb"] = gpu_memory_mb(partial(step, 0))
        rows.append(row)
    del found, steps
    if setting.device.type == "cpu":
        _add_cpu_memory(setting, rows)
    return rows


def _timing(times: list[float], batch: int) -> dict[str, Any]:
    step_s = float(np.median(times))
    return {
        "step_s": round(step_s, 4),
        "images_per_s": round(batch / step_s, 2),
        "all_s": [round(t, 4) for t in times],
    }


def _add_cpu_memory(setting: Setting, rows: list[dict[str, Any]]) -> None:
    # A process a case: what one has freed, another would take again.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for row, way in product(rows, WAYS):
            job = pool.submit(
                cpu_memory_mb, setting, row["precision"], way, torch.get_num_threads()
            )
            row[way]["memory_mb"] = job.result()


def ways_of(row: dict[str, Any]) -> list[str]:
    """The ways that a row has, the plain one first."""
    return [key for key, value in row.items() if isinstance(value, dict)]


def times_faster(row: dict[str, Any]) -> dict[str, float]:
    """How many times faster than the plain step; the median over repeats of the same subnets."""
    _, *others = ways_of(row)
    return {way: _median_ratio(row["plain"], row[way]) for way in others}


def quantized_over_float(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Time of LSQ+ steps over that of FP32 steps of the same subnets, by resolution and way."""
    cases = {(row["resolution"], row["precision"]): row for row in rows}
    ratios: dict[str, dict[str, float]] = {}
    for resolution in dict.fromkeys(row["resolution"] for row in rows):
        fp32, int8 = (cases[resolution, precision] for precision in PRECISIONS)
        ratios[str(resolution)] = {w: _median_ratio(int8[w], fp32[w]) for w in ways_of(fp32)}
    return ratios


def _median_ratio(above: dict[str, Any], below: dict[str, Any]) -> float:
    return round(float(np.median(np.array(above["all_s"]) / below["all_s"])), 2)


def projection(rows: list[dict[str, Any]], config: SupernetConfig) -> dict[str, Any]:
    """Hours of the published recipe on 8 GPUs, by resolution and way; each GPU has a whole batch.

    Images are taken to be there in time, and adding up gradients between GPUs to take none. The
    recipe's resolutions are 160 to 224: with one of them the hours are a bound.
    """
    steps = -(-IMAGENET_IMAGES // (GPUS * config.batch_size))
    epochs = dict(zip(PRECISIONS, (config.fp32.epochs, config.int8.epochs), strict=True))
    hours: dict[str, dict[str, float]] = {}
    for row in rows:
        total = hours.setdefault(str(row["resolution"]), dict.fromkeys(ways_of(row), 0.0))
        for way in total:
            total[way] += epochs[row["precision"]] * steps * row[way]["step_s"] / 3600
    rounded = {r: {way: round(v, 1) for way, v in total.items()} for r, total in hours.items()}
    return {"images": IMAGENET_IMAGES, "gpus": GPUS, "epochs": epochs, "hours": rounded}


def table(result: dict[str, Any]) -> str:
    """The steps as a Markdown table."""
    ways = ways_of(result["steps"][0])
    _, *others = ways
    columns = [
        *(f"{way}, s" for way in ways),
        *(f"plain / {way}" for way in others),
        *(f"LSQ+ / FP32, {way}" for way in ways),
        "images/s: " + ", ".join(ways),
        "peak MB: " + ", ".join(ways),
    ]
    lines = [
        f"| resolution | batch | phase | {' | '.join(columns)} |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for row in result["steps"]:
        slower = result["lsq_over_fp32"][str(row["resolution"])]
        quantized = row["precision"] == INT8.name
        cells = [
            str(row["resolution"]),
            str(row["batch"]),
            row["precision"],
            *(f"{row[way]['step_s']:.2f}" for way in ways),
            *(f"{ratio:.2f}x" for ratio in times_faster(row).values()),
            *(f"{slower[way]:.2f}x" if quantized else "" for way in ways),
            ", ".join(f"{row[way]['images_per_s']:.1f}" for way in ways),
            ", ".join(f"{row[way]['memory_mb']['peak']:.0f}" for way in ways),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(result: dict[str, Any], path: Path) -> None:
    """Seconds and memory of a step, the ways side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained", dpi=110)
    rows = result["steps"]
    labels = [f"r{row['resolution']}\n{row['precision']}" for row in rows]
    colours = ("#8a8f98", "#2166ac", "#67a9cf")
    kinds: list[tuple[str, Callable[[dict[str, Any]], float]]] = [
        ("seconds a step", lambda found: found["step_s"]),
        ("peak memory, MB", lambda found: found["memory_mb"]["peak"]),
    ]
    ways = ways_of(rows[0])
    for axes, (title, value) in zip(figure.subplots(1, 2), kinds, strict=True):
        for i, (way, colour) in enumerate(zip(ways, colours, strict=False)):
            places = np.arange(len(rows)) + 0.27 * (i - (len(ways) - 1) / 2)
            bars = axes.bar(places, [value(r[way]) for r in rows], 0.25, label=way, color=colour)
            if title.startswith("seconds") and way != "plain":
                axes.bar_label(bars, [f"{times_faster(row)[way]:.2f}x" for row in rows], fontsize=7)
        axes.set_xticks(range(len(rows)), labels, fontsize=8)
        axes.set_title(title)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--output", type=Path, help="the JSON file; the picture beside it")
    options = parser.parse_args()
    on_gpu, config = options.device == "cuda", CONFIGS[options.device]
    torch.set_num_threads(THREADS)
    # Refuses by name where torch sees no GPU.
    training_device(config.device, "supernet")
    name = "supernet_step_cuda.json" if on_gpu else "supernet_step.json"
    path = options.output or Path(__file__).with_name(name)
    steps: list[dict[str, Any]] = []
    for resolution in RESOLUTIONS:
        steps += measure(published(options.device, resolution), options.repeats)
        # What is measured stays if the next resolution takes too long.
        write(steps, config, path, on_gpu)


def write(steps: list[dict[str, Any]], config: SupernetConfig, path: Path, on_gpu: bool) -> None:
    """Write and print what the steps come to."""
    result: dict[str, Any] = {
        **provenance(*PACKAGES, gpu=torch.cuda.get_device_name() if on_gpu else None),
        "space": SPACE,
        "mixed_precision": config.mixed_precision,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "times_faster": {f"{s['resolution']} {s['precision']}": times_faster(s) for s in steps},
        "lsq_over_fp32": quantized_over_float(steps),
        "published_recipe": (projection(steps, config) if on_gpu else "not projected"),
    }
    write_atomically(path, to_json(result))
    picture(result, path.with_suffix(".png"))
    print(table(result))


if __name__ == "__main__":
    main()
