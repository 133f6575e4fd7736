"""The study of quantized-for-all subnets: its figures, its ONNX files, and that it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from jobs.small_job import SUPERNET, write_small_job
from supernet.tiny import OPTIONS, Stripes, stripes, tiny_hyperspace, used_supernet

from nni_spaceevo.distill.config import FashionMNISTConfig
from nni_spaceevo.errors import ConfigError, QuantizationError
from nni_spaceevo.hyperspace import BlockOption, SpaceCode
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.supernets import train_supernet
from nni_spaceevo.quant import FP32, INT8
from nni_spaceevo.supernet.data import calibration_batches
from nni_spaceevo.supernet.evaluation import calibrated_subnet, evaluate

from .conftest import script

SPACE = "synthetic-1-0"
# All activations and squeeze-and-excite, which exporters and runtimes each treat in their own way.
MIXED = tiny_hyperspace(OPTIONS["onnxw-mbv3_res"], OPTIONS["mobilew-fused_mb_se_res"])


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """`benchmarks/quantized_for_all.py`."""
    return script("quantized_for_all")


@pytest.fixture(scope="module")
def small(study: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A study of a supernet that has seen images but learned nothing."""
    supernet = used_supernet(MIXED, SpaceCode(MIXED.name, (0, 1), (0, 0)), INT8)
    return study.Study(supernet, stripes(train=128), (32, 2), tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def job(study: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job whose supernet is trained."""
    job = write_small_job(tmp_path_factory.mktemp("job"), stages=1, supernet=SUPERNET)
    train_supernet(job, SPACE)
    return job


# ---- figures ----


def answers(right: int, images: int = 1000, start: int = 0) -> np.ndarray:
    """So many right answers, beginning at an image."""
    found = np.zeros(images, bool)
    found[start : start + right] = True
    return found


def test_an_error_comes_from_the_images_that_two_ways_disagree_on(study: ModuleType) -> None:
    # 20 of 1000 are lost and 50 are gained, whatever happens to the other 930.
    for agreed in (100, 800):
        reference = answers(agreed + 20)
        right = answers(agreed) | answers(50, start=900)
        found = study.gap(right, reference)
        assert found["gap"] == 3
        assert found["error"] == pytest.approx(100 * np.sqrt(70 - 30**2 / 1000) / 1000, abs=1e-4)


def test_errors_of_a_mean_do_not_shrink_for_subnets_that_err_alike(study: ModuleType) -> None:
    reference, right = answers(500), answers(480)
    alone = study.gap(right, reference)
    assert study.gap(np.stack([right] * 9), np.stack([reference] * 9)) == alone
    rng = np.random.default_rng(0)
    apart = np.stack([rng.permutation(right) for _ in range(9)])
    assert study.gap(apart, np.stack([reference] * 9))["error"] < 20 * alone["error"] / 3


def test_half_a_point_is_within_and_the_largest_gap_has_its_sign(study: ModuleType) -> None:
    def subnet(int8: int) -> dict[str, np.ndarray]:
        right = {way: answers(600) for way in ("fp32", *study.PTQ)}
        return right | {"int8": answers(int8)}

    found = study.summary([subnet(605), subnet(595), subnet(592), subnet(600)])
    assert found["int8"]["share_within_half_a_point"] == 0.75
    assert found["int8"]["largest_gap"] == -0.8
    assert found["int8"]["mean_gap"] == found["int8_above"]["ptq_minmax"]["gap"] == -0.2
    assert found["ptq_percentile"]["share_within_half_a_point"] == 1


def test_kept_answers_are_the_answers(study: ModuleType, rng: np.random.Generator) -> None:
    right = {"fp32": rng.random(37) < 0.5, "int8": rng.random(37) < 0.5}
    kept = study.Kept.of("code", right)
    assert kept.images == 37
    assert all((kept.answers[way] == found).all() for way, found in right.items())


# ---- subnets ----


def test_subnets_are_the_largest_the_smallest_and_others_by_the_seed(
    study: ModuleType, small: Any
) -> None:
    found = study.subnets(small.supernet, 6, 1)
    assert list(found)[:3] == ["largest", "smallest", "random 1"]
    assert len(set(found.values())) == len(found) == 8
    assert found["largest"] == small.supernet.largest
    assert found["smallest"] == small.supernet.smallest
    assert study.subnets(small.supernet, 6, 1) == found
    assert study.subnets(small.supernet, 6, 2) != found


def test_more_subnets_than_a_space_has_are_refused(study: ModuleType) -> None:
    space = tiny_hyperspace(BlockOption(type="mbv1_dual", kernel_sizes=(3,)))
    supernet = used_supernet(space, SpaceCode(space.name, (0, 0), (0, 0)))
    with pytest.raises(ConfigError, match=r"--subnets 400: space tiny-00-00 has hardly more than"):
        study.subnets(supernet, 400, 0)


# ---- ways ----


def test_int8_and_fp32_are_those_of_the_package(study: ModuleType, small: Any) -> None:
    code = small.supernet.smallest
    right = study.measure(small, code)
    assert list(right) == ["fp32", "int8", *study.PTQ]
    for way, precision in (("fp32", FP32), ("int8", INT8)):
        subnet = calibrated_subnet(small.supernet, code, small.data, 32, 2, precision)
        assert right[way].mean() == evaluate(subnet, small.data).accuracy


@pytest.fixture(scope="module")
def exported(study: ModuleType, small: Any) -> tuple[onnx.ModelProto, list[torch.Tensor]]:
    """The largest subnet as ONNX, and images to calibrate it with."""
    code, data = small.supernet.largest, small.data
    subnet = calibrated_subnet(small.supernet, code, data, 32, 2, FP32)
    batches = list(calibration_batches(data, code.resolution, 64, 2))
    blocks = small.supernet.hyperspace.subnet_blocks(small.supernet.space, code)
    return study.exported(subnet, blocks, batches[0]), batches


def test_the_onnx_file_computes_the_same_for_batches_of_any_size(
    study: ModuleType, small: Any, exported: tuple[onnx.ModelProto, list[torch.Tensor]]
) -> None:
    model, batches = exported
    subnet = calibrated_subnet(small.supernet, small.supernet.largest, small.data, 32, 2, FP32)
    for size in (1, 7, 64):
        with torch.no_grad():
            expected = subnet(batches[1][:size])
        found = study.onnx_run(model)(batches[1][:size])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.max()))


def test_a_file_that_computes_something_else_is_refused(
    study: ModuleType, small: Any, exported: tuple[onnx.ModelProto, list[torch.Tensor]]
) -> None:
    model, batches = exported
    # The same weights with the statistics of other images.
    other = calibrated_subnet(small.supernet, small.supernet.largest, small.data, 8, 1, FP32)
    with pytest.raises(QuantizationError, match=r"logits .* apart"):
        study._require_same(model, other, batches[0])


def test_quantized_files_have_uint8_activations_and_int8_weights_per_channel(
    study: ModuleType, exported: tuple[onnx.ModelProto, list[torch.Tensor]]
) -> None:
    model, batches = exported
    scales = []
    for method in study.PTQ.values():
        found = study.post_training_quantized(model, batches, method)
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in found.graph.initializer}
        quantizers = [n for n in found.graph.node if n.op_type == "QuantizeLinear"]
        assert {tensors[n.input[2]].dtype for n in quantizers} == {np.dtype(np.uint8)}
        makers = {n.output[0]: n for n in found.graph.node}
        convs = [n for n in found.graph.node if n.op_type == "Conv"]
        assert len(convs) == sum(n.op_type == "Conv" for n in model.graph.node)
        for conv in convs:
            weight, scale = (tensors[name] for name in makers[conv.input[1]].input[:2])
            assert weight.dtype == np.int8
            assert scale.shape == weight.shape[:1]
        scales.append([float(tensors[n.input[1]]) for n in quantizers])
        assert study.onnx_run(found)(batches[0]).shape == (64, 4)
    assert scales[0] != scales[1]


# ---- the whole of it ----


def test_a_killed_run_goes_on_with_what_is_left(
    study: ModuleType, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = list(study.subnets(small.supernet, 3, 0).values())
    asked: list[Any] = []

    def measure(of: Any, code: Any) -> dict[str, np.ndarray]:
        if len(asked) == 2:
            asked.clear()
            raise KeyboardInterrupt
        asked.append(code)
        return {"fp32": answers(codes.index(code))}

    monkeypatch.setattr(study, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        list(study.measured(small, codes))
    assert [f["fp32"].sum() for f in study.measured(small, codes[:4])] == [0, 1, 2, 3]
    assert asked == codes[2:4]


def test_other_weights_images_or_settings_have_answers_of_their_own(
    study: ModuleType, small: Any
) -> None:
    other = used_supernet(MIXED, small.supernet.space, INT8)
    assert study.Study(other, small.data, (32, 2), small.work).folder == small.folder
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    images = small.data
    renamed = Stripes(
        images.images, images.labels, images.test_images, images.test_labels, "others"
    )
    changed = [
        study.Study(other, images, (32, 2), small.work),
        study.Study(small.supernet, renamed, (32, 2), small.work),
        study.Study(small.supernet, images, (32, 3), small.work),
    ]
    assert len({s.folder for s in (small, *changed)}) == 4


def run(study: ModuleType, job: Job, output: Path) -> dict[str, Any]:
    """What the command writes."""
    given = ["--job", str(job.path), "--space", SPACE, "--subnets", "2", "--output", str(output)]
    study.main(given)
    result: dict[str, Any] = json.loads(output.read_text())
    return result


def test_the_command_writes_figures_table_and_picture_and_measures_once(
    study: ModuleType,
    job: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run(study, job, tmp_path / "found.json")
    assert list(result)[:3] == ["machine", "versions", "date"]
    assert (result["space"], result["seed"]) == (SPACE, 0)
    rows = result["subnets"]
    assert [r["subnet"] for r in rows] == ["largest", "smallest", "random 1", "random 2"]
    assert rows[0]["mflops"] > rows[1]["mflops"]
    for r in rows:
        for way in study.LABELS:
            assert r[way]["gap"] == pytest.approx(r[way]["accuracy"] - r["fp32"], abs=1e-3)
            count = r[way]["gained"] - r[way]["lost"]
            assert r[way]["gap"] == pytest.approx(100 * count / result["test_images"], abs=1e-3)
    # As training itself has found them.
    ends = result["accuracies_in_training"]
    assert ends["end_of_int8_phase"]["int8"]["largest"] == rows[0]["int8"]["accuracy"]
    assert ends["end_of_int8_phase"]["fp32"]["smallest"] == rows[1]["fp32"]
    assert list(ends["end_of_fp32_phase"]) == ["fp32"]

    shown = capsys.readouterr().out
    assert shown == (tmp_path / "found.md").read_text()
    assert [line.split(" | ")[0] for line in shown.splitlines()][2:6] == [
        f"| {r['subnet']}" for r in rows
    ]
    before = ends["end_of_fp32_phase"]["fp32"]["largest"]
    assert f"- end of fp32 phase, FP32: largest {before:.2f} %, smallest" in shown
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(study, "measure", lambda *_: pytest.fail("measured again"))
    again = run(study, job, tmp_path / "again.json")
    assert again | {"date": result["date"]} == result


def test_other_images_than_fashion_mnist_have_no_folder(
    study: ModuleType, job: Job, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="is of digits; expected fashion_mnist"):
        study.read_job(job.path, tmp_path)
    fashion = write_small_job(tmp_path, dataset="fashion_mnist")
    found = study.read_job(fashion.path, tmp_path / "images")
    assert found.dataset == FashionMNISTConfig(path=str(tmp_path / "images"))
    assert study.read_job(fashion.path, None).dataset == FashionMNISTConfig()


def test_a_supernet_without_its_second_phase_is_refused(
    study: ModuleType, tmp_path: Path, small: Any
) -> None:
    supernet = used_supernet(MIXED, small.supernet.space, FP32)
    with pytest.raises(ConfigError, match=r"spaceevo\.yaml: supernet: int8: epochs is 0"):
        study.new_study(write_small_job(tmp_path), supernet)


def test_what_is_wrong_is_said_in_a_line(study: ModuleType, job: Job) -> None:
    with pytest.raises(SystemExit, match=r"error: .*'best': no .*search\.json; search first"):
        study.main(["--job", str(job.path)])
