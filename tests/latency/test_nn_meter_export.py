"""A predictor as an nn-Meter folder: registered for real, and agreeing with ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from nni_spaceevo.errors import FileAccessError, PredictorError
from nni_spaceevo.files import read_json, read_yaml
from nni_spaceevo.hyperspace import Hyperspace, Kernel, load_hyperspace
from nni_spaceevo.latency import LatencyPredictor, Lowering
from nni_spaceevo.latency.graph import subnet_model
from nni_spaceevo.latency.line import network_line
from nni_spaceevo.latency.nn_meter_export import (
    ExportReport,
    export_nn_meter,
    fit_models,
    make_visible,
    nn_meter_onnx,
    priced_kernels,
    visible,
)
from nni_spaceevo.latency.sampling import Network, random_network


@pytest.fixture(scope="module")
def exported(
    invented: LatencyPredictor, digits: Hyperspace, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExportReport]:
    """An exported predictor."""
    folder = tmp_path_factory.mktemp("exported") / "invented"
    return folder, export_nn_meter(invented, digits, folder, networks=500)


def float_model(network: Network) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    return subnet_model(network.blocks, network.code.resolution, rng, "float32")


# ---- ONNX that nn-Meter reads -----------------------------------------------------------------


@pytest.mark.parametrize("code", ["onnxw-222222-000000", "onnxw-555555-000000"])
def test_a_visible_model_computes_the_same(code: str) -> None:
    onnxw = load_hyperspace("onnxw")
    space = onnxw.space(code)
    subnet = onnxw.smallest_subnet(space)
    blocks = [b for _, stage in onnxw.subnet_blocks(space, subnet) for b in stage][:5]
    raw = subnet_model(blocks, 32, np.random.default_rng(0), "float32")
    image = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)
    seen = [
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"input": image})[0]
        for m in (raw, visible(raw))
    ]
    assert {n.op_type for n in raw.graph.node} & {"HardSwish", "Sigmoid"}
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-4, atol=1e-5)


def test_a_file_is_rewritten_once_and_for_all(digits: Hyperspace, tmp_path: Path) -> None:
    network = random_network(digits, np.random.default_rng(0))
    raw, once, twice = (tmp_path / name for name in ("raw.onnx", "once.onnx", "twice.onnx"))
    onnx.save_model(float_model(network), raw)
    make_visible(raw, once)
    assert "HardSwish" not in {n.op_type for n in onnx.load(once).graph.node}
    make_visible(once, twice)
    assert twice.read_bytes() == once.read_bytes()


def test_a_file_that_is_no_onnx_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"none\.onnx: cannot read"):
        make_visible(tmp_path / "none.onnx", tmp_path / "out.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(PredictorError, match=r"text\.onnx: not an ONNX file"):
        make_visible(tmp_path / "text.onnx", tmp_path / "out.onnx")


@pytest.mark.parametrize("name", ["onnxw", "mobilew"])
def test_nn_meter_finds_the_kernels_that_we_price(
    name: str, invented: LatencyPredictor, exported: tuple[Path, ExportReport]
) -> None:
    from nn_meter import model_to_graph
    from nn_meter.kernel_detector import KernelDetector
    from nn_meter.predictor.prediction.extract_feature import get_predict_features
    from nn_meter.predictor.prediction.predict_by_kernel import merge_conv_kernels
    from nn_meter.predictor.prediction.utils import get_kernel_name

    network = random_network(load_hyperspace(name), np.random.default_rng(3))
    detector = KernelDetector(str(exported[0] / "fusion_rules.json"))
    detector.load_graph(model_to_graph(visible(float_model(network)), "onnx"))
    found: Counter = Counter()
    for entry in get_predict_features(detector.get_kernels()).values():
        ((kernel, features),) = entry.items()
        found[get_kernel_name(merge_conv_kernels(kernel)), tuple(features)] += 1
    ours = [p.kernel for k in network.kernels for p in priced_kernels(invented, [k])]
    assert found == Counter((k.predictor, k.features) for k in ours)


@pytest.mark.slow
def test_a_torch_export_is_priced_like_our_own_onnx(
    exported: tuple[Path, ExportReport], invented: LatencyPredictor, digits: Hyperspace
) -> None:
    import torch
    from nn_meter.predictor import nnMeterPredictor

    from nni_spaceevo.network import StaticNetwork
    from nni_spaceevo.quant import FP32, set_precision

    network = random_network(digits, np.random.default_rng(2), -6)
    module = StaticNetwork(digits, network.space, network.code).eval()
    set_precision(module, FP32)
    size = network.code.resolution
    image = torch.zeros(1, digits.in_channels, size, size)
    model = torch.onnx.export(module, (image,), dynamo=True, verbose=False).model_proto
    models = fit_models(priced_kernels(invented, network.kernels), seed=0)
    meter = nnMeterPredictor(models, str(exported[0] / "fusion_rules.json"))
    ours = meter.predict(visible(float_model(network)), "onnx")
    assert meter.predict(visible(model), "onnx") == pytest.approx(ours)


# ---- our prices for nn-Meter's kernels --------------------------------------------------------


def test_the_shares_of_the_kernels_are_the_price_of_the_network(
    invented: LatencyPredictor, digits: Hyperspace, rng: np.random.Generator
) -> None:
    line = network_line(digits, invented)
    assert line == (1.0, invented.network_overhead_ms)
    for network in (random_network(digits, rng) for _ in range(5)):
        shares = [p.ms for k in network.kernels for p in priced_kernels(invented, [k], line)]
        assert sum(shares) == pytest.approx(invented.network_ms([network.placed])[0])


def test_an_activation_without_a_place_is_an_error(invented: LatencyPredictor) -> None:
    lowering = with_hard_sigmoids(invented.lowering)
    predictor = LatencyPredictor(
        invented.provenance,
        lowering,
        invented.calibration,
        invented.kernels | {"hsigmoid": invented.kernels["swish"]},
        invented.report,
        invented.folder,
    )
    with pytest.raises(PredictorError, match="no place for activation 'hsigmoid'"):
        priced_kernels(predictor, [Kernel("conv", 8, 8, 8, 3, activation="hsigmoid")])


def with_hard_sigmoids(lowering: Lowering) -> Lowering:
    """A lowering that runs hard sigmoids, too, as kernels of their own."""
    return Lowering(
        operators=lowering.operators | {"hsigmoid": ("HardSigmoid:float32",)},
        own_kernel={k: (*v, "hsigmoid") for k, v in lowering.own_kernel.items()},
        free=lowering.free,
    )


def test_a_predictor_of_whole_blocks_is_refused(invented: LatencyPredictor) -> None:
    predictor = LatencyPredictor(
        replace(invented.provenance, name="blocks"),
        Lowering(whole_blocks=True),
        invented.calibration,
        invented.kernels,
        invented.report,
        invented.folder,
    )
    with pytest.raises(PredictorError, match="blocks: measured by whole blocks"):
        priced_kernels(predictor, [])


# ---- the folder -------------------------------------------------------------------------------


def test_nn_meter_agrees_with_us_on_held_out_subnets(
    exported: tuple[Path, ExportReport],
) -> None:
    folder, report = exported
    assert report.networks["count"] >= 20
    assert abs(report.networks["bias"]) < 1
    assert report.networks["within_5"] == 100
    assert report.networks_as_exported["bias"] < report.networks["bias"] - 1
    assert read_json(folder / "export.json", ExportReport) == report
    readme = (folder / "README.md").read_text()
    assert all(word in readme for word in ("HardSwish", "Sigmoid", "Mul", "pickle"))


def test_a_folder_with_other_pickles_is_refused(
    invented: LatencyPredictor, digits: Hyperspace, tmp_path: Path
) -> None:
    (tmp_path / "maxpool.pkl").write_bytes(b"")
    with pytest.raises(PredictorError, match=r"holds maxpool\.pkl"):
        export_nn_meter(invented, digits, tmp_path, networks=1)


@pytest.mark.slow
def test_the_command_line_of_nn_meter_registers_and_predicts(
    exported: tuple[Path, ExportReport],
    invented: LatencyPredictor,
    digits: Hyperspace,
    tmp_path: Path,
) -> None:
    folder, report = exported
    network = random_network(digits, np.random.default_rng(1))
    nn_meter_onnx(network.blocks, network.code.resolution, tmp_path / "net.onnx")

    def nn_meter(*arguments: str) -> str:
        command = [str(Path(sys.executable).parent / "nn-meter"), *arguments]
        environment = os.environ | {"HOME": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    nn_meter("--list-predictors")
    nn_meter("register", "--predictor", str(folder / "meta.yaml"))
    chosen = ("--predictor", report.name, "--predictor-version", "1.0")
    output = nn_meter("predict", *chosen, "--onnx", str(tmp_path / "net.onnx"))
    found = re.search(r"\[RESULT\] predict latency for net\.onnx: (\S+) ms", output)
    assert found, output
    assert float(found[1]) == pytest.approx(invented.network_ms([network.placed])[0], rel=0.05)
    assert read_yaml(folder / "meta.yaml", dict)["package_location"] == str(folder)


@pytest.mark.slow
def test_networks_that_caches_keep_a_part_of_are_priced_as_networks(
    invented: LatencyPredictor, digits: Hyperspace, rng: np.random.Generator
) -> None:
    """Their constant is below zero, and so is the fully connected layer with it."""
    networks = [random_network(digits, rng) for _ in range(30)]
    sums_us = 1e3 * invented.chain_ms([n.placed for n in networks])
    calibration = msgspec.structs.replace(
        invented.calibration, sums_us=(sums_us.min(), sums_us.max()), shares=(0.4, 0.9)
    )
    predictor = LatencyPredictor(
        invented.provenance,
        invented.lowering,
        calibration,
        invented.kernels,
        invented.report,
        invented.folder,
    )
    line = network_line(digits, predictor)
    assert line[1] < 0
    models = fit_models(priced_kernels(predictor, networks[0].kernels, line), seed=0)
    found = 0.0
    for kernel in networks[0].kernels:
        for part in priced_kernels(predictor, [kernel], line):
            found += models[part.kernel.predictor].predict(np.array([part.kernel.features]))[0]
    straight = line[0] * predictor.chain_ms([networks[0].placed])[0] + line[1]
    assert found == pytest.approx(straight, rel=1e-2)
