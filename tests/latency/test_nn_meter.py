"""An nn-Meter predictor folder as a device: what is read, what is refused, what is priced."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from nni_spaceevo.errors import PredictorError, PredictorWarning
from nni_spaceevo.files import to_json, to_yaml
from nni_spaceevo.hyperspace import BlockConfig, Hyperspace, Kernel, place
from nni_spaceevo.latency.nn_meter import MeterKernel, MeterLowering, load_nn_meter
from nni_spaceevo.latency.nn_meter_export import nn_meter_onnx
from nni_spaceevo.latency.sampling import random_network

WIDTHS = {"conv-bn-relu": 7, "dwconv-bn-relu": 7, "fc": 4, "add": 3, "addrelu": 3}
WIDTHS |= dict.fromkeys(("se", "hswish", "relu", "global-avgpool"), 2)
RULES = {
    "MON": {"obey": 0},
    "BF_conv_relu": {"obey": True},
    "BF_dwconv_relu": {"obey": True},
    "BF_add_relu": {"obey": False},
}
RUNS: list[str] = []


def run_from_pickle(what: str) -> None:
    """Code that a pickle runs while it is read."""
    RUNS.append(what)


class Evil:
    """Shows whether its pickle was read."""

    def __reduce__(self) -> tuple:
        return run_from_pickle, ("read",)


def sum_of(features: int, factor: float) -> LinearRegression:
    """A regressor that returns `factor` times the sum of the features."""
    rows = np.eye(features + 1, features)
    return LinearRegression().fit(rows, rows.sum(axis=1) * factor)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An nn-Meter folder with a made-up regressor for every kernel that nn-Meter knows of ours."""
    folder = tmp_path / "meter"
    folder.mkdir()
    for i, (name, width) in enumerate(WIDTHS.items()):
        content = pickle.dumps(sum_of(width, 1e-3 * (i + 1)))
        (folder / f"{name}.pkl").write_bytes(content)
    (folder / "fusion_rules.json").write_text(to_json(RULES))
    meta = {"name": "toy", "version": 1.0, "category": "cpu", "package_location": str(folder)}
    meta["kernel_predictors"] = sorted(WIDTHS)
    (folder / "meta.yaml").write_text(to_yaml(meta))
    return folder


# ---- what is read -----------------------------------------------------------------------------


def test_without_trust_it_says_what_a_pickle_can_do_and_reads_none(folder: Path) -> None:
    RUNS.clear()
    (folder / "se.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(PredictorError, match="runs any code") as error:
        load_nn_meter(folder, trust_pickle=False)
    assert "--trust-pickle" in str(error.value)
    assert RUNS == []
    with pytest.raises(PredictorError, match=r"se\.pkl: cannot be used"):
        load_nn_meter(folder, trust_pickle=True)
    assert RUNS == ["read"]


@pytest.mark.parametrize("file", ["", "meta.yaml"])
def test_the_folder_and_its_meta_file_mean_the_same(folder: Path, file: str) -> None:
    latency = load_nn_meter(folder / file, trust_pickle=True)
    assert latency.name == "toy"
    assert latency.fingerprint == load_nn_meter(folder, trust_pickle=True).fingerprint


def test_the_fingerprint_is_that_of_the_contents(folder: Path) -> None:
    before = load_nn_meter(folder, trust_pickle=True).fingerprint
    (folder / "se.pkl").write_bytes(pickle.dumps(sum_of(2, 7.0)))
    after = load_nn_meter(folder, trust_pickle=True).fingerprint
    (folder / "fusion_rules.json").write_text(to_json({}))
    assert len({before, after, load_nn_meter(folder, trust_pickle=True).fingerprint}) == 3


def test_a_folder_without_meta_file_goes_by_its_own_name(folder: Path) -> None:
    (folder / "meta.yaml").unlink()
    assert load_nn_meter(folder, trust_pickle=True).name == "meter"


@pytest.mark.parametrize(
    ("file", "expected"),
    [("fc.pkl", "no fc.pkl"), ("fusion_rules.json", "fusion_rules.json: cannot read")],
)
def test_a_missing_file_is_named(folder: Path, file: str, expected: str) -> None:
    (folder / file).unlink()
    with pytest.raises(PredictorError, match=expected):
        load_nn_meter(folder, trust_pickle=True)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match="nowhere: cannot read"):
        load_nn_meter(tmp_path / "nowhere", trust_pickle=True)
    meta = tmp_path / "meta.yaml"
    meta.write_text("package_location: nowhere\n")
    with pytest.raises(PredictorError, match="nowhere: no such folder"):
        load_nn_meter(meta, trust_pickle=True)
    meta.write_text("name: toy\n")
    with pytest.raises(PredictorError, match="expected package_location"):
        load_nn_meter(meta, trust_pickle=True)


