"""What INT8 gives on this CPU: the published SEQnets, and what a user would pick instead of them.

Each network is two ONNX files with the same random weights, FP32 and INT8; latency alone is told.

- The ten SEQnets as `spaceevo export` writes a subnet, INT8 with its own ranges and FP32 without
  quantizers.
- Networks of torchvision at 224 pixels, exported for one image (opset 17), BatchNorm folded, then
  quantized by ONNX Runtime's static post-training quantization: QDQ form, uint8 activations, int8
  weights per channel, ranges from the extremes of random images. FP32 is what is quantized. Means
  over height and width are written as GlobalAveragePool, for ONNX Runtime leaves ReduceMean in
  float: each network runs as well as its exporter can make it.

So that no activation vanishes or explodes, BatchNorm's statistics are first taken from random
images; ranges are of such images too.

All files are timed in one run, by turns, on one thread that stays on one core; `protocol` in the
raw output tells the rest. A ratio is the median over rounds of INT8 over FP32, whose turns follow
on each other. MFLOPs are millions of multiply-accumulates of convolutions and matrix products, one
image: of SEQnets by their kernels, of the others counted in the FP32 file.

"In float" are the operators that ONNX Runtime leaves in float in the INT8 file.

Writes `int8_speedup.json`, `.md` (the table) and `.png` beside this script. With `--work`, files
are kept there, and a later run with the same versions and script does not build them again.

    python benchmarks/int8_speedup.py [--rounds N] [--networks NAME ...] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import io
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from math import cos, prod, radians, sin
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
import torchvision
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from onnx import helper
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.shape_inference import quant_pre_process
from outcome import write_outcome
from provenance import provenance
from quantized_for_all import onnx_run, post_training_quantized
from torch import Tensor, nn
from tqdm import tqdm

from nni_spaceevo.deploy.bench import FileTiming, time_files
from nni_spaceevo.deploy.onnx_file import onnx_model, save_onnx
from nni_spaceevo.errors import ConfigError, QuantizationError, SpaceEvoError
from nni_spaceevo.files import Record, digest, read_yaml
from nni_spaceevo.hyperspace import Hyperspace, SpaceCode, SubnetCode, load_hyperspace, mflops
from nni_spaceevo.latency.devices.onnx_runtime import optimized
from nni_spaceevo.latency.sampling import network
from nni_spaceevo.network import StaticNetwork
from nni_spaceevo.page import drawing, plain_ticks
from nni_spaceevo.quant import INT8, set_precision
from nni_spaceevo.supernet.recalibration import recalibrate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy")
TORCHVISION = (
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0"),
    *("mnasnet1_0", "shufflenet_v2_x1_0", "regnet_y_400mf", "resnet18", "resnet50"),
)
PIXELS = 224
CODES = Path(__file__).with_name("seqnets.yaml")
SEED, IMAGES = 0, 8
# What costs hardly more in floats.
MOVES = ("Transpose", "Flatten", "Reshape")
# Groups of networks: what they are called, and their colour and marker in the picture.
TORCHVISION_GROUP = "torchvision"
GROUPS = {
    "vnni": "SEQnets found for x86 VNNI",
    "pixel4": "SEQnets found for Pixel 4",
}
STYLES = {
    GROUPS["vnni"]: ("C0", "o"),
    GROUPS["pixel4"]: ("C0", "D"),
    TORCHVISION_GROUP: ("C1", "s"),
}


# ---- networks ---------------------------------------------------------------------------------


class Published(Record, frozen=True):
    """The file of published codes: spaces by name, and subnets by names that begin with theirs."""

    spaces: dict[str, str]
    subnets: dict[str, str]


@dataclass(frozen=True)
class Models:
    """A network twice, with equal weights."""

    float32: onnx.ModelProto
    int8: onnx.ModelProto


@dataclass(frozen=True)
class Network:
    """A network to be timed.

    Attributes
    ----------
    name : in the table
    group : which of `STYLES`
    pixels : height and width of an image
    build : makes its models, always the same ones
    mflops : millions of multiply-accumulates, None where they are counted in the FP32 model
    """

    name: str
    group: str
    pixels: int
    build: Callable[[], Models]
    mflops: float | None = None


def seqnet(
    name: str, group: str, hyperspace: Hyperspace, space: SpaceCode, code: SubnetCode
) -> Network:
    """A subnet as a network to be timed."""
    size = mflops(network(hyperspace, space, code).kernels)
    build = partial(subnet_models, hyperspace, space, code)
    return Network(name, group, code.resolution, build, size)


def of_torchvision(name: str, pixels: int = PIXELS) -> Network:
    """A network of torchvision as one to be timed."""
    return Network(name, TORCHVISION_GROUP, pixels, partial(torchvision_models, name, pixels))


def networks() -> dict[str, Network]:
    """The ten SEQnets and torchvision's networks, by name."""
    codes = read_yaml(CODES, Published)
    found = []
    for name, text in codes.subnets.items():
        device = name.partition("-")[0]
        space = SpaceCode.parse(codes.spaces[device])
        hyperspace = load_hyperspace(space.hyperspace)
        code = hyperspace.subnet(hyperspace.space(space), text)
        found.append(seqnet(f"SEQnet@{name}", GROUPS[device], hyperspace, space, code))
    found += [of_torchvision(name) for name in TORCHVISION]
    return {n.name: n for n in found}


