from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from nni_spaceevo.errors import PredictorError, PredictorWarning
from nni_spaceevo.files import packed_folder, write_atomically
from nni_spaceevo.hyperspace import BlockConfig, PlacedBlock, mparams
from nni_spaceevo.latency import Calibration, format_report, load_predictor
from nni_spaceevo.latency import predictor as predictor_module
from nni_spaceevo.latency.explain import explain
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.latency.sampling import network

from .conftest import fit_invented


@pytest.fixture
def folder(invented, tmp_path):
    """A copy of the invented predictor to be damaged."""
    return shutil.copytree(invented.folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def chains(digits):
    rng = np.random.default_rng(4)
    spaces = [digits.random_space(rng) for _ in range(20)]
    return [network(digits, s, digits.random_subnet(s, rng)).placed for s in spaces]


def test_what_was_saved_is_read(invented, chains):
    read = load_predictor(str(invented.folder))
    assert (read.name, read.fingerprint) == ("invented", invented.fingerprint)
    assert read.provenance == invented.provenance
    assert (read.lowering, read.report) == (invented.lowering, invented.report)
    assert np.array_equal(read.network_ms(chains), invented.network_ms(chains))
    assert "networks" in format_report(read.report)


def test_a_chain_is_the_calibrated_sum_of_its_kernels(invented, chains):
    expected = []
    for chain in chains:
        parts = [part for block in chain for part in invented.lowering.lower_block(block)]
        us = sum(float(invented.kernels_us([part])[0]) for part in parts)
        nodes = sum(invented.lowering.nodes(part) for part in parts)
        megabytes = sum(mparams(block.kernels) for block in chain)
        expected.append((1.1 * us + 0.5 * nodes + 10 * megabytes) / 1e3)
    assert invented.chain_ms(chains) == pytest.approx(expected, rel=1e-9)
    assert invented.network_ms(chains) == pytest.approx(np.array(expected) + 0.020, rel=1e-9)
    assert invented.network_overhead_ms == 0.020


def test_small_networks_cost_less_than_their_blocks(invented, chains, monkeypatch):
    sums = invented.chain_ms(chains) + invented.network_overhead_ms
    small, large = float(sums.min()), float(sums.max())
    calibration = msgspec.structs.replace(
        invented.calibration, sums_us=(1e3 * small, 1e3 * large), shares=(0.7, 0.9)
    )
    monkeypatch.setattr(invented, "calibration", calibration)
    along = np.log(sums / small) / np.log(large / small)
    expected = sums * (0.7 + 0.2 * along)
    assert invented.network_ms(chains) == pytest.approx(expected)
    beyond = invented.network_of_sum(np.array([small / 9, 9 * large]) - 0.020)
    assert beyond == pytest.approx([0.7 * small / 9, 0.9 * 9 * large])
    assert explain(invented, chains[0]).total_ms == pytest.approx(expected[0])


def test_chains_add_up(invented, chains):
    whole = invented.chain_ms(chains[:5])
    split = invented.chain_ms([c[:4] for c in chains[:5]]) + invented.chain_ms(
        [c[4:] for c in chains[:5]]
    )
    assert whole == pytest.approx(split, rel=1e-12)


def test_nothing_costs_nothing_and_no_chains_give_no_latencies(invented, chains):
    assert invented.chain_ms([(), chains[0], ()])[[0, 2]].tolist() == [0, 0]
    assert invented.chain_ms([]).shape == (0,)


def test_order_and_company_do_not_matter(invented, chains):
    fresh = load_predictor(invented.folder)
    backwards = fresh.chain_ms(chains[::-1])[::-1]
    assert backwards == pytest.approx(invented.chain_ms(chains), rel=1e-12)


def test_a_missing_kernel_is_an_error_that_names_it(digits, invented, tmp_path):
    poorer = fit_invented(digits, tmp_path / "poorer")
    del poorer.kernels["se"]
    block = PlacedBlock(BlockConfig("mbv3_res", 32, 32, 3, 2.0, 1, "hswish"), 8)
    with pytest.raises(PredictorError, match=r"poorer: no regressor for kernel 'se'; it has add"):
        poorer.chain_ms([[block]])
    block = PlacedBlock(BlockConfig("conv", 8, 8, 3, activation="hsigmoid"), 8)
    with pytest.raises(PredictorError, match=r"kernel 'conv\+hsigmoid': this device has no"):
        invented.chain_ms([[block]])


def test_a_kernel_outside_the_measured_range_is_priced_and_reported(digits, tmp_path):
    predictor = fit_invented(digits, tmp_path)
    far = PlacedBlock(BlockConfig("conv", 16, 4096, 3), 8)
    with pytest.warns(PredictorWarning, match=r"1 conv kernels .* cout 4096 \(fitted for"):
        assert predictor.chain_ms([[far]])[0] > 0
    assert list(predictor.extrapolated) == ["conv/8/16/4096/3/1/0"]


def test_an_activation_that_was_never_measured_is_reported(invented, tmp_path):
    fitted = invented.kernels["dwconv"]
    assert fitted.activations
    kernel = RuntimeKernel("dwconv", 7, 32, 32, 3, activation="swish")
    assert fitted.outside(replace(kernel, activation=fitted.activations[0])) == []
    (told,) = fitted.outside(kernel)
    assert told.startswith("activation swish (fitted for ")
    invented.save(tmp_path / "saved")
    read = load_predictor(tmp_path / "saved").kernels["dwconv"]
    assert read.activations == fitted.activations


def test_networks_of_sizes_that_were_not_calibrated_are_told_once(invented, chains, monkeypatch):
    (ms,) = invented.network_ms(chains[:1])
    sums = (ms * 1e3 * 1.2, ms * 1e3 * 2)
    by = msgspec.structs.replace(invented.calibration, sums_us=sums, shares=(1.0, 1.0))
    monkeypatch.setattr(invented, "calibration", by)
    monkeypatch.setattr(invented, "_sizes_told", False)
    with pytest.warns(PredictorWarning, match="it was calibrated on networks of .* extrapolated"):
        invented.network_ms(chains[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        invented.network_ms(chains[:1])


def test_fingerprints_follow_predictions(digits, invented, tmp_path):
    assert fit_invented(digits, tmp_path / "other").fingerprint == invented.fingerprint
    changed = fit_invented(digits, tmp_path / "other")
    changed.kernels.pop("pool")
    changed.save(tmp_path / "other")
    assert load_predictor(tmp_path / "other").fingerprint != invented.fingerprint


def test_saving_over_a_richer_predictor_leaves_nothing_of_it(digits, tmp_path):
    folder = tmp_path / "again"
    predictor = fit_invented(digits, folder)
    predictor.save(folder)
    del predictor.kernels["pool"]
    predictor.save(folder)
    assert not list(folder.glob("pool*.npz"))
    assert "pool" not in load_predictor(folder).kernels


def test_a_save_that_was_killed_leaves_the_old_predictor_or_the_new_one(
    digits, invented, tmp_path, monkeypatch
):
    folder = shutil.copytree(invented.folder, tmp_path / "killed")
    changed = fit_invented(digits, folder)
    changed.report["seconds"] = 1.0
    writes = []

    class KilledError(Exception):
        pass

    def write(path, content):
        if len(writes) == allowed:
            raise KilledError
        writes.append(path)
        write_atomically(path, content)

    monkeypatch.setattr(predictor_module, "write_atomically", write)
    found = []
    for allowed in range(len(changed.kernels) + 2):  # noqa: B007 - read by `write`
        writes.clear()
        with pytest.raises(KilledError):
            changed.save(folder)
        found.append(load_predictor(folder).report["seconds"])
    assert set(found) == {0.0}
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(KilledError))
    allowed = 100
    writes.clear()
    with pytest.raises(KilledError):
        changed.save(folder)
    assert load_predictor(folder).report["seconds"] == 1.0


def test_a_predictor_that_failed_its_gate_says_so(digits, tmp_path):
    predictor = fit_invented(digits, tmp_path)
    predictor.provenance = replace(predictor.provenance, failures=("bias +9.0 %",))
    predictor.save(tmp_path)
    with pytest.warns(PredictorWarning, match=r"did not pass its accuracy gate: bias \+9"):
        load_predictor(tmp_path)


# ---- damage ---------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(PredictorError, match=r"nowhere: no such latency predictor folder"):
        load_predictor(tmp_path / "nowhere")


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


@pytest.mark.parametrize("pattern", ["device.yaml", "conv-*.npz", "report.json"])
def test_a_missing_file_is_named(folder, pattern):
    path = only(folder, pattern)
    path.unlink()
    with pytest.raises(PredictorError, match=path.name):
        load_predictor(folder)


@pytest.mark.parametrize("pattern", ["conv-*.npz", "report.json"])
@pytest.mark.parametrize("keep", [0, 40])
def test_a_truncated_file_is_named(folder, pattern, keep):
    path = only(folder, pattern)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(PredictorError, match=rf"{path.name}: content does not match its hash"):
        load_predictor(folder)


def test_a_regressor_of_another_predictor_is_refused(folder):
    target = only(folder, "conv1x1-*.npz")
    shutil.copy(only(folder, "conv-*.npz"), target)
    with pytest.raises(PredictorError, match=rf"{target.name}: content does not match"):
        load_predictor(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema: 2", "schema: 99", "schema 99; this version reads 2"),
        ("scale: 1.1", "scale: .nan", "expected finite numbers"),
        ("scale: 1.1", "scale: -1.1", "none negative"),
        ("scale: 1.1", "scale: fast", r"Expected `float`, got `str` - at `\$.calibration.scale`"),
        ("threads: 1", "treads: 1", "unknown field `treads`"),
        ("file: conv-", "file: ../conv-", "leaves the folder"),
        ("schema: 2", "schema: [", "not valid YAML"),
    ],
)
def test_a_wrong_device_file_is_explained(folder, old, new, message):
    path = folder / "device.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(PredictorError, match=message) as raised:
        load_predictor(folder)
    assert "device.yaml" in str(raised.value)


def test_weights_that_a_kernel_alone_does_not_keep_are_not_paid_twice():
    calibration = Calibration(1.0, 0.0, 1.0, 0.0, kept_mb=2.0)
    widths = {1: 1.0, 2: 2.0, 3: 1.0, 4: 0.0, 9: 0.0}
    for millions, fetched in widths.items():
        block = PlacedBlock(BlockConfig("conv", 1000, 1000 * millions), 7)
        assert mparams(block.kernels) == pytest.approx(millions, rel=0.01)
        found = sum(map(calibration.fetched_mb, block.kernels))
        assert found == pytest.approx(fetched, abs=0.01 * millions)
    squeezing = PlacedBlock(BlockConfig("mbv3_res", 160, 160, 3, expand=6), 7).kernels
    se = next(kernel for kernel in squeezing if kernel.op == "se")
    assert calibration.fetched_mb(se) == 0
    as_before = msgspec.structs.replace(calibration, kept_mb=None)
    assert as_before.fetched_mb(se) == mparams([se]) > 0


def test_weights_that_are_timed_cold_are_not_paid_twice():
    calibration = Calibration(1.0, 0.0, 1.0, 0.0, cold_mb=2.0)
    for millions, fetched in {1: 1.0, 2: 0.0, 3: 0.0}.items():
        block = PlacedBlock(BlockConfig("conv", 1000, 1000 * millions), 7)
        found = sum(map(calibration.fetched_mb, block.kernels))
        assert found == pytest.approx(fetched, abs=0.01 * millions)


def test_calibration_must_be_possible():
    with pytest.raises(PredictorError, match="positive scale"):
        Calibration(scale=0, node_us=1, weight_us_per_mb=0, constant_us=1)
    costs = {"scale": 1.0, "node_us": 1.0, "weight_us_per_mb": 0.0, "constant_us": 1.0}
    for name in ("kept_mb", "cold_mb"):
        for value in (0.0, -1.0, np.nan, np.inf):
            with pytest.raises(PredictorError, match=rf"{name} is .*; expected a positive number"):
                Calibration(**costs, **{name: value})
    for sums, shares in (
        ((1.0, 2.0), (1.0,)),
        ((), ()),
        ((2.0, 1.0), (1.0, 1.0)),
        ((1.0, 2.0), (1.0, 0.4)),
        ((1.0,), (-1.0,)),
        ((1.0, np.inf), (1.0, 1.0)),
    ):
        with pytest.raises(PredictorError, match="ascending sums"):
            Calibration(**costs, sums_us=sums, shares=shares)


def test_reading_needs_nothing_heavy():
    heavy = "{'onnx', 'onnxruntime', 'scipy', 'sklearn', 'torch', 'nni', 'tqdm'}"
    code = f"import sys, nni_spaceevo.latency; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


HASHED = """
import hashlib, sys
import numpy as np
from nni_spaceevo.hyperspace import load_hyperspace
from nni_spaceevo.latency import load_predictor
from nni_spaceevo.latency.sampling import network
hyperspace, predictor = load_hyperspace(sys.argv[1]), load_predictor(sys.argv[2])
rng, chains = np.random.default_rng(0), []
for _ in range(60):
    space = hyperspace.random_space(rng)
    chains.append(network(hyperspace, space, hyperspace.random_subnet(space, rng)).placed)
print(hashlib.sha256(predictor.chain_ms(chains).tobytes()).hexdigest())
"""


def test_every_process_predicts_the_same_bits(folder):
    # Sets of kernels are ordered by a hash that Python draws anew in each process.
    example = packed_folder("examples") / "digits" / "hyperspace.yaml"
    command = [sys.executable, "-c", HASHED, str(example), str(folder)]
    seeds = [{**os.environ, "PYTHONHASHSEED": str(seed)} for seed in range(4)]
    found = {subprocess.check_output(command, env=environment) for environment in seeds}
    assert len(found) == 1


def test_the_last_bits_do_not_depend_on_the_company(invented, chains):
    together = invented.chain_ms(chains)
    invented._places.clear()
    invented._table = invented._table[:0]
    alone = [invented.chain_ms([chain])[0] for chain in reversed(chains)]
    assert together.tolist() == alone[::-1]
