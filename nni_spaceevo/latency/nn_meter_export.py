"""Writing a predictor as an nn-Meter predictor folder, and float ONNX that nn-Meter prices fully.

nn-Meter sees a network as kernels of a few sizes each, so its trees are refitted on our prices.
What it has no kernel for (HardSwish, Sigmoid, Mul) it prices at 0 ms and says nothing;
`visible` rewrites a graph, same numbers, so that it sees the activations too.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper, numpy_helper

from ..errors import FileAccessError, PredictorError
from ..files import Record, require_writable, to_json, to_yaml, write_atomically
from ..hyperspace import BlockConfig, Hyperspace, Kernel
from .features import FloatArray
from .graph import subnet_model
from .line import network_line
from .nn_meter import META_FILE, RULES_FILE, MeterKernel, MeterLowering, Model
from .predictor import LatencyPredictor
from .report import error_statistics
from .sampling import Network, random_network, random_networks

SCHEMA = 1
VERSION = 1.0
EXPORT_FILE, README_FILE = "export.json", "README.md"
# What ONNX Runtime and TFLite fold in INT8, so that one predictor prices the kernel and this.
_FUSED = (("conv", "bn"), ("conv", "relu"), ("dwconv", "bn"), ("dwconv", "relu"), ("add", "relu"))
_RULES: dict[str, Any] = {"MON": {"obey": 0}} | {
    f"BF_{first}_{second}": {"obey": True} for first, second in _FUSED
}
# Nothing else of nn-Meter's has the features that a swish needs and is free: all ReLUs are fused.
_LOWERING = MeterLowering(
    fused=frozenset(_FUSED), said_as={"relu": "relu", "relu6": "relu", "hswish": "hswish"}
)
_SWISH_AS = "relu"
_LEAST_MS = 1e-6
NETWORKS_FITTED, NETWORKS_HELD_OUT = 2000, 24
# Extremes on both sides; uniform subnets crowd in the middle of the sizes.
_TILTS = (0, -1, 1, -3, 3)


class ExportReport(Record, frozen=True):
    """Content of `export.json`.

    Attributes
    ----------
    schema : version of the file's format
    name, fingerprint : the predictor that was exported
    hyperspace, hyperspace_fingerprint : what its kernels were drawn from
    versions : of scikit-learn, which must be the same to read the pickles, and nn-Meter
    kernels : how many different kernels each predictor was fitted to
    networks : nn-Meter's predict against ours on held-out subnets, their ONNX made `visible`
    networks_as_exported : the same subnets, HardSwish and Sigmoid left as exporters write them
    notes : where prices lie that nn-Meter has no place for, and what it cannot price
    """

    schema: int
    name: str
    fingerprint: str
    hyperspace: str
    hyperspace_fingerprint: str
    versions: dict[str, str]
    kernels: dict[str, int]
    networks: dict[str, float]
    networks_as_exported: dict[str, float]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        good, raw = self.networks, self.networks_as_exported
        return (
            f"nn-Meter's predict against ours on {good['count']} held-out subnets of "
            f"{self.hyperspace}: bias {good['bias']:+.1f} %, {good['within_5']:.0f} % within 5 %, "
            f"{good['within_10']:.0f} % within 10 %; with HardSwish and Sigmoid as exporters "
            f"write them, which nn-Meter prices at 0 ms, bias {raw['bias']:+.1f} %"
        )


@dataclass(frozen=True)
class PricedKernel:
    """One example for a tree: a kernel of nn-Meter and our price of it in milliseconds."""

    kernel: MeterKernel
    ms: float


# ---- ONNX that nn-Meter reads -----------------------------------------------------------------


def nn_meter_onnx(
    blocks: Sequence[BlockConfig], resolution: int, path: Path, seed: int = 0
) -> None:
    """Write a subnet as a float ONNX file that nn-Meter reads and prices fully.

    Parameters
    ----------
    blocks : static blocks in order, the first on the image
    resolution : height and width of the image in pixels
    path : the file
    seed : of the weights, which play no part in the price

    Raises
    ------
    FileAccessError
        The file cannot be written.
    """
    model = subnet_model(blocks, resolution, np.random.default_rng(seed), "float32")
    write_atomically(path, visible(model).SerializeToString())


def visible(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float model with the same results in which nn-Meter sees hard swish and swish.

    Hard swish is written in four operators that nn-Meter knows together. The sigmoid of a swish
    gets a ReLU, which leaves values of 0 to 1 as they are, and whose predictor prices the swish.
    Means over height and width become global pools: nn-Meter fails on a squeeze-and-excite that
    starts with PyTorch's form of them.

    Parameters
    ----------
    model : as `subnet_model` writes it, or as `torch.onnx.export(dynamo=True)` does with a batch
        of 1 in evaluation mode; with `dynamo=False` nn-Meter fails on it
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    gates = _swish_gates(model.graph.node)
    for node in model.graph.node:
        if node.op_type == "HardSwish":
            result.graph.node.extend(_hard_swish(node))
        elif node.op_type == "Sigmoid" and node.output[0] in gates:
            result.graph.node.extend(_marked_sigmoid(node))
        elif node.op_type == "ReduceMean" and _is_global(node, model.graph):
            pool = helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name)
            result.graph.node.append(pool)
        else:
            result.graph.node.append(node)
    present = {tensor.name for tensor in model.graph.initializer}
    for name, value in _CONSTANTS.items():
        if name not in present:
            result.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    return result


def make_visible(source: Path, target: Path) -> None:
    """Write a float ONNX file again so that nn-Meter sees its activations, see `visible`.

    Parameters
    ----------
    source, target : ONNX files

    Raises
    ------
    PredictorError
        `source` is not an ONNX file.
    FileAccessError
        A file cannot be read or written.
    """
    try:
        model = onnx.load(source)
    except OSError as error:
        raise FileAccessError(f"{source}: cannot read ({error.strerror})") from error
    except DecodeError as error:
        raise PredictorError(f"{source}: not an ONNX file ({error})") from error
    write_atomically(target, visible(model).SerializeToString())


_CONSTANTS = {f"nn_meter_{value}": value for value in (0, 3, 6)}


def _swish_gates(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Results of the sigmoids that are multiplied with their own input."""
    inputs = {n.output[0]: n.input[0] for n in nodes if n.op_type == "Sigmoid"}
    products = [set(n.input) for n in nodes if n.op_type == "Mul"]
    return {gate for gate, value in inputs.items() if {gate, value} in products}


