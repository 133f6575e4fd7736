"""What pays on a GPU where a supernet is trained: bfloat16, channels last, batches, compiling.

Sandwich steps of the space onnxw-151122-023231, FP32 and LSQ+, settings by turns and of the same
subnets: float32 or bfloat16, each in torch's usual order in memory and with channels last, at the
published batch of 64 images a GPU; and the package's choice with a larger batch, if the GPU's
memory lasts. torch.compile is tried on the largest subnet alone, forward and backward: random
subnets differ from step to step and would have to be compiled each time. From each batch it
projects the hours of the published recipe on 8 GPUs. Writes `supernet_gpu.json` beside this script.

    python benchmarks/supernet_gpu.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from provenance import provenance
from step_costs import gpu_memory_mb, seconds_by_turns
from supernet_step import (
    CONFIGS,
    PACKAGES,
    PRECISIONS,
    RESOLUTIONS,
    SPACE,
    Setting,
    Step,
    new_step,
    projection,
    published,
)
from torch import Tensor

from nni_spaceevo.device import training_device
from nni_spaceevo.files import to_json, write_atomically

ORDERS = {"usual": torch.contiguous_format, "channels_last": torch.channels_last}
BATCHES = (64, 256)
REPEATS = 8


def with_config(setting: Setting, **changes: Any) -> Setting:
    """The same with other settings of training."""
    config = msgspec.structs.replace(setting.config, **changes)
    return Setting(setting.hyperspace, setting.space, config)


def prepared(setting: Setting, precision: str, order: str) -> Step:
    """A step of this package in that order in memory."""
    step = new_step(setting, precision, "package")
    step.order.use(ORDERS[order])
    return step


def timed(cases: dict[tuple[bool, str], Setting], precision: str, repeats: int) -> list[dict]:
    """A row for each case, mixed precision and order in memory."""
    steps = {key: prepared(setting, precision, key[1]) for key, setting in cases.items()}
    times = seconds_by_turns(steps, range(1, repeats + 1))
    rows = []
    for (mixed, order), values in times.items():
        setting = cases[mixed, order]
        step_s, batch = statistics.median(values), setting.config.batch_size
        rows.append(
            {
                "resolution": setting.resolution,
                "batch": batch,
                "precision": precision,
                "bfloat16": mixed,
                "order": order,
                "step_s": round(step_s, 4),
                "images_per_s": round(batch / step_s, 1),
                "all_s": [round(v, 4) for v in values],
            }
        )
    return rows


def choices(setting: Setting, repeats: int) -> list[dict[str, Any]]:
    """Both numbers and both orders, both precisions, at the setting's batch."""
    cases = {
        (mixed, order): with_config(setting, mixed_precision=mixed)
        for mixed in (False, True)
        for order in ORDERS
    }
    return [row for precision in PRECISIONS for row in timed(cases, precision, repeats)]


def larger_batches(setting: Setting, batches: tuple[int, ...], repeats: int) -> list[dict]:
    """The package's own choice with other batches, until the memory does not do."""
    rows = []
    for batch in batches:
        case = {(setting.config.mixed_precision, "channels_last"): setting}
        case = {key: with_config(setting, batch_size=batch) for key in case}
        try:
            for precision in PRECISIONS:
                (row,) = timed(case, precision, repeats)
                ((key, each),) = case.items()
                if each.device.type == "cuda":
                    row["memory_mb"] = gpu_memory_mb(partial(prepared(each, precision, key[1]), 1))
                rows.append(row)
        except torch.OutOfMemoryError:
            rows.append({"resolution": setting.resolution, "batch": batch, "out_of_memory": True})
            break
    return rows


def compiling(setting: Setting, precision: str, repeats: int) -> dict[str, Any]:
    """The largest subnet's forward and backward pass, as it is and compiled."""
    step = prepared(setting, precision, "channels_last")
    supernet, code, labels = step.trainer.supernet, step.plan(1).subnets[0], step.labels

    def forward(images: Tensor) -> Tensor:
        logits: Tensor = supernet(images, code)
        return logits

    def train(logits: Callable[[Tensor], Tensor]) -> None:
        supernet.zero_grad()
        with step.trainer._autocast(setting.device):
            loss = torch.nn.functional.cross_entropy(logits(step.images), labels)
        loss.backward()

    row: dict[str, Any] = {
        "resolution": setting.resolution,
        "batch": setting.config.batch_size,
        "precision": precision,
        "subnet": str(code),
    }
    compiled = torch.compile(forward)
    start = time.perf_counter()
    try:
        train(compiled)
    except Exception as error:  # Whatever the compiler meets is what is measured here.
        return row | {"failed": str(error).strip().splitlines()[0]}
    row["compile_s"] = round(time.perf_counter() - start, 1)
    ways = {"eager": lambda _: train(forward), "compiled": lambda _: train(compiled)}
    times = seconds_by_turns(ways, range(repeats))
    row |= {f"{way}_s": round(statistics.median(values), 4) for way, values in times.items()}
    return row


def hours(rows: list[dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """Of the published recipe, for each batch that has all resolutions and precisions."""
    found = {}
    for batch in dict.fromkeys(row["batch"] for row in rows):
        those = [row for row in rows if row["batch"] == batch and "step_s" in row]
        steps = [
            {
                "resolution": row["resolution"],
                "precision": row["precision"],
                "package": {"step_s": row["step_s"]},
            }
            for row in those
        ]
        if len(steps) == len(RESOLUTIONS) * len(PRECISIONS):
            config = msgspec.structs.replace(setting.config, batch_size=batch)
            found[str(batch)] = projection(steps, config)
    return found


def main() -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    # Refuses by name where torch sees no GPU.
    training_device(CONFIGS["cuda"].device, "supernet")
    result: dict[str, Any] = {
        **provenance(*PACKAGES, gpu=torch.cuda.get_device_name()),
        "space": SPACE,
    }
    settings = [published("cuda", resolution) for resolution in RESOLUTIONS]

    def keep(key: str, value: Any) -> None:
        result[key] = value
        write_atomically(options.output, to_json(result))
        print(key, value, flush=True)

    rows = [row for s in settings for row in larger_batches(s, BATCHES, options.repeats)]
    keep("batches", rows)
    keep("published_recipe", hours(rows, settings[0]))
    keep("choices", choices(settings[0], options.repeats))
    for precision in PRECISIONS:
        keep(f"compiling_{precision}", compiling(settings[0], precision, options.repeats))


if __name__ == "__main__":
    main()