@pytest.mark.parametrize(
    "content",
    [
        b"not a pickle",
        pickle.dumps(sum_of(2, 1.0))[:-20],
        pickle.dumps(sum_of(2, 1.0)).replace(b"LinearRegression", b"LinearRegressiom"),
        pickle.dumps({"no": "regressor"}),
    ],
    ids=["text", "cut off", "class is gone", "another thing"],
)
def test_a_pickle_that_cannot_be_used_is_one_error_with_file_and_version(
    folder: Path, content: bytes
) -> None:
    (folder / "se.pkl").write_bytes(content)
    with pytest.raises(PredictorError, match=r"se\.pkl: cannot be used with scikit-learn \d"):
        load_nn_meter(folder, trust_pickle=True)


def test_the_version_that_wrote_a_pickle_is_told(folder: Path) -> None:
    import sklearn

    installed = sklearn.__version__.encode()
    other = b"0" + installed[1:]
    content = (folder / "se.pkl").read_bytes().replace(installed, other)
    (folder / "se.pkl").write_bytes(content)
    with pytest.warns(PredictorWarning, match=f"written by scikit-learn {other.decode()}"):
        load_nn_meter(folder, trust_pickle=True)


# ---- what is priced ---------------------------------------------------------------------------

CONV = Kernel("conv", 9, 16, 24, 3, 2, activation="relu6")


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (CONV, [("conv-bn-relu", (9, 16, 24, 3, 2, 0.0704700, 0.00348))]),
        (
            Kernel("dwconv", 8, 16, 16, 5, 1, activation="hswish"),
            [("dwconv-bn-relu", (8, 16, 16, 5, 1, 0.026624, 0.000416)), ("hswish", (8, 16))],
        ),
        (Kernel("add", 4, 8, 8, activation="relu"), [("add", (4, 8, 8)), ("relu", (4, 8))]),
        (Kernel("se", 4, 8, 8, squeezed=8), [("se", (4, 8))]),
        (Kernel("pool", 4, 8, 8), [("global-avgpool", (1, 8))]),
        (Kernel("linear", 1, 8, 5), [("fc", (8, 5, 4.25e-05, 8.5e-05))]),
    ],
    ids=lambda value: value.op if isinstance(value, Kernel) else "",
)
def test_kernels_get_nn_meters_names_and_features(kernel: Kernel, expected: list) -> None:
    found = MeterLowering.of(RULES).lower(kernel)
    assert [k.predictor for k in found] == [name for name, _ in expected]
    for part, (_, features) in zip(found, expected, strict=True):
        assert part.features == pytest.approx(features)


def test_fusion_rules_decide_what_an_activation_costs() -> None:
    apart = MeterLowering.of({"BF_conv_relu": {"obey": False}}).lower(CONV)
    assert apart[1] == MeterKernel("relu", (5, 24))
    fused = MeterLowering.of({"BF_add_relu": {"obey": True}})
    assert fused.lower(Kernel("add", 4, 8, 8, activation="relu"))[0].predictor == "addrelu"


def test_a_kernel_without_predictor_is_an_error_never_nothing(folder: Path) -> None:
    latency = load_nn_meter(folder, trust_pickle=True)
    swish = BlockConfig("conv", 3, 8, 3, activation="swish")
    with pytest.raises(PredictorError, match="no predictor for kernel 'swish', which 'conv'"):
        latency.chain_ms([place([swish], 8)])


def test_negative_latencies_are_refused(folder: Path) -> None:
    (folder / "conv-bn-relu.pkl").write_bytes(pickle.dumps(sum_of(7, -1.0)))
    latency = load_nn_meter(folder, trust_pickle=True)
    with pytest.raises(PredictorError, match=r"conv-bn-relu\.pkl: predicts"):
        latency.chain_ms([place([BlockConfig("conv", 3, 8, 3)], 8)])


def test_chains_add_up_and_an_empty_one_costs_nothing(folder: Path) -> None:
    latency = load_nn_meter(folder, trust_pickle=True)
    blocks = place([BlockConfig("conv", 3, 8, 3), BlockConfig("mbv3_res", 8, 8, 3, 2.0)], 8)
    empty, first, second, both = latency.chain_ms([(), blocks[:1], blocks[1:], blocks])
    assert empty == 0
    assert both == pytest.approx(first + second)
    assert latency.network_ms([blocks])[0] == both + latency.network_overhead_ms


def test_networks_cost_what_nn_meter_predicts(
    folder: Path, digits: Hyperspace, tmp_path: Path
) -> None:
    from nn_meter.predictor import nnMeterPredictor

    latency = load_nn_meter(folder, trust_pickle=True)
    meter = nnMeterPredictor(latency.models, str(folder / "fusion_rules.json"))
    rng, path, compared = np.random.default_rng(0), tmp_path / "net.onnx", 0
    while compared < 3:
        network = random_network(digits, rng)
        if any(k.activation == "swish" for k in network.kernels):
            continue
        nn_meter_onnx(network.blocks, network.code.resolution, path)
        expected = meter.predict(str(path), "onnx")
        assert latency.network_ms([network.placed])[0] == pytest.approx(expected)
        compared += 1
