"""Block-wise distillation: it learns, it is reproducible, and it survives kills."""

import contextlib
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from full_disk import full_disk

from nni_spaceevo.device import ahead
from nni_spaceevo.distill import stage
from nni_spaceevo.distill.config import DistillConfig
from nni_spaceevo.distill.data import ImageFolderData, folder
from nni_spaceevo.distill.loss import nsr_loss
from nni_spaceevo.distill.stage import StageRun, StageTask
from nni_spaceevo.distill.teachers.graph import TracedModel
from nni_spaceevo.distill.teachers.pretrained import ImageAdapter, PretrainedTeacher
from nni_spaceevo.errors import CheckpointError, FileAccessError, TrainingError
from nni_spaceevo.network import recalibrate_batch_norm
from nni_spaceevo.quant import FP32, INT8, Quantizer, set_precision, uninitialized

from .data.folders import write_images
from .teachers.tiny import NODES, trained_tiny


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A whole run, its model, and the weights as training left them."""
    run = small.run(tmp_path_factory.mktemp("stages"))
    model = run.run()
    return run, model, weights(model)


def test_losses_fall_and_the_int8_phase_follows_the_fp32_phase(finished):
    run, *_ = finished
    assert [row.precision for row in run.losses] == ["fp32", "fp32", "int8", "int8"]
    assert run.losses[-1].largest < run.losses[0].largest
    assert run.losses[-1].smallest < run.losses[0].smallest


def test_the_distilled_stage_computes_in_int8_with_every_range_known(finished):
    _, model, _ = finished
    assert uninitialized(model) == []
    assert all(m.enabled for m in model.modules() if isinstance(m, Quantizer))
    assert not model.training


def test_int8_costs_little(finished, small):
    _, model, _ = finished
    images = small.data.test_batch(torch.arange(60), 16)
    before, after = small.teacher.stage_features(images, 1)
    losses = []
    for precision in (INT8, FP32):
        set_precision(model, precision)
        with torch.no_grad():
            recalibrate_batch_norm(model, before, model.largest())
            losses.append(nsr_loss(model(before, model.largest()), after).item())
    set_precision(model, INT8)
    assert losses[0] < losses[1] * 1.2


def test_two_runs_give_the_same_bits(finished, small, tmp_path):
    assert equal(weights(small.run(tmp_path).run()), finished[2])


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_stopped_after_any_epoch_continues_to_the_same_bits(finished, small, tmp_path, epoch):
    def stop(loss):
        if loss.epoch + 1 == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.run(tmp_path).run(stop)
    continued = small.run(tmp_path)
    assert len(continued.losses) == epoch
    assert equal(weights(continued.run()), finished[2])


KILLED = """
import sys, time
from pathlib import Path
folder, tests, cache_gb = sys.argv[1:]
sys.path.insert(0, tests)
import msgspec
from distill.small_problem import DISTILL, small_problem
folder, config = Path(folder), msgspec.structs.replace(DISTILL, cache_gb=float(cache_gb))
def report(loss):
    print(loss.epoch, flush=True)
