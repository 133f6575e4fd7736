"""How fast block-wise distillation is, and how large, beside the same written plainly.

One step of onnxw's stage3 under EfficientNet-B5 (weights random: they cost as much as trained), in
FP32 and with LSQ+, for three block types and in three ways by turns: `plain` runs the teacher for
each sub-stage anew, copies each weight's slice, fake-quantizes by a chain of tensor operations,
leaves every convolution to torch, and keeps torch's usual order in memory; `package` is this
package; `cached` is this package when the teacher's features have been kept, so that it need not
run. All compute the same losses and gradients, which is checked first, in one order and by torch's
convolutions. Reading images is no part of a step, nor is reading kept features. Writes
`block_kd_speed.json` and `.png` beside this script.

    python benchmarks/block_kd_speed.py                    # CPU: r160, batch 16, one thread
    python benchmarks/block_kd_speed.py --device cuda      # GPU: r224, batch 64, bfloat16

On a GPU it also times all stages and block types, six at a time, and projects how many hours the
whole hyperspace takes at the published recipe; it writes `block_kd_speed_cuda.json` and `.png`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import torch
from memory_order import MemoryOrder
from plain_layers import plain_layers
from provenance import provenance
from step_costs import gpu_memory_mb, process_memory_mb, seconds_by_turns
from torch import Tensor, nn

from nni_spaceevo.device import autocast, keep_memory, training_device
from nni_spaceevo.distill.cache import FeatureCache
from nni_spaceevo.distill.config import DistillConfig, PretrainedConfig
from nni_spaceevo.distill.data import ImageData
from nni_spaceevo.distill.loss import nsr_loss
from nni_spaceevo.distill.stage import StageRun
from nni_spaceevo.distill.task import Features, StageTask
from nni_spaceevo.distill.teachers import FeatureTeacher
from nni_spaceevo.distill.teachers.pretrained import PretrainedTeacher, pretrained_teacher
from nni_spaceevo.errors import SpaceEvoError
from nni_spaceevo.files import to_json, write_atomically
from nni_spaceevo.hyperspace import Hyperspace, load_hyperspace
from nni_spaceevo.network import recalibrate_batch_norm
from nni_spaceevo.quant import FP32, INT8, Precision, set_precision

PACKAGES = ("torch", "torchvision", "numpy")
TEACHER = PretrainedConfig(model="torchvision:efficientnet_b5", weights="random")
STAGE = "stage3"
BLOCKS = ("mbv2_res", "mbv3_res", "resnet")
WAYS = ("plain", "package", "cached")
PRECISIONS = {p.name: p for p in (FP32, INT8)}
REPEATS = 4
DRAWS, WINDOW_S = 4, 2.0
# Of losses and gradients on a CPU. In bfloat16, and on a GPU, roundings go other ways, and six
# quantized blocks turn that into other gradients: there the losses alone are compared.
TOLERANCE, LOOSE_TOLERANCE = 1e-3, 0.05
IMAGENET_IMAGES = 1_281_167


@dataclass(frozen=True)
class Setting:
    """What all steps have in common.

    Attributes
    ----------
    resolution, batch : of the images
    device : where teacher and stage compute
    config : mixed precision or not
    """

    resolution: int
    batch: int
    device: torch.device
    config: DistillConfig

    @property
    def hyperspace(self) -> Hyperspace:
        """The onnxw hyperspace at one resolution."""
        onnxw = load_hyperspace("onnxw")
        return msgspec.structs.replace(onnxw, distill_resolutions=(self.resolution,))

    def data(self) -> ImageData:
        """Random images, one batch of them."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.resolution, self.resolution, generator=generator)
        # Reading images is no part of a step, nor is bringing them to a GPU.
        images = images.to(self.device)
        return ImageData(images, None, images[:1], None, identity="random")

    def task(self, stage: str, block: str, teacher: FeatureTeacher) -> StageTask:
        """A (stage, block type) by name."""
        h = self.hyperspace
        where, option = h.searchable.index(h.stage(stage)), h.block_types.index(h.option(block))
        return StageTask(h, where, option, teacher, self.data(), 0, self.device)