def _is_global(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Whether a ReduceMean of an NCHW tensor gives one pixel a channel."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    axes = attributes.get("axes", ())
    for tensor in graph.initializer:
        if tensor.name in node.input[1:]:
            axes = numpy_helper.to_array(tensor).tolist()
    return attributes.get("keepdims", 1) == 1 and {axis % 4 for axis in axes} == {2, 3}


def _hard_swish(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    value, result, name = node.input[0], node.output[0], node.output[0]
    zero, three, six = _CONSTANTS
    steps = (
        ("Add", [value, three], f"{name}_add"),
        ("Clip", [f"{name}_add", zero, six], f"{name}_clip"),
        ("Div", [f"{name}_clip", six], f"{name}_div"),
        ("Mul", [value, f"{name}_div"], result),
    )
    return [helper.make_node(op, given, [out], name=f"{out}_node") for op, given, out in steps]


def _marked_sigmoid(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    gate = node.output[0]
    raw = f"{gate}_raw"
    return [
        helper.make_node("Sigmoid", [node.input[0]], [raw], name=f"{raw}_node"),
        helper.make_node("Relu", [raw], [gate], name=f"{gate}_node"),
    ]


# ---- our prices for nn-Meter's kernels --------------------------------------------------------


def priced_kernels(
    predictor: LatencyPredictor, kernels: Sequence[Kernel], line: tuple[float, float] = (1.0, 0.0)
) -> list[PricedKernel]:
    """nn-Meter's kernels of ours, each with its share of our calibrated price.

    All that a network costs per operator and per weight is in its kernels, and its constant is in
    the fully connected layer, which every network has once, and which may then cost less than
    nothing.

    Parameters
    ----------
    predictor : whose prices
    kernels : different abstract kernels
    line : from sums of kernels to networks: slope, and constant in milliseconds

    Raises
    ------
    PredictorError
        A kernel that cannot be priced, or that nn-Meter has no place for.
    """
    if predictor.lowering.whole_blocks:
        raise PredictorError(
            f"{predictor.name}: measured by whole blocks, which nn-Meter has no kernels for"
        )
    plain = [replace(k, activation="none") if _apart(k) else k for k in kernels]
    slope, constant = line
    whole_ms, plain_ms = _prices_ms(predictor, kernels), _prices_ms(predictor, plain)
    found = []
    for kernel, main, ms, main_ms in zip(kernels, plain, whole_ms, plain_ms, strict=True):
        constant_ms = constant if kernel.op == "linear" else 0.0
        found.append(PricedKernel(_LOWERING.lower(main)[0], slope * main_ms + constant_ms))
        if _apart(kernel):
            found.append(PricedKernel(_activation(kernel), slope * max(ms - main_ms, _LEAST_MS)))
    return found


def _apart(kernel: Kernel) -> bool:
    """Whether the activation is a kernel of its own for nn-Meter."""
    return kernel.activation not in ("none", "relu", "relu6")


def _activation(kernel: Kernel) -> MeterKernel:
    names = {"hswish": "hswish", "swish": _SWISH_AS}
    if kernel.activation not in names:
        raise PredictorError(
            f"kernel {kernel.op!r}: nn-Meter has no place for activation {kernel.activation!r}; "
            f"expected relu, relu6, {', '.join(names)} or none"
        )
    return MeterKernel(names[kernel.activation], (float(kernel.hw_out), float(kernel.cout)))


def _prices_ms(predictor: LatencyPredictor, kernels: Sequence[Kernel]) -> list[float]:
    """Our calibrated price of each kernel as a part of a network."""
    lowered = [predictor.lowering.lower(k) for k in kernels]
    distinct = list(dict.fromkeys(part for parts in lowered for part in parts))
    us = dict(zip(distinct, predictor.kernels_us(distinct).tolist(), strict=True))
    c = predictor.calibration
    prices = []
    for kernel, parts in zip(kernels, lowered, strict=True):
        nodes = sum(predictor.lowering.nodes(part) for part in parts)
        weights_us = c.weight_us_per_mb * c.fetched_mb(kernel)
        in_network_us = sum(c.scale_of(p.type) * us[p] for p in parts)
        prices.append((in_network_us + c.node_us * nodes + weights_us) / 1e3)
    return prices


def fit_models(examples: Iterable[PricedKernel], seed: int) -> dict[str, Any]:
    """Boosted trees of scikit-learn for each of nn-Meter's predictors, by its name."""
    by_name: dict[str, list[PricedKernel]] = {}
    for example in examples:
        by_name.setdefault(example.kernel.predictor, []).append(example)
    return {name: _fit(found, seed) for name, found in sorted(by_name.items())}


def _fit(examples: Sequence[PricedKernel], seed: int) -> Any:
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.ensemble import GradientBoostingRegressor

    # Without threads of its own: spinning ones would cost nn-Meter more than the trees do.
    trees = GradientBoostingRegressor(
        n_estimators=300, learning_rate=0.1, max_depth=7, random_state=seed
    )
    # Kernels differ by orders of magnitude; in logarithms all of them count alike. Only a fully
    # connected layer, with the network's constant, may cost less than nothing.
    logarithms = TransformedTargetRegressor(trees, func=np.log, inverse_func=np.exp)
    ms = np.array([e.ms for e in examples])
    rows = np.array([e.kernel.features for e in examples])
    return (logarithms if ms.min() > 0 else trees).fit(rows, ms)


# ---- the folder -------------------------------------------------------------------------------


def export_nn_meter(
    predictor: LatencyPredictor,
    hyperspace: Hyperspace,
    output: Path,
    seed: int = 0,
    *,
    networks: int = NETWORKS_FITTED,
) -> ExportReport:
    """Write a folder that `nn-meter register --predictor meta.yaml` takes.

    It holds a pickle a kernel, nn-Meter's `fusion_rules.json` and `meta.yaml` (written last), a
    README and `export.json`, which says how well nn-Meter's predict agrees with ours.

    Parameters
    ----------
    predictor : what to export
    hyperspace : networks of which must agree
    output : the folder
    seed : of the networks that are drawn and of the trees
    networks : how many to draw kernels from

    Raises
    ------
    PredictorError
        A kernel that cannot be priced or that nn-Meter has no place for, or a folder with other
        pickles, which nn-Meter would load as well.
    FileAccessError
        The folder cannot be written.
    """
    rng = np.random.default_rng(seed)
    drawn = [random_network(hyperspace, rng, _TILTS[i % len(_TILTS)]) for i in range(networks)]
    line = network_line(hyperspace, predictor)
    examples = priced_kernels(predictor, _distinct_kernels(drawn), line)
    _refuse_strange_pickles(output, {e.kernel.predictor for e in examples})
    models = fit_models(examples, seed)
    held_out = random_networks(hyperspace, rng, NETWORKS_HELD_OUT, drawn)
    visible_ms, exported_ms = _nn_meter_ms(models, held_out)
    ours = predictor.network_ms([network.placed for network in held_out])
    report = ExportReport(
        schema=SCHEMA,
        name=predictor.name,
        fingerprint=predictor.fingerprint,
        hyperspace=hyperspace.name,
        hyperspace_fingerprint=hyperspace.fingerprint,
        versions={name: version(name) for name in ("scikit-learn", "nn-meter")},
        kernels={n: sum(e.kernel.predictor == n for e in examples) for n in models},
        networks=error_statistics(visible_ms, ours),
        networks_as_exported=error_statistics(exported_ms, ours),
        notes=_notes(predictor, line[1]),
    )
    # Without it nn-Meter takes the folder for none: pickles of two exports are not to be mixed.
    require_writable(output / META_FILE)
    (output / META_FILE).unlink(missing_ok=True)
    _write_pickles(output, models)
    _write_texts(output, report)
    return report


def _distinct_kernels(networks: Iterable[Network]) -> list[Kernel]:
    return list(dict.fromkeys(kernel for network in networks for kernel in network.kernels))


def _refuse_strange_pickles(output: Path, own: set[str]) -> None:
    strange = sorted(p.name for p in output.glob("*.pkl") if p.stem not in own)
    if strange:
        raise PredictorError(
            f"{output}: holds {', '.join(strange)}, which nn-Meter would load as well; "
            "choose another folder"
        )


def _write_pickles(output: Path, models: dict[str, Any]) -> None:
    import pickle

    for name, model in models.items():
        write_atomically(output / f"{name}.pkl", pickle.dumps(model))
    write_atomically(output / RULES_FILE, to_json(_RULES))


def _nn_meter_ms(
    models: dict[str, Model], networks: Sequence[Network]
) -> tuple[FloatArray, FloatArray]:
    """What nn-Meter predicts from ONNX files: made visible, and as exporters write them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It imports pkg_resources, which warns.
        from nn_meter.predictor import nnMeterPredictor  # type: ignore[import-untyped]
    logger = logging.getLogger("nn-Meter")
    logger.setLevel(logging.ERROR)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path, rules = Path(folder) / "subnet.onnx", Path(folder) / RULES_FILE
        write_atomically(rules, to_json(_RULES))
        meter = nnMeterPredictor(models, str(rules))
        for network in networks:
            rng = np.random.default_rng(0)
            raw = subnet_model(network.blocks, network.code.resolution, rng, "float32")
            pair = []
            for model in (visible(raw), raw):
                onnx.save_model(model, path)
                pair.append(float(meter.predict(str(path), "onnx")))
            found.append(pair)
    table = np.array(found)
    return table[:, 0], table[:, 1]


def _notes(predictor: LatencyPredictor, constant_ms: float) -> tuple[str, ...]:
    return (
        "nn-Meter has no predictor for HardSwish, Sigmoid and Mul and prices them at 0 ms without "
        "a word. In ONNX files as exporters write them these activations cost nothing; "
        "networks_as_exported says how much is then missing.",
        "`make_visible` of nni_spaceevo.latency.nn_meter_export rewrites an ONNX file so that they "
        "are seen: hard swish as Add, Clip, Div, Mul, priced by hswish.pkl; swish by a ReLU on its "
        f"sigmoid, priced by {_SWISH_AS}.pkl, so that file is the price of a swish, not of a ReLU.",
        "ReLU and ReLU6 are part of the convolution or sum before them.",
        f"A constant of {constant_ms:.4f} ms a network is in fc.pkl: a network "
        "with another number of fully connected layers is off by it. It is negative where caches "
        "keep part of a network from run to run. What operators and weights cost is in their "
        "kernels.",
        "nn-Meter's features do not tell the inner width of squeeze-and-excite nor the size that "
        "a global pool sees: those prices are averages.",
        "The latencies are those of the INT8 network although the ONNX file is a float one; "
        "nn-Meter cannot read quantized files."
        if predictor.provenance.precision == "int8"
        else "The latencies are those of the float network.",
        "Fitted to kernels of this hyperspace; elsewhere trees give the price of their nearest "
        "neighbour.",
    )


def _write_texts(output: Path, report: ExportReport) -> None:
    write_atomically(output / EXPORT_FILE, to_json(report))
    write_atomically(output / README_FILE, _readme(report))
    meta = {
        "name": report.name,
        "version": VERSION,
        "category": "cpu",
        # nn-Meter takes no relative folder.
        "package_location": str(output.resolve()),
        "kernel_predictors": sorted(report.kernels),
    }
    write_atomically(output / META_FILE, to_yaml(meta))


def _readme(report: ExportReport) -> str:
    notes = "\n".join(f"* {note}" for note in report.notes)
    return f"""# {report.name} for nn-Meter

    nn-meter --list-predictors            # makes nn-Meter's own folder if there is none yet
    nn-meter register --predictor {META_FILE}
    nn-meter predict --predictor {report.name} --predictor-version {VERSION} --onnx NET.onnx

Registering twice lists it twice: `nn-meter unregister --predictor {report.name}` first. After
moving the folder, change `package_location` in `{META_FILE}`. The pickles are read only by
scikit-learn {report.versions["scikit-learn"]}; reading a pickle runs what is in it, so take such
a folder only from people you trust.

{report}.

{notes}
"""
