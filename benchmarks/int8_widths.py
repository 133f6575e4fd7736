"""Which widths and which inputs suit INT8 in each runtime: two kernels, runtimes side by side.

A depthwise 3x3 convolution on 13x13 pixels by its width, every multiple of 8: microseconds for
eight channels. And padded convolutions on inputs that may be negative (as after hswish, or a
convolution without activation) against inputs that are not (as after ReLU): how much less the
latter take. All by turns, the least of some visits counts, one thread; what an empty call takes is
subtracted. Writes `int8_widths.json` and `.png` beside this script.

    pip install 'nni_spaceevo[openvino,litert]'
    python benchmarks/int8_widths.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from nni_spaceevo.files import to_json, write_atomically
from nni_spaceevo.latency.devices import Device, get_device
from nni_spaceevo.latency.devices.device import Timed
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.latency.machine import pinned

PACKAGES = ("onnxruntime", "openvino", "ai-edge-litert")
DEVICES = {
    "ort-x86-int8": "ONNX Runtime",
    "openvino-x86-int8": "OpenVINO",
    "litert-x86-int8": "LiteRT",
}
VECTOR = 8
WIDTHS = tuple(VECTOR * n for n in range(8, 65))
DEPTHWISE = RuntimeKernel("dwconv", 13, VECTOR, VECTOR, 3)
PADDED = (
    RuntimeKernel("conv", 5, 256, 256, 7),
    RuntimeKernel("conv", 10, 128, 128, 5),
    RuntimeKernel("conv", 20, 64, 64, 3),
    RuntimeKernel("conv", 40, 64, 64, 3),
    RuntimeKernel("dwconv", 5, 512, 512, 5),
    RuntimeKernel("dwconv", 10, 256, 256, 5),
    RuntimeKernel("dwconv", 20, 256, 256, 3),
)
# The runtime whose convolutions depend on it.
OF_SIGNS = "openvino-x86-int8"
VISITS, WARMUP, RUNS = 5, 10, 20


def least_us(timed: Sequence[Timed], visits: int) -> list[float]:
    """Least time of each model over some visits, by turns, in microseconds."""
    times = [[t.least_us(WARMUP, RUNS) for t in timed] for _ in range(visits)]
    return [float(us) for us in np.min(times, axis=0)]


def kernels_us(device: Device, kernels: Sequence[RuntimeKernel], visits: int) -> list[float]:
    """Microseconds of kernels alone, less an empty call."""
    models = [device.idle(1), *(device.kernel(kernel, 1) for kernel in kernels)]
    empty, *us = least_us(models, visits)
    return [round(each - empty, 3) for each in us]


def measure(widths: Sequence[int], padded: Sequence[RuntimeKernel], visits: int) -> dict[str, Any]:
    """All that the picture shows."""
    wide = [replace(DEPTHWISE, cin=width, cout=width) for width in widths]
    by_width = {name: kernels_us(get_device(name), wide, visits) for name in DEVICES}
    both = [replace(kernel, positive=positive) for kernel in padded for positive in (False, True)]
    us = kernels_us(get_device(OF_SIGNS), both, visits)
    signs = [
        {"kernel": kernel.key, "signed_us": signed, "positive_us": positive}
        for kernel, signed, positive in zip(padded, us[::2], us[1::2], strict=True)
    ]
    return {"widths": list(widths), "depthwise_us": by_width, "signs": {OF_SIGNS: signs}}


def picture(result: dict[str, Any], path: Path) -> None:
    """Microseconds for eight channels by width, and the share that inputs without a sign take."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    widths = np.array(result["widths"])
    for (name, us), colour in zip(
        result["depthwise_us"].items(), ("#2166ac", "#d6742a", "#8a8f98"), strict=True
    ):
        each = np.array(us) / widths * VECTOR
        left.plot(widths, each, ".-", color=colour, label=DEVICES[name], linewidth=0.8)
    left.set(
        xlabel="channels", ylabel="µs for 8 channels", ylim=(0, None), title="Depthwise 3x3, 13x13"
    )
    left.legend()
    (rows,) = result["signs"].values()
    shares = [row["positive_us"] / row["signed_us"] for row in rows]
    right.barh(range(len(rows)), shares, color="#d6742a")
    right.set_yticks(range(len(rows)), [_label(row["kernel"]) for row in rows])
    right.invert_yaxis()
    right.axvline(1, color="#b8bcc2", linestyle=":")
    right.set(xlabel="time, never negative / other inputs", title=DEVICES[OF_SIGNS])
    figure.savefig(path, metadata={"Software": None})


def _label(key: str) -> str:
    kind, hw, width, _, size, *_ = key.split("/")
    return f"{kind} {size}x{size}, {hw}x{hw}x{width}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--visits", type=int, default=VISITS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    with pinned():
        result = provenance(*PACKAGES) | measure(options.widths, PADDED, options.visits)
    write_atomically(options.output, to_json(result))
    picture(result, options.output.with_suffix(".png"))
    for name, us in result["depthwise_us"].items():
        each = np.array(us) / np.array(result["widths"]) * VECTOR
        print(f"{DEVICES[name]:<14}{each.min():>7.2f} to {each.max():.2f} us for 8 channels")


if __name__ == "__main__":
    main()