def chosen(names: Sequence[str] | None) -> list[Network]:
    """The networks of these names, all without names; raises `ConfigError`."""
    known = networks()
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--networks {name}: unknown; known: {', '.join(known)}")
    # Each once, in the table's order.
    return [n for n in known.values() if not names or n.name in names]


# ---- models -----------------------------------------------------------------------------------


def random_images(channels: int, pixels: int) -> Tensor:
    """Images as normalized ones are, (IMAGES, channels, pixels, pixels)."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(IMAGES, channels, pixels, pixels, generator=generator)


@torch.no_grad()
def subnet_models(hyperspace: Hyperspace, space: SpaceCode, code: SubnetCode) -> Models:
    """A subnet with random weights as `spaceevo export` writes it."""
    images = random_images(hyperspace.in_channels, code.resolution)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = StaticNetwork(hyperspace, space, code)
    set_precision(net, INT8)
    net.train()(images)  # Gives every quantizer its range.
    recalibrate(net, [images])
    write = partial(onnx_model, net, hyperspace.subnet_blocks(space, code), code.resolution)
    return Models(write("float32"), write("int8"))


def torchvision_models(name: str, pixels: int) -> Models:
    """A network of torchvision with random weights, and its post-training quantization."""
    images = random_images(3, pixels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = torchvision.models.get_model(name, weights=None)
    recalibrate(net, [images])
    float32 = exported(net, images[:1])
    require_same(name, float32, net, images[:1])
    calibration = list(images.split(1))
    return Models(float32, post_training_quantized(float32, calibration, CalibrationMethod.MinMax))


def exported(net: nn.Module, image: Tensor) -> onnx.ModelProto:
    """A network in evaluation mode as ONNX for one image, BatchNorm folded, sizes fixed."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        # The exporter of this form warns of its age; the other writes every pooling as a mean.
        warnings.simplefilter("ignore")
        given, folded = Path(place) / "given.onnx", Path(place) / "folded.onnx"
        names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}
        torch.onnx.export(net, (image,), given, opset_version=17, dynamo=False, **names)
        onnx.save(with_pooling(onnx.load(given)), given)
        quant_pre_process(given, folded, skip_symbolic_shape=True)
        return onnx.load(folded)