CPU = Setting(160, 16, torch.device("cpu"), DistillConfig(device="cpu", batch_size=16))
CUDA = Setting(224, 64, torch.device("cuda", 0), DistillConfig(device="cuda", mixed_precision=True))


def new_teacher(setting: Setting) -> FeatureTeacher:
    """EfficientNet-B5 with random weights, and BatchNorm statistics that keep features lively."""
    data = setting.data()
    teacher = pretrained_teacher(TEACHER, setting.hyperspace, data, Path(), seed=0)
    assert isinstance(teacher, PretrainedTeacher)
    teacher.to(setting.device)
    recalibrate_batch_norm(
        teacher, data.train_batch(torch.arange(setting.batch), setting.resolution)
    )
    teacher.forget()
    return teacher


class KeptFeatures:
    """A teacher whose features of the only batch have been kept."""

    fingerprint = "kept"

    def __init__(self, widths: tuple[int, ...], features: Features) -> None:
        self.widths, self._features = widths, features

    def eval(self) -> KeptFeatures:
        """Nothing to switch."""
        return self

    def stage_features(self, images: Tensor, stage: int) -> Features:
        """The kept features."""
        return self._features


# ---- the step written plainly -----------------------------------------------------------------


class Step:
    """One distillation step of a (stage, block type), by this package.

    Parameters
    ----------
    run : of which the model is trained
    precision : FP32 or INT8; the model's quantizers have ranges
    """

    def __init__(self, run: StageRun, precision: Precision) -> None:
        self.run, self.model = run, run.model
        self.order = MemoryOrder(self.model, "distill.task", "distill.stage")
        set_precision(self.model, precision)
        self.model.train()
        (self._batch,) = run.task.batches(run.config.batch_size, epoch=0)
        self._no_cache = FeatureCache(Path(), "", "", 0)
        if precision == INT8:
            with self.order.kept():
                features = self._features()
                run._initialize_quantizers(features, len(self._batch), np.random.default_rng(0))

    def use_own_order(self) -> None:
        """Compute in this way's own order, once it has been checked."""
        self.order.use(torch.channels_last)

    def forget_momenta(self) -> None:
        """Start the optimizer anew."""
        self.run._optimizer.state.clear()

    def __call__(self, rng: np.random.Generator) -> list[float]:
        """Train on the batch; returns the losses of largest, smallest and random sub-stages."""
        with self.order.kept():
            return self._step(rng)

    def _features(self) -> Features:
        run, batch = self.run, self._batch
        return run._features(run._images(batch), batch, (0, 0), self._no_cache)

    def _step(self, rng: np.random.Generator) -> list[float]:
        features = self._features()
        return [float(v) for v in self.run._step(features, len(self._batch), rng)]


class PlainStep(Step):
    """The same step as one would write it first."""

    def __init__(self, run: StageRun, precision: Precision) -> None:
        super().__init__(run, precision)
        self._optimizer = torch.optim.Adam(self.model.parameters(), run.config.learning_rate_fp32)

    def use_own_order(self) -> None:
        """It has it already."""

    def forget_momenta(self) -> None:
        """Start its own optimizer anew."""
        self._optimizer.state.clear()

    def _step(self, rng: np.random.Generator) -> list[float]:
        model, config, task = self.model, self.run.config, self.run.task
        batch, losses = self._batch, []
        randoms = [model.random(rng) for _ in range(config.random_substages)]
        self._optimizer.zero_grad()
        for substage in (model.largest(), model.smallest(), *randoms):
            with autocast(task.device, config.mixed_precision):
                features = task.train_features(batch.index, batch.resolution, batch.seeds)
            before, after = features
            with plain_layers(), autocast(task.device, config.mixed_precision):
                student = model(before, substage)
            loss = nsr_loss(student, after)
            loss.backward()
            losses.append(loss.item())
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        self._optimizer.step()
        return [losses[0], losses[1], float(np.mean(losses[2:]))]


# ---- time and memory --------------------------------------------------------------------------


def new_step(setting: Setting, task: StageTask, precision: Precision, way: str) -> Step:
    """A step in one way; in all of them it starts with the same weights and ranges."""
    with tempfile.TemporaryDirectory() as folder:
        run = StageRun(task, setting.config, Path(folder))
    return (PlainStep if way == "plain" else Step)(run, precision)


