"""Block-wise distillation: it learns, it is reproducible, and it survives kills."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nni_spaceevo.distill.config import DistillConfig
from nni_spaceevo.distill.data import ImageFolderData, folder
from nni_spaceevo.distill.stage import StageRun, StageTask
from nni_spaceevo.distill.teachers.graph import TracedModel
from nni_spaceevo.distill.teachers.pretrained import ImageAdapter, PretrainedTeacher
from nni_spaceevo.errors import CheckpointError, TrainingError
from nni_spaceevo.quant import Quantizer, uninitialized

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
    from nni_spaceevo.lut.build import substage_loss
    from nni_spaceevo.quant import FP32, INT8, set_precision

    features = small.teacher.stage_features(images, 1)
    losses = []
    for precision in (INT8, FP32):
        set_precision(model, precision)
        losses.append(substage_loss(model, model.largest(), features, features))
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
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from distill.small_problem import small_problem
small_problem(Path(sys.argv[1])).run(Path(sys.argv[1])).run()
"""


@pytest.mark.slow
def test_a_process_killed_with_9_at_any_moment_is_continued_to_the_same_bits(
    finished, small, tmp_path
):
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(tests)]
    for delay in (4.0, 4.7, 5.5, 6.5):
        process = subprocess.Popen(command)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    assert equal(weights(small.run(tmp_path).run()), finished[2])


def test_a_run_of_other_settings_is_refused_by_name(small, tmp_path):
    small.run(tmp_path).run()
    other = DistillConfig(epochs_fp32=1, epochs_int8=1, batch_size=32)
    with pytest.raises(CheckpointError, match=r"stage2_mbv2_res\.pt: made for other settings"):
        small.run(tmp_path, config=other)


def test_a_loss_that_is_not_finite_names_stage_block_and_epoch(small, tmp_path):
    wild = DistillConfig(epochs_fp32=2, epochs_int8=1, batch_size=32, learning_rate_fp32=1e30)
    with pytest.raises(TrainingError, match="stage2_mbv2_res: NSR loss is not finite in fp32"):
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


def test_a_run_on_other_images_is_refused(small, tmp_path):
    small.run(tmp_path).run()
    other = replace(small, data=replace(small.data, train_images=small.data.train_images + 1))
    with pytest.raises(CheckpointError, match="made for other settings"):
        other.run(tmp_path)