def with_pooling(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, means over height and width written as GlobalAveragePool."""
    nodes = [part for node in model.graph.node for part in _pooling(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _pooling(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type != "ReduceMean" or list(given["axes"]) not in ([2, 3], [-2, -1], [-1, -2]):
        return [node]
    (x,), (result,) = node.input, node.output
    if given.get("keepdims", 1):
        return [helper.make_node("GlobalAveragePool", [x], [result], name=node.name)]
    pooled = f"{result}_pooled"
    return [
        helper.make_node("GlobalAveragePool", [x], [pooled], name=node.name),
        helper.make_node("Flatten", [pooled], [result], name=f"{node.name}_flat"),
    ]


@torch.no_grad()
def require_same(name: str, model: onnx.ModelProto, net: nn.Module, image: Tensor) -> None:
    """Raise `QuantizationError` unless an exported network computes what it was exported from."""
    left = {n.op_type for n in model.graph.node} & {"BatchNormalization", "ReduceMean"}
    if left:
        raise QuantizationError(f"{name}: its ONNX file has {sorted(left)[0]}; expected none")
    ours, theirs = net(image), onnx_run(model)(image)
    apart = float((ours - theirs).abs().max() / ours.abs().max())
    if not apart < 1e-3:
        raise QuantizationError(
            f"{name}: logits of its ONNX file are {apart:.2g} of the largest apart from its own; "
            "expected less than 0.001"
        )


def million_macs(model: onnx.ModelProto) -> float:
    """Millions of multiply-accumulates of a float model's convolutions and matrix products.

    Parameters
    ----------
    model : its sizes fixed, for one image, its weights initializers
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    weights = {w.name: list(w.dims) for w in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":  # A weight's row for every value of the result.
            total += prod(weights[node.input[1]][1:]) * prod(shapes[node.output[0]])
        elif node.op_type == "Gemm":
            total += prod(weights[node.input[1]])
    return total / 1e6


def left_in_float(model: onnx.ModelProto) -> dict[str, int]:
    """Operators of an INT8 model that take floats once ONNX Runtime has optimised it, with counts.

    What an operator is called does not tell: pooling, splits and the like take integers as well.
    """
    graph = optimized(model).graph
    floats = {value.name for value in graph.input}
    found: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            floats.update(node.output)
        elif node.op_type != "QuantizeLinear" and floats.intersection(node.input):
            floats.update(node.output)
            found[node.op_type] += node.op_type not in MOVES
    return dict(+found)


# ---- files and figures ------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """A network's files and what is known of them before they are timed.

    Attributes
    ----------
    float32, int8 : ONNX
    mflops : millions of multiply-accumulates
    in_float : operators of the INT8 file that the installed ONNX Runtime leaves in float
    """

    float32: Path
    int8: Path
    mflops: float
    in_float: dict[str, int]


def files_of(wanted: Network, folder: Path) -> Files:
    """A network's files, built where they are missing."""
    float32, int8 = (folder / f"{wanted.name}.{p}.onnx" for p in ("float32", "int8"))
    if not (float32.is_file() and int8.is_file()):
        models = wanted.build()
        save_onnx(models.float32, float32)
        save_onnx(models.int8, int8)
    counted = wanted.mflops
    if counted is None:
        counted = million_macs(onnx.load(float32))
    return Files(float32, int8, counted, left_in_float(onnx.load(int8)))


def recipe() -> str:
    """Names what files are built with, so that those of other versions are not taken for them."""
    versions = repr([version(package) for package in PACKAGES])
    return digest(Path(__file__).read_bytes(), CODES.read_bytes(), versions)


def times(timing: FileTiming, size: float) -> dict[str, Any]:
    """A file's figures, of so many MFLOPs; times in ms."""
    return {
        "ms": round(timing.median_ms, 4),
        "low_ms": round(timing.low_ms, 4),
        "high_ms": round(timing.high_ms, 4),
        "ms_per_mflop": round(timing.median_ms / size, 6),
        "size_kb": round(timing.size_kb),
        "rounds_ms": [round(ms, 4) for ms in timing.rounds_ms],
    }


def row(wanted: Network, files: Files, float32: FileTiming, int8: FileTiming) -> dict[str, Any]:
    """A network's figures."""
    return {
        "network": wanted.name,
        "group": wanted.group,
        "pixels": wanted.pixels,
        "mflops": round(files.mflops, 2),
        "fp32": times(float32, files.mflops),
        "int8": times(int8, files.mflops),
        "int8_over_fp32": round(int8.ratio_to(float32), 4),
        "in_float": files.in_float,
    }


def measured(wanted: Sequence[Network], folder: Path, rounds: int) -> dict[str, Any]:
    """Build what is missing in a folder, time all files by turns, and put figures together."""
    files = [files_of(n, folder / recipe()) for n in tqdm(wanted, "Building files")]
    bench = time_files([path for f in files for path in (f.float32, f.int8)], rounds)
    pairs = zip(bench.files[::2], bench.files[1::2], strict=True)
    rows = [row(n, f, *pair) for n, f, pair in zip(wanted, files, pairs, strict=True)]
    machine = bench.machine
    return {
        "protocol": machine.protocol,
        "threads": machine.threads,
        "options": machine.network_options,
        "governor": machine.governor,
        "rounds": rounds,
        "networks": rows,
    }


# ---- what comes out -----------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """A Markdown table, and below it how it was measured."""
    lines = [
        "| network | pixels | MFLOPs | FP32, ms (80 % of runs) | INT8, ms (80 % of runs) "
        "| INT8 / FP32 | FP32, ms per MFLOP | INT8, ms per MFLOP | in float |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in result["networks"]:
        spans, rates = (
            [write(r[precision]) for precision in ("fp32", "int8")] for write in (_span, _rate)
        )
        left = ", ".join(f"{count} {op}" for op, count in r["in_float"].items())
        cells = [r["network"], str(r["pixels"]), f"{r['mflops']:.1f}", *spans]
        cells += [f"{r['int8_over_fp32']:.2f}", *rates, left or "–"]
        lines.append(f"| {' | '.join(cells)} |")
    machine, versions = result["machine"], result["versions"]
    made_with = ", ".join(f"{name} {versions[name]}" for name in PACKAGES)
    return "\n".join(
        [
            *lines,
            "",
            f"- {machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags'])}); "
            f"{made_with}; {result['date']}",
            f"- {result['protocol']}; ratio: median over rounds",
            "- MFLOPs: millions of multiply-accumulates; in float: operators of the INT8 file that "
            "ONNX Runtime leaves in float",
        ]
    )


def _span(times: dict[str, Any]) -> str:
    return f"{times['ms']:.2f} ({times['low_ms']:.2f} to {times['high_ms']:.2f})"


def _rate(times: dict[str, Any]) -> str:
    return f"{times['ms_per_mflop']:.4f}"


def picture(rows: list[dict[str, Any]]) -> bytes:
    """INT8 over FP32 latency of each network, as PNG."""
    buffer = io.BytesIO()
    with drawing():
        figure = Figure(figsize=(9, 7), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots()
        _draw_points(axes, rows)
        # Labels are put where there is room, for which everything else must have its place.
        canvas.draw()
        figure.set_layout_engine("none")
        _draw_labels(axes, rows)
        canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _draw_points(axes: Axes, rows: list[dict[str, Any]]) -> None:
    axes.set(xscale="log", yscale="log", xlabel="FP32, ms", ylabel="INT8, ms")
    for group, (color, marker) in STYLES.items():
        of = [(r["fp32"]["ms"], r["int8"]["ms"]) for r in rows if r["group"] == group]
        if of:
            axes.plot(*zip(*of, strict=True), marker, color=color, markersize=5, label=group)
    axes.margins(0.12)
    ends = np.array(axes.get_xlim())
    limits = ends, axes.get_ylim()
    for times_faster, style in ((1, "-"), (2, "--"), (4, ":")):
        label = "as fast as FP32" if times_faster == 1 else f"{times_faster} times as fast"
        axes.plot(ends, ends / times_faster, style, color="0.7", linewidth=1, zorder=0, label=label)
    axes.set(xlim=limits[0], ylim=limits[1])
    plain_ticks(axes)
    axes.legend(loc="upper left")


def _draw_labels(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Each network's name near its point, where it covers neither a point nor another name."""
    legend = axes.get_legend()
    assert legend is not None
    points = [axes.transData.transform((r["fp32"]["ms"], r["int8"]["ms"])) for r in rows]
    taken = [Bbox.from_extents(*(p - 4), *(p + 4)) for p in points]
    taken.append(legend.get_window_extent())
    for r in rows:
        for offset in _offsets():
            label, box = _label(axes, r, offset)
            room = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
            if room and not box.count_overlaps(taken):
                break
            label.remove()
        else:
            # In such a crowd a name may cover others, but it is there.
            _, box = _label(axes, r, next(_offsets()))
        taken.append(box)


def _offsets() -> Iterator[tuple[float, float]]:
    """Places for a name around its point, the nearest first; in points."""
    for radius in (6, 12, 20, 30, 42, 56, 75, 100, 130):
        for degrees in range(0, 360, 15):
            yield radius * cos(radians(degrees)), radius * sin(radians(degrees))


def _label(axes: Axes, r: dict[str, Any], offset: tuple[float, float]) -> tuple[Annotation, Bbox]:
    """A name so many points from its point, and the box of its text in pixels."""
    across, up = (0 if abs(o) < 4 else 1 if o > 0 else -1 for o in offset)
    label = axes.annotate(
        r["network"].removeprefix("SEQnet@"),
        (r["fp32"]["ms"], r["int8"]["ms"]),
        offset,
        textcoords="offset points",
        ha=("center", "left", "right")[across],
        va=("center", "bottom", "top")[up],
        color=STYLES[r["group"]][0],
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0, "alpha": 0.7},
        arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkB": 3},
    )
    label.get_window_extent()  # Moves it to its place; with the line that leads to it.
    return label, Text.get_window_extent(label)


# ---- the whole of it ------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="turns of each file")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--work", type=Path, help="folder that keeps the ONNX files")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kept = nullcontext(options.work) if options.work else tempfile.TemporaryDirectory()
    try:
        with kept as folder:
            found = measured(chosen(options.networks), Path(folder), options.rounds)
    except SpaceEvoError as error:
        raise SystemExit(f"error: {error}") from error
    result = {**provenance(*PACKAGES), **found}
    write_outcome(options.output, result, table(result), picture(result["networks"]))


if __name__ == "__main__":
    main()