def _features(setting: Setting, task: StageTask) -> Features:
    # In the order of the steps' only batch: sums over images depend on it.
    (batch,) = task.batches(setting.batch, epoch=0)
    # And in the order in memory in which the ways are checked.
    usual = mock.patch("nni_spaceevo.distill.task.channels_last", Tensor.contiguous)
    with usual, autocast(task.device, setting.config.mixed_precision):
        return task.train_features(batch.index, batch.resolution, batch.seeds)


def all_steps(setting: Setting, task: StageTask, precision: Precision) -> dict[str, Step]:
    """The step in all ways."""
    kept = KeptFeatures(task.teacher.widths, _features(setting, task))
    tasks = {"plain": task, "package": task, "cached": replace(task, teacher=kept)}
    return {way: new_step(setting, each, precision, way) for way, each in tasks.items()}


def check_same(setting: Setting, found: dict[str, Step]) -> float:
    """Greatest relative difference of losses and of gradients between the ways, after one step.

    Raises
    ------
    SpaceEvoError
        It is more than rounding explains.
    """
    losses, gradients = {}, {}
    for way, step in found.items():
        losses[way] = np.array(step(np.random.default_rng(0)))
        parts = [p.grad.flatten() for p in step.model.parameters() if p.grad is not None]
        gradients[way] = torch.cat(parts).double()
    loss, gradient = losses["package"], gradients["package"]
    worst = max(float(np.abs(other / loss - 1).max()) for other in losses.values())
    exact = setting.device.type == "cpu" and not setting.config.mixed_precision
    if exact:
        errors = ((other - gradient).norm() / gradient.norm() for other in gradients.values())
        worst = max(worst, *map(float, errors))
    if not worst < (TOLERANCE if exact else LOOSE_TOLERANCE):
        raise SpaceEvoError(f"the ways differ by {worst:.1%}; expected the same up to rounding")
    return worst


