"""Training from images to a file: it learns, it is reproducible, and it survives kills."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from nni_spaceevo.device import ahead
from nni_spaceevo.errors import CheckpointError, ConfigError, LockedError, TrainingError
from nni_spaceevo.files import exclusive
from nni_spaceevo.quant import INT8, uninitialized
from nni_spaceevo.supernet import run as run_module
from nni_spaceevo.supernet.run import SupernetRun
from nni_spaceevo.supernet.weights import load_supernet

from .tiny import CONFIG, stripes, tiny_hyperspace, uniform

TINY = tiny_hyperspace()
SPACE = uniform(TINY)
DATA = stripes()


def new_run(folder, **kwargs):
    return SupernetRun(TINY, SPACE, DATA, CONFIG, folder, **kwargs)


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, and the weights as training left them."""
    run = new_run(tmp_path_factory.mktemp("whole"))
    return run, weights(run.run())


def test_it_learns_in_fp32_and_then_in_int8(finished):
    run, _ = finished
    assert [e.precision for e in run.epochs] == ["fp32", "fp32", "int8", "int8"]
    assert run.epochs[-1].largest < run.epochs[0].largest
    judged = [(e.fp32, e.int8) for e in run.epochs]
    assert judged[0] == judged[2] == (None, None)
    assert judged[1][1] is None  # No ranges yet.
    for found in judged[3]:
        assert min(found.largest, found.smallest) > 0.4  # Of four classes.
        assert 0 < found.random <= 1


def test_the_random_subnets_that_are_evaluated_are_always_the_same(finished):
    run, _ = finished
    assert run.accuracies(INT8) == run.epochs[-1].int8
    rng = np.random.default_rng(CONFIG.seed)
    drawn = [TINY.random_subnet(run.supernet.space, rng) for _ in range(CONFIG.evaluated_subnets)]
    each = [run.accuracy(code, INT8) for code in drawn]
    assert run.epochs[-1].int8.random == pytest.approx(sum(each) / len(each))


def test_its_file_is_the_int8_supernet(finished):
    run, trained = finished
    loaded = load_supernet(run.weights_path, TINY, SPACE)
    assert equal(weights(loaded), trained)
    assert loaded.image.enabled and uninitialized(loaded) == []


def test_two_runs_give_the_same_bits_whatever_else_is_drawn(finished, tmp_path):
    torch.manual_seed(99)
    run = new_run(tmp_path)
    assert equal(weights(run.run(lambda epoch: torch.rand(7))), finished[1])
    assert run.epochs == finished[0].epochs


def test_reading_ahead_as_for_a_gpu_changes_no_bit(finished, tmp_path, monkeypatch):
    def as_on_a_gpu(device, read, items):
        return ahead(torch.device("cuda"), read, items)

    monkeypatch.setattr(run_module, "ahead", as_on_a_gpu)
    assert equal(weights(new_run(tmp_path).run()), finished[1])


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_stopped_after_any_epoch_continues_to_the_same_bits(finished, tmp_path, epoch):
    def stop(ended):
        if ended.epoch + 1 == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new_run(tmp_path).run(stop)
    continued = new_run(tmp_path)
    assert len(continued.epochs) == epoch
    assert equal(weights(continued.run()), finished[1])
    assert continued.epochs == finished[0].epochs


@pytest.mark.parametrize("steps", [1, 5, 6, 8])
def test_a_run_stopped_within_an_epoch_continues_to_the_same_bits(finished, tmp_path, steps):
    class Stopping(type(DATA)):
        left = steps

        def train_batch(self, index, resolution, seeds=None):
            if seeds is not None:
                if not Stopping.left:
                    raise KeyboardInterrupt
                Stopping.left -= 1
            return super().train_batch(index, resolution, seeds)

    data = Stopping(**vars(DATA))
    with pytest.raises(KeyboardInterrupt):
        SupernetRun(TINY, SPACE, data, CONFIG, tmp_path, save_every_s=0).run()
    continued = new_run(tmp_path)
    assert len(continued.epochs) == steps // 3
    trained = []
    step = continued.trainer.step
    continued.trainer.step = lambda *args: trained.append(1) or step(*args)
    assert equal(weights(continued.run()), finished[1])
    assert len(trained) == 4 * 3 - steps
    assert continued.epochs == finished[0].epochs