small_problem(folder).run(folder, config, folder / "features").run(report)
"""


@pytest.mark.slow
@pytest.mark.parametrize("cache_gb", ["0", "0.0007"], ids="cache of {} GB".format)
def test_a_process_killed_with_9_is_continued_to_the_same_bits(finished, small, tmp_path, cache_gb):
    """Killed after one epoch, between the phases, and in the second; a cache may be too small."""
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(tests), cache_gb]
    ends = []
    for epoch, delay in ((0, 0.2), (1, 0.0), (2, 0.3)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        # How far it gets within a delay is up to the machine; without a line it is at its end.
        while (line := process.stdout.readline()) and int(line) < epoch:
            pass
        time.sleep(delay)
        process.kill()
        ends.append(process.wait())
    assert -signal.SIGKILL in ends
    assert set(ends) <= {-signal.SIGKILL, 0}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert equal(weights(small.run(tmp_path).run()), finished[2])


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_continues(finished, small, tmp_path):
    def fill(loss):
        disk.enter_context(full_disk(20_000))

    with (
        contextlib.ExitStack() as disk,
        pytest.raises(FileAccessError, match=r"stage2_mbv2_res\.pt: cannot write \(File too large"),
    ):
        small.run(tmp_path).run(fill)
    assert [p.name for p in tmp_path.iterdir()] == ["stage2_mbv2_res.pt"]
    continued = small.run(tmp_path)
    assert len(continued.losses) == 1
    assert equal(weights(continued.run()), finished[2])


def test_batches_of_an_epoch_are_those_of_every_block_type_and_stage(small):
    tasks = [
        StageTask(small.hyperspace, stage, block, small.teacher, small.data, seed=3)
        for stage, block in ((0, 0), (1, 2))
    ]
    a, b = (task.batches(48, epoch=1) for task in tasks)
    assert [len(batch) for batch in a] == [48, 48, 48, 16]
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one.index, other.index)
        assert (one.resolution, one.seeds) == (other.resolution, other.seeds)
    assert torch.cat([batch.index for batch in a]).unique().numel() == small.data.train_size
    assert {batch.resolution for batch in a} <= set(small.hyperspace.distill_resolutions)
    other = [tasks[0].batches(48, 2), replace(tasks[0], seed=4).batches(48, 1)]
    assert all(not torch.equal(batches[0].index, a[0].index) for batches in other)
    assert all(batches[0].seeds != a[0].seeds for batches in other)


def test_a_run_of_other_settings_is_refused_by_name(small, tmp_path):
    small.run(tmp_path).run()
    other = DistillConfig(epochs_fp32=1, epochs_int8=1, batch_size=32)
    with pytest.raises(
        CheckpointError,
        match=r"stage2_mbv2_res\.pt: made for other settings \(distill\.epochs_fp32 2, expected 1; "
        r"distill\.epochs_int8 2, expected 1\); delete it, or use",
    ):
        small.run(tmp_path, config=other)


def test_a_loss_that_is_not_finite_names_stage_block_and_epoch(small, tmp_path):
    wild = DistillConfig(epochs_fp32=2, epochs_int8=1, batch_size=32, learning_rate_fp32=1e30)
    message = "stage2_mbv2_res: NSR loss is not finite in fp32 epoch 1"
    with pytest.raises(TrainingError, match=message):
        small.run(tmp_path, config=wild).run()


def test_a_stage_learns_from_a_folder_and_continues_to_the_same_bits(small, tmp_path, monkeypatch):
    data = ImageFolderData(write_images(tmp_path / "train"), write_images(tmp_path / "val"))
    traced = TracedModel(trained_tiny(), 3, 8, "tiny")
    adapter = ImageAdapter(3, data.mean, data.std, data)
    teacher = PretrainedTeacher(traced, [traced.feature(n) for n in NODES], adapter, "tiny")
    config = DistillConfig(epochs_fp32=1, epochs_int8=1, batch_size=4)

    def run(place):
        task = StageTask(small.hyperspace, 1, 1, teacher, data, seed=3)
        return StageRun(task, config, tmp_path / place)

    def stop(loss):
        raise KeyboardInterrupt

    whole = weights(run("whole").run())
    with pytest.raises(KeyboardInterrupt):
        run("killed").run(stop)
    monkeypatch.setattr(folder, "_THREADS", 1)
    assert equal(weights(run("killed").run()), whole)


def test_reading_ahead_as_for_a_gpu_changes_no_bit(finished, small, tmp_path, monkeypatch):
    def as_on_a_gpu(device, read, items):
        return ahead(torch.device("cuda"), read, items)

    monkeypatch.setattr(stage, "ahead", as_on_a_gpu)
    assert equal(weights(small.run(tmp_path).run()), finished[2])


def test_a_run_on_other_images_is_refused(small, tmp_path):
    small.run(tmp_path).run()
    other = replace(small, data=replace(small.data, train_images=small.data.train_images + 1))
    with pytest.raises(CheckpointError, match=r"made for other settings \(images \w+, expected"):
        other.run(tmp_path)