def seconds(found: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, the ways by turns; all draw the same sub-stages."""

    def numbered(step: Step) -> Callable[[int], object]:
        return lambda number: step(np.random.default_rng(number))

    return seconds_by_turns({way: numbered(step) for way, step in found.items()}, range(repeats))


def cpu_memory_mb(
    setting: Setting, block: str, precision: Precision, way: str, widths: tuple[int, ...]
) -> dict[str, float]:
    """Memory that steps take in this process, which must be a fresh one.

    Parameters
    ----------
    setting, block, precision, way : of the step
    widths : the teacher's

    Returns
    -------
    `loaded`, with libraries, teacher and weights, before the first step; `peak`, during steps
    """
    torch.set_num_threads(1)
    keep_memory()
    task = setting.task(STAGE, block, _made_up(setting, widths))
    if way != "cached":
        task = replace(task, teacher=new_teacher(setting))
    step = new_step(setting, task, precision, way)
    step.use_own_order()
    return process_memory_mb(lambda: step(np.random.default_rng(0)))


def _made_up(setting: Setting, widths: tuple[int, ...]) -> KeptFeatures:
    """Features of the right sizes, so that no teacher need be in memory."""
    where = setting.hyperspace.stage(STAGE)
    number = setting.hyperspace.searchable.index(where)
    hw = setting.hyperspace.input_hw(where, setting.resolution)
    before = torch.randn(setting.batch, widths[number], hw, hw)
    hw = -(-hw // where.stride)
    return KeptFeatures(widths, (before, torch.randn(setting.batch, widths[number + 1], hw, hw)))


# ---- what comes out ---------------------------------------------------------------------------


def measure(setting: Setting, blocks: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """Every block type in both phases, in all ways."""
    teacher = new_teacher(setting)
    rows = []
    for block, precision in product(blocks, (FP32, INT8)):
        task = setting.task(STAGE, block, teacher)
        found = all_steps(setting, task, precision)
        difference = check_same(setting, found)
        for step in found.values():
            step.use_own_order()
            # Momenta follow the order of the weights, and kernels are chosen anew.
            step.forget_momenta()
            step(np.random.default_rng(0))
        times = seconds(found, repeats)
        row: dict[str, Any] = {"block": block, "precision": precision.name}
        row["difference"] = float(f"{difference:.1e}")
        for way, values in times.items():
            row[way] = {
                "step_s": round(float(np.median(values)), 4),
                "all_s": [round(v, 4) for v in values],
            }
            if setting.device.type == "cuda":
                step = found[way]
                row[way]["memory_mb"] = gpu_memory_mb(partial(step, np.random.default_rng(0)))
        rows.append(row)
        print(_line(row), flush=True)
    if setting.device.type == "cpu":
        _add_cpu_memory(setting, rows, teacher.widths)
    return rows


def _add_cpu_memory(setting: Setting, rows: list[dict[str, Any]], widths: tuple[int, ...]) -> None:
    cases = [(row, way) for row in rows for way in WAYS]
    # A process a case: what one has freed, another would take again.
    pool = ProcessPoolExecutor(2, get_context("spawn"), max_tasks_per_child=1)
    with pool:
        jobs = [
            pool.submit(cpu_memory_mb, setting, r["block"], PRECISIONS[r["precision"]], way, widths)
            for r, way in cases
        ]
        for (row, way), job in zip(cases, jobs, strict=True):
            row[way]["memory_mb"] = job.result()


def _line(row: dict[str, Any]) -> str:
    times = "".join(f"{row[way]['step_s']:>9.3f} s" for way in WAYS)
    return f"{row['block']:<14}{row['precision']:<6}{times}{ratios(row)['package']:>9.2f}x"


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """How many times faster than the plain step; the median over repeats of the same draw."""
    plain = np.array(row["plain"]["all_s"])
    return {
        way: round(float(np.median(plain / row[way]["all_s"])), 2) for way in ("package", "cached")
    }


def over_recipe(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times faster all epochs of each block type are, by medians of a step."""
    found: dict[str, dict[str, float]] = {}
    for block in dict.fromkeys(row["block"] for row in rows):
        total = {
            way: sum(
                _epochs(r["precision"]) * r[way]["step_s"] for r in rows if r["block"] == block
            )
            for way in WAYS
        }
        found[block] = {w: round(total["plain"] / total[w], 2) for w in ("package", "cached")}
    return found


def _epochs(precision: str) -> int:
    published = DistillConfig()
    return published.epochs_int8 if precision == INT8.name else published.epochs_fp32


def table(result: dict[str, Any]) -> str:
    """The steps as a Markdown table."""
    lines = [
        "| block type | phase | plain, s | package, s | cached, s | package | cached "
        "| peak MB: plain, package, cached |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["steps"]:
        times = " | ".join(f"{row[way]['step_s']:.2f}" for way in WAYS)
        faster = " | ".join(f"{ratio:.1f}x" for ratio in ratios(row).values())
        memory = ", ".join(f"{row[way]['memory_mb']['peak']:.0f}" for way in WAYS)
        lines.append(f"| {row['block']} | {row['precision']} | {times} | {faster} | {memory} |")
    for block, total in result["times_faster"].items():
        faster = " | ".join(f"{ratio:.1f}x" for ratio in total.values())
        lines.append(f"| {block} | all epochs | | | | {faster} | |")
    return "\n".join(lines)


def projection(setting: Setting, window_s: float) -> dict[str, Any]:
    """Hours of all stages and block types at the published recipe, from steps at one resolution.

    ImageNet's 1.28 million images, 5 epochs in FP32 and 1 with LSQ+; images are taken to be there
    in time. The recipe's resolutions are 160, 192 and 224: with 224 the hours are an upper bound.
    Each stage's block types are distilled at a time, a process each, as `tasks_per_gpu` allows: a
    step is many small operations, between which a process alone leaves the GPU idle.

    Parameters
    ----------
    window_s : seconds in which the steps of a stage's block types are counted
    """
    blocks = [option.type for option in setting.hyperspace.block_types]
    context = get_context("spawn")
    barrier = context.Barrier(len(blocks))
    pool = ProcessPoolExecutor(len(blocks), context, initializer=_share, initargs=(barrier,))
    with pool:
        jobs = [pool.submit(_steps_of_block, setting, block, window_s) for block in blocks]
        rows = [row for job in jobs for row in job.result()]
    batches = -(-IMAGENET_IMAGES // setting.batch)
    for row in rows:
        steps_s = sum(_epochs(p) * row[f"{p}_step_s"] for p in PRECISIONS)
        row["hours"] = round(batches * steps_s / 3600 / len(blocks), 3)
    return {
        "images": IMAGENET_IMAGES,
        "at_a_time": len(blocks),
        "hours": round(sum(row["hours"] for row in rows), 2),
        "of": rows,
    }


# Each process has one; if another dies, it does not wait for ever.
_barriers: list[Any] = []
_PATIENCE_S = 300.0


def _share(barrier: Any) -> None:
    _barriers.append(barrier)


def _steps_of_block(setting: Setting, block: str, window_s: float) -> list[dict[str, Any]]:
    """Seconds of a step of a block type in every stage, while other processes do theirs."""
    torch.set_num_threads(1)
    keep_memory()
    teacher, rows = new_teacher(setting), []
    for stage in setting.hyperspace.searchable:
        task = setting.task(stage.name, block, teacher)
        row: dict[str, Any] = {"stage": stage.name, "block": block}
        for name, precision in PRECISIONS.items():
            step = new_step(setting, task, precision, "package")
            step.use_own_order()
            # Every draw once before it counts; see `seconds_by_turns`.
            seconds({"package": step}, DRAWS)
            _barriers[0].wait(_PATIENCE_S)
            times, start = [], time.perf_counter()
            while time.perf_counter() < start + window_s or not times:
                times += seconds({"package": step}, DRAWS)["package"]
            row[f"{name}_step_s"] = round(float(np.mean(times)), 4)
            # Until all have counted theirs.
            _barriers[0].wait(_PATIENCE_S)
        rows.append(row)
    return rows


def picture(result: dict[str, Any], path: Path) -> None:
    """Seconds and memory of a step, the ways side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained", dpi=110)
    rows = result["steps"]
    labels = [f"{row['block']}\n{row['precision']}" for row in rows]
    colours = dict(zip(WAYS, ("#8a8f98", "#2166ac", "#67a9cf"), strict=True))
    kinds: list[tuple[str, Callable[[dict[str, Any]], float]]] = [
        ("seconds a step", lambda found: found["step_s"]),
        ("peak memory, MB", lambda found: found["memory_mb"]["peak"]),
    ]
    for axes, (title, value) in zip(figure.subplots(1, 2), kinds, strict=True):
        for i, way in enumerate(WAYS):
            places = np.arange(len(rows)) + 0.27 * (i - 1)
            bars = axes.bar(
                places, [value(r[way]) for r in rows], 0.25, label=way, color=colours[way]
            )
            if title.startswith("seconds") and way != "plain":
                axes.bar_label(bars, [f"{ratios(row)[way]:.1f}x" for row in rows], fontsize=7)
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
    torch.set_num_threads(1)
    # As every training of the package; all ways gain by it.
    keep_memory()
    on_gpu = options.device == "cuda"
    setting = CUDA if on_gpu else CPU
    # Refuses by name where torch sees no GPU.
    training_device(setting.config.device, "distill")
    result: dict[str, Any] = {
        **provenance(*PACKAGES, gpu=torch.cuda.get_device_name() if on_gpu else None),
        "stage": STAGE,
        "teacher": TEACHER.model,
        "resolution": setting.resolution,
        "batch": setting.batch,
        "mixed_precision": setting.config.mixed_precision,
        "threads": torch.get_num_threads(),
        "steps": measure(setting, BLOCKS, options.repeats),
    }
    result["times_faster"] = over_recipe(result["steps"])
    result["published_recipe"] = "not projected"
    name = "block_kd_speed_cuda.json" if on_gpu else "block_kd_speed.json"
    path = options.output or Path(__file__).with_name(name)
    write(result, path)
    if on_gpu:
        # What is measured stays if this takes too long.
        write(result | {"published_recipe": projection(setting, WINDOW_S)}, path)


def write(result: dict[str, Any], path: Path) -> None:
    """Write and print what the steps come to."""
    write_atomically(path, to_json(result))
    picture(result, path.with_suffix(".png"))
    print(table(result))


if __name__ == "__main__":
    main()