def test_a_finished_run_has_nothing_left_to_do(finished, tmp_path):
    run = new_run(tmp_path)
    run.run()
    run.weights_path.unlink()
    again = new_run(tmp_path)
    again.trainer.step = None
    assert equal(weights(again.run()), finished[1])
    assert again.weights_path.is_file()


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from supernet.test_run import new_run
import torch
run = new_run(Path(sys.argv[1]), save_every_s=0)
step = run.trainer.step
def told(images, labels, plan):
    print(plan.epoch, flush=True)
    return step(images, labels, plan)
run.trainer.step = told
run.run()
"""


@pytest.mark.slow
def test_a_process_killed_with_9_at_any_moment_is_continued_to_the_same_bits(finished, tmp_path):
    """Killed in the first phase, at its end, and in the second."""
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(tests)]
    ends = []
    for epoch, delay in ((0, 0.02), (1, 0.0), (2, 0.05)):
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
    assert equal(weights(new_run(tmp_path).run()), finished[1])


def test_checkpoints_of_other_settings_images_or_spaces_are_refused(tmp_path):
    first = new_run(tmp_path)
    first.run()
    other = msgspec.structs.replace(CONFIG, dropout=0.1)
    message = r"tiny-00-00\.training\.pt: made for other .*supernet\.dropout 0\.2, expected 0\.1"
    with pytest.raises(CheckpointError, match=message):
        SupernetRun(TINY, SPACE, DATA, other, tmp_path)
    with pytest.raises(CheckpointError, match="images stripes, expected dots"):
        SupernetRun(TINY, SPACE, replace(DATA, fingerprint="dots"), CONFIG, tmp_path)
    path = SupernetRun(TINY, "tiny-11-00", DATA, CONFIG, tmp_path).path
    first.path.rename(path)
    with pytest.raises(CheckpointError, match="space tiny-00-00, expected tiny-11-00"):
        SupernetRun(TINY, "tiny-11-00", DATA, CONFIG, tmp_path)


@pytest.mark.parametrize("part", ["labels", "test_labels"])
def test_a_class_without_images_and_a_label_without_class_are_refused(part, tmp_path):
    labels = getattr(DATA, part)
    for changed, message in (
        (labels.clamp(max=2), r"no image of class 3; expected .* the 4 classes"),
        (labels + 1, r"label 4; the hyperspace's last stage has 4 classes, expected 0 to 3"),
        (labels - 1, r"label -1; "),
    ):
        with pytest.raises(ConfigError, match=message):
            SupernetRun(TINY, SPACE, replace(DATA, **{part: changed}), CONFIG, tmp_path)


def test_images_without_labels_and_a_second_process_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no labels to train with"):
        SupernetRun(TINY, SPACE, replace(DATA, test_labels=None), CONFIG, tmp_path)
    run = new_run(tmp_path)
    with exclusive(run.path), pytest.raises(LockedError, match="is writing it"):
        run.run()


def test_weights_that_are_not_finite_leave_the_checkpoint_as_it_was(tmp_path):
    run, kept = new_run(tmp_path, save_every_s=0), []
    step = run.trainer.step

    def spoiled(images, labels, plan):
        losses = step(images, labels, plan)
        if plan.step == 2:
            kept.append(run.path.read_bytes())
            next(run.supernet.parameters()).data.fill_(np.inf)
        return losses

    run.trainer.step = spoiled
    with pytest.raises(TrainingError, match=r"weights are not finite in epoch 1; "):
        run.run()
    assert run.path.read_bytes() == kept[0]


def test_fewer_images_than_a_batch_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="batch_size 32 for 20 images to train on"):
        SupernetRun(TINY, uniform(TINY), stripes(train=20), CONFIG, tmp_path)
