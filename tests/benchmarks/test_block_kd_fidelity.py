"""The study of block losses: its statistics, and that a killed run goes on to the same figures."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from distill.data.folders import write_idx
from msgspec import structs
from scipy.stats import kendalltau

from nni_spaceevo.distill.config import DistillConfig, TeacherConfig
from nni_spaceevo.distill.stage import StageRun, StageTask
from nni_spaceevo.files import plain
from nni_spaceevo.lut.measure import Variance, channel_errors, image_losses
from nni_spaceevo.quant import INT8, set_precision


@pytest.mark.parametrize("ties", [False, True])
def test_tau_is_scipys_for_any_resample(fidelity, rng, ties):
    a, b = rng.normal(size=(2, 30))
    if ties:
        a, b = a.round(), b.round()
    counts = fidelity.Bootstrap.of(30, resamples=5).counts
    assert (counts.sum(1) == 30).all()
    for row, tau in zip(counts, fidelity.kendall(a, b, counts), strict=True):
        again = np.repeat(np.arange(30), row.astype(int))
        assert tau == pytest.approx(kendalltau(a[again], b[again]).statistic)


def test_an_interval_holds_the_truth_about_19_times_of_20(fidelity):
    # Of two normal variables with correlation r, tau is 2 / pi * arcsin(r).
    correlation, rng = 0.8, np.random.default_rng(1)
    truth, held = 2 / np.pi * np.arcsin(correlation), 0
    for _ in range(100):
        a, noise = rng.normal(size=(2, 48))
        b = correlation * a + np.sqrt(1 - correlation**2) * noise
        _, low, high = fidelity.Bootstrap.of(48, resamples=300).tau(a, b)
        held += low <= truth <= high
    assert 88 <= held <= 100


def test_a_difference_of_two_scores_is_that_of_their_taus(fidelity, rng):
    truth = rng.normal(size=20)
    boot = fidelity.Bootstrap.of(20, resamples=200)
    value, low, high = boot.difference(truth, -truth, truth)
    assert (value, low, high) == (2, 2, 2)
    value, low, high = boot.difference(truth, truth + rng.normal(size=20), truth)
    assert low <= value <= high
    assert value > 0


def test_subnets_differ_and_belong_to_the_space(fidelity):
    codes = fidelity.subnets(fidelity.STUDY)
    assert len(set(codes)) == fidelity.STUDY.subnets >= 40
    assert [fidelity.HYPERSPACE.subnet(fidelity.SPACE, code) for code in codes] == codes


def test_the_cosine_loss_asks_for_the_direction_alone(fidelity):
    x = torch.randn(2, 5, 3, 3)
    assert float(fidelity.cosine_loss(3 * x, x)) == pytest.approx(0, abs=1e-6)
    assert float(fidelity.cosine_loss(-x, x)) == pytest.approx(2)


@pytest.fixture(scope="module")
def place(fidelity, tmp_path_factory):
    """A study of seconds, on blobs whose place is their label."""
    folder, rng = tmp_path_factory.mktemp("fashion"), np.random.default_rng(0)
    for part, n in {"train": 96, "t10k": 40}.items():
        labels = rng.integers(10, size=n)
        images = rng.integers(60, size=(n, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 8, 4:24] += 150
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    tiny = DistillConfig(epochs_fp32=1, epochs_int8=1, batch_size=16)
    teacher = TeacherConfig(widths=(4, 8, 8, 8, 8), epochs=1, min_accuracy=0.01)
    narrow = TeacherConfig(widths=(4, 8, 8, 8, 4), epochs=1, min_accuracy=0.01)
    study = fidelity.Study(
        ways=(
            fidelity.Way(loss="nsr", config=tiny, teacher=teacher, images=32),
            fidelity.Way(loss="mse", config=tiny, teacher=teacher, images=32),
            fidelity.Way(loss="nsr", config=tiny, teacher=narrow, images=48),
        ),
        subnets=3,
        alone_images=96,
        teacher_images=96,
        alone_epochs_fp32=1,
        alone_epochs_int8=0.5,
        alone_batch=16,
        calibration_images=16,
        held_out_images=20,
        test_images=40,
    )
    return fidelity.Place(study, folder, tmp_path_factory.mktemp("work"))


def results(place):
    return {str(p.relative_to(place.work)): p.read_text() for p in place.work.rglob("*.json")}


@pytest.fixture(scope="module")
def finished(fidelity, place):
    """All jobs done, in order."""
    seen = []
    fidelity.run_all(fidelity.jobs(place), 1, seen.append)
    assert seen == list(range(1, len(fidelity.jobs(place)) + 1))
    return fidelity.findings(place)


def test_findings_have_every_subnet_seed_stage_and_way(fidelity, place, finished):
    assert finished.accuracy["int8"].shape == finished.accuracy["fp32"].shape == (3, 2)
    ways = {way.name for way in place.study.ways}
    assert set(finished.losses) == {
        (w, p, j) for w in ways for p in ("fp32", "int8") for j in fidelity.LOSSES
    }
    assert all(v.shape == (3, 4) and (v > 0).all() for v in finished.losses.values())


def test_training_with_another_loss_gives_another_stage(finished, place):
    nsr, mse, narrow = (finished.losses[way.name, "fp32", "mse"] for way in place.study.ways)
    assert not np.allclose(nsr, mse)
    assert not np.allclose(nsr, narrow)


def test_a_block_loss_is_that_of_the_lut(fidelity, place, finished):
    way, data = place.study.ways[0], place.data(place.study.ways[0].images)
    task = StageTask(fidelity.HYPERSPACE, 1, 1, fidelity.teacher_of(place, way), data, 0)
    model = StageRun(task, way.config, fidelity.stage_folder(place, way)).run()
    set_precision(model, INT8)
    chosen = fidelity.substages(place.study, 1)[2]
    calibration = task.train_features(torch.arange(16), 28)
    held_out = task.test_features(torch.arange(20), 28)
    errors = channel_errors(model, [chosen], [calibration], [held_out])
    loss = image_losses(errors, Variance.of([held_out])).mean()
    assert loss == pytest.approx(finished.losses[way.name, "int8", "nsr"][2, 1], rel=1e-5)


def test_what_is_done_is_not_done_again(fidelity, place, finished, monkeypatch):
    monkeypatch.setattr(fidelity, "fit", None)
    monkeypatch.setattr(fidelity, "judge", None)
    fidelity.run_all(fidelity.jobs(place), 1, lambda done: None)


def test_a_run_killed_anywhere_goes_on_to_the_same_figures(fidelity, place, finished, tmp_path):
    other = fidelity.Place(place.study, place.dataset, tmp_path)
    judge, calls = fidelity.judge, []

    def stop(*arguments):
        # While the first stage is judged, in either precision.
        calls.append(1)
        if len(calls) in (1, 3):
            raise KeyboardInterrupt
        return judge(*arguments)

    way = place.study.ways[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "judge", stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                fidelity.distil(other, way, 0)
        fidelity.distil(other, way, 0)
    fidelity.train_alone(other, 2, 1)
    whole, again = results(place), results(other)
    assert len(again) == 3
    assert again.items() <= whole.items()


def test_the_summary_and_the_picture_show_all_ways(fidelity, place, finished, tmp_path):
    result = fidelity.summary(place, finished)
    assert len(result["ways"]) == 3 * 2 * len(fidelity.LOSSES) * len(fidelity.JOINS)
    assert sum(row["share_of_variance"] for row in result["stages"]) == pytest.approx(1, abs=0.01)
    labels = [label for label, *_ in fidelity.figure_rows(result)]
    assert (
        labels[0] == "nsr 32x1+1 teacher=8 batch_size=16, fp32"
        and "MFLOPs" in labels
        and len(labels) == 3 * 2 + 3
    )
    fidelity.picture(finished, result, place.study, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_accuracies_of_an_earlier_output_are_taken_if_it_is_of_the_same_trainings(
    fidelity, place, finished, tmp_path
):
    earlier = {"study": plain(place.study), **fidelity.summary(place, finished)}
    other = fidelity.Place(place.study, place.dataset, tmp_path)
    fidelity.take_accuracies(other, earlier)
    whole, taken = results(place), results(other)
    assert len(taken) == place.study.subnets * place.study.seeds
    assert {k: json.loads(v) for k, v in taken.items()}.items() <= {
        k: json.loads(v) for k, v in whole.items()
    }.items()
    with pytest.raises(ValueError, match="alone_batch is 7 there"):
        fidelity.take_accuracies(other, {**earlier, "study": earlier["study"] | {"alone_batch": 7}})


def test_losses_of_an_earlier_output_are_taken_if_it_is_of_the_same_ways(
    fidelity, place, finished, tmp_path
):
    raw = {"study": plain(place.study), **fidelity.summary(place, finished)}
    # Taus of so few subnets are not numbers, which JSON proper does not know.
    earlier = json.loads(json.dumps(raw))
    study = structs.replace(place.study, alone_batch=7)
    other = fidelity.Place(study, place.dataset, tmp_path)
    fidelity.take_losses(other, earlier)
    shutil.copytree(place.folder / "alone", other.folder / "alone")
    taken = fidelity.findings(other)
    for key, losses in finished.losses.items():
        assert taken.losses[key] == pytest.approx(losses, abs=1e-6)
    accuracies = fidelity.summary(other, taken)["teacher_accuracies"]
    assert accuracies == earlier["teacher_accuracies"]
    fewer = {**earlier, "study": earlier["study"] | {"ways": earlier["study"]["ways"][1:]}}
    with pytest.raises(ValueError, match="ways is"):
        fidelity.take_losses(other, fewer)
