"""The timing of a sandwich step: the plain step is the same step, and the sums are right."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
import torch
from supernet.tiny import OPTIONS, tiny_hyperspace

from nni_spaceevo.errors import ConfigError, SpaceEvoError
from nni_spaceevo.network.layers import ConvLayer
from nni_spaceevo.quant import uninitialized
from nni_spaceevo.supernet.config import SupernetConfig
from nni_spaceevo.supernet.model import Supernet


@pytest.fixture
def small(sandwich):
    """A small hyperspace with squeeze and excite, and few small images."""
    options = (OPTIONS["onnxw-mbv3_res"], OPTIONS["onnxw-resnet"])
    # Images of one channel are in every order in memory at once.
    changes = {"resolutions": (16,), "in_channels": 3}
    hyperspace = msgspec.structs.replace(tiny_hyperspace(*options), **changes)
    config = SupernetConfig(device="cpu", batch_size=8)
    return sandwich.Setting(hyperspace, "tiny-01-00", config)


@pytest.fixture(params=["fp32", "int8"])
def precision(request):
    """Both phases."""
    return request.param


def all_steps(sandwich, setting, precision, ways=("plain", "package")):
    return {way: sandwich.new_step(setting, precision, way) for way in ways}


def gradients(step):
    return {n: p.grad for n, p in step.trainer.supernet.named_parameters() if p.grad is not None}


def test_the_plain_step_has_the_packages_losses_and_gradients(sandwich, small, precision):
    found = all_steps(sandwich, small, precision)
    assert sandwich.check_same(small, found) < 1e-4
    # Weights have been changed by one step, and momenta are there.
    losses = {way: step(1) for way, step in found.items()}
    np.testing.assert_allclose(losses["plain"], losses["package"], rtol=1e-3)
    plain, package = (gradients(found[way]) for way in ("plain", "package"))
    assert list(plain) == list(package)
    assert any("log_scale" in name for name in plain) == (precision == "int8")
    for name, ours in package.items():
        # Some are nothing but rounding, such as those of biases before a BatchNorm.
        kind = name.rpartition(".")[2]
        rounding = 1e-5 * max(float(g.norm()) for n, g in package.items() if n.endswith(kind))
        assert float((plain[name] - ours).norm()) < 1e-2 * float(ours.norm()) + rounding, name


@pytest.mark.parametrize("way", ["plain", "package"])
def test_every_quantizer_has_a_range_before_the_first_step(sandwich, small, way):
    assert not uninitialized(sandwich.new_step(small, "int8", way).trainer.supernet)


def test_both_ways_change_weights_alike(sandwich, small, precision):
    states = []
    for step in all_steps(sandwich, small, precision).values():
        before = {n: p.detach().clone() for n, p in step.trainer.supernet.named_parameters()}
        step(0), step(1)
        after = dict(step.trainer.supernet.named_parameters())
        states.append({n: float((after[n].detach() - before[n]).norm()) for n in before})
    plain, package = states
    assert sum(package.values()) > 0
    assert plain == pytest.approx(package, rel=0.02, abs=1e-6)


def test_the_plain_step_makes_four_passes_with_copies_of_slices(
    sandwich, small, precision, monkeypatch
):
    passes, weights = [], []
    features, forward = Supernet.features, ConvLayer.forward
    monkeypatch.setattr(
        Supernet, "features", lambda s, x, code: (passes.append(code), features(s, x, code))[1]
    )
    monkeypatch.setattr(
        ConvLayer, "forward", lambda s, x, k: (weights.append(s._weight(k)), forward(s, x, k))[1]
    )
    contiguous = {}
    for way, step in all_steps(sandwich, small, precision).items():
        passes.clear(), weights.clear()
        step(0)
        assert passes == list(step.plan(0).subnets)
        contiguous[way] = all(w.is_contiguous() for w in weights)
    assert contiguous == {"plain": True, "package": False}


def test_all_steps_are_of_the_same_subnets_and_of_their_phase(sandwich, small):
    fp32, int8 = (sandwich.new_step(small, p, "package") for p in ("fp32", "int8"))
    assert fp32.plan(3).subnets == int8.plan(3).subnets != fp32.plan(4).subnets
    assert [s.trainer.precision(s.plan(0).epoch).name for s in (fp32, int8)] == ["fp32", "int8"]
    assert {code.resolution for code in fp32.plan(0).subnets} == {16}


def test_ways_that_differ_are_refused(sandwich, small):
    found = all_steps(sandwich, small, "fp32")
    with torch.no_grad():
        found["plain"].trainer.supernet.stages["logits"].blocks[0].layers[
            "linear"
        ].linear.weight.mul_(1.2)
    with pytest.raises(SpaceEvoError, match="the ways differ by"):
        sandwich.check_same(small, found)


def test_ranges_that_learn_otherwise_are_refused(sandwich, small):
    found = all_steps(sandwich, small, "int8")
    # Its values are the same, its gradient is not.
    quantizer = found["plain"].trainer.supernet.image
    quantizer.log_scale.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(SpaceEvoError, match="the ways differ by"):
        sandwich.check_same(small, found)


def test_the_package_has_channels_last_once_it_has_been_checked(sandwich, small, precision):
    found = all_steps(sandwich, small, precision)
    for step in found.values():
        step.use_own_order()
    seen = {}
    for way, step in found.items():
        step.trainer.supernet.stages["stage2"].register_forward_pre_hook(
            lambda _, given, way=way: seen.update({way: given[0]})
        )
    losses = {way: step(0) for way, step in found.items()}
    assert {way: x.is_contiguous() for way, x in seen.items()} == {"plain": True, "package": False}
    np.testing.assert_allclose(losses["package"], losses["plain"], rtol=0.05)


def test_mixed_precision_computes_about_the_same(sandwich, small):
    config = msgspec.structs.replace(small.config, mixed_precision=True)
    setting = sandwich.Setting(small.hyperspace, small.space, config)
    found = all_steps(sandwich, setting, "int8")
    assert not setting.exact
    assert sandwich.check_same(setting, found) < 0.05
    in_float = sandwich.new_step(small, "int8", "package")(1)
    mixed = found["package"](1)
    assert mixed[0] != in_float[0]
    assert mixed[0] == pytest.approx(in_float[0], rel=0.1)


def test_rows_have_the_times_of_every_way(sandwich, small, monkeypatch):
    # It starts a process a case; `cpu_memory_mb` is tested by itself.
    monkeypatch.setattr(sandwich, "_add_cpu_memory", lambda setting, rows: None)
    rows = sandwich.measure(small, 2)
    assert [(r["resolution"], r["precision"]) for r in rows] == [(16, "fp32"), (16, "int8")]
    for row in rows:
        assert sandwich.ways_of(row) == ["plain", "package"]
        assert 0 <= row["difference"] < 1e-3
        for way in sandwich.ways_of(row):
            found = row[way]
            assert len(found["all_s"]) == 2
            assert found["step_s"] == pytest.approx(np.median(found["all_s"]), abs=1e-3)
            assert found["images_per_s"] == pytest.approx(8 / found["step_s"], rel=0.02)


def test_memory_is_that_of_this_process(sandwich, small):
    kept = torch.ones(50 * 2**18)
    found = sandwich.cpu_memory_mb(small, "int8", "plain", 1)
    assert 50 < found["loaded"] <= found["peak"] < 4000
    assert kept[0] == 1


def test_the_benchmark_is_of_the_published_space_and_settings(sandwich):
    setting = sandwich.published("cpu", 224)
    assert setting.config == SupernetConfig(device="cpu", batch_size=8)
    assert sandwich.published("cpu", 160).config == SupernetConfig(device="cpu", batch_size=16)
    assert setting.resolution == 224
    assert sandwich.WAYS == ("plain", "package")
    images, labels = setting.batch()
    assert images.shape == (8, 3, 224, 224)
    assert labels.min() >= 0 and 500 < labels.max() < 1000
    setting.hyperspace.space(setting.space)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_steps_are_refused(sandwich):
    with pytest.raises(ConfigError, match="sees no GPU"):
        sandwich.published("cuda", 160).batch()


def row(precision, plain, package):
    return {
        "resolution": 160,
        "batch": 16,
        "precision": precision,
        "difference": 1e-6,
        **{
            way: {
                "step_s": float(np.median(t)),
                "images_per_s": 16 / float(np.median(t)),
                "all_s": t,
                "memory_mb": {"loaded": 3.0, "peak": peak},
            }
            for way, t, peak in (("plain", plain, 9.0), ("package", package, 5.0))
        },
    }


ROWS = [
    row("fp32", [2.0, 4.0, 9.0], [1.0, 2.0, 8.0]),
    row("int8", [4.0, 8.0, 9.0], [2.0, 2.5, 9.0]),
]


def test_a_ratio_is_the_median_of_those_of_equal_subnets(sandwich):
    assert sandwich.times_faster(ROWS[0]) == {"package": 2.0}
    assert sandwich.times_faster(ROWS[1]) == {"package": 2.0}
    assert sandwich.quantized_over_float(ROWS) == {"160": {"plain": 2.0, "package": 1.25}}


def test_the_table_has_every_step(sandwich):
    result = {"steps": ROWS, "lsq_over_fp32": sandwich.quantized_over_float(ROWS)}
    head, _, fp32, int8 = sandwich.table(result).splitlines()
    assert fp32 == "| 160 | 16 | fp32 | 4.00 | 2.00 | 2.00x |  |  | 4.0, 8.0 | 9, 5 |"
    assert int8 == "| 160 | 16 | int8 | 8.00 | 2.50 | 2.00x | 2.00x | 1.25x | 2.0, 6.4 | 9, 5 |"
    assert head.count("|") == fp32.count("|")


def test_hours_are_those_of_all_epochs_on_all_gpus(sandwich):
    found = sandwich.projection(ROWS, SupernetConfig(batch_size=64))
    steps = -(-1_281_167 // (8 * 64))
    hours = steps * (360 * 2.0 + 50 * 2.5) / 3600
    assert found["hours"]["160"]["package"] == pytest.approx(hours, abs=0.1)
    assert found["epochs"] == {"fp32": 360, "int8": 50}


def test_the_picture_is_one(sandwich, tmp_path):
    sandwich.picture({"steps": json.loads(json.dumps(ROWS))}, tmp_path / "step.png")
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
