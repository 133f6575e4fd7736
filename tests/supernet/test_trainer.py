"""Steps with their optimizer: rates, weight decay, clipping, and the change to LSQ+."""

from __future__ import annotations

from copy import deepcopy

import msgspec
import pytest
import torch

from nni_spaceevo.errors import TrainingError
from nni_spaceevo.quant import FP32, INT8, precision, uninitialized
from nni_spaceevo.supernet.config import PhaseConfig, SupernetConfig
from nni_spaceevo.supernet.model import Supernet
from nni_spaceevo.supernet.trainer import SupernetTrainer, share_of_peak

from .tiny import CONFIG, stripes, tiny_hyperspace, uniform

TINY = tiny_hyperspace()
DATA = stripes()


def new_trainer(**changes):
    torch.manual_seed(0)
    config = msgspec.structs.replace(CONFIG, **changes)
    return SupernetTrainer(Supernet(TINY, uniform(TINY)), config)


def train(trainer, epoch=0, steps=3):
    trainer.start_epoch(epoch)
    return [
        trainer.step(DATA.images[:32], DATA.labels[:32], trainer.plan(epoch, i, steps, 32))
        for i in range(steps)
    ]


def test_rates_warm_up_to_the_peak_of_their_phase_and_fall_to_nothing():
    config = SupernetConfig(
        fp32=PhaseConfig(epochs=6, learning_rate=0.1, warmup_epochs=2),
        int8=PhaseConfig(epochs=4, learning_rate=0.01),
    )
    shares = [share_of_peak(config, e, s, 10) for e in range(config.epochs) for s in range(10)]
    fp32, int8 = shares[:60], shares[60:]
    assert fp32[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert max(fp32) == pytest.approx(1)
    assert fp32[20:] == sorted(fp32[20:], reverse=True)
    assert fp32[40] == pytest.approx(0.5)
    assert int8[0] == max(int8) == pytest.approx(1)
    assert 0 < fp32[-1] < 2e-3
    assert 0 < int8[-1] < 2e-3


def test_peaks_are_those_of_the_phase_and_the_batch_size():
    trainer = new_trainer(range_learning_rate=0.5)
    train(trainer, epoch=1, steps=1)  # The first after the warm-up.
    # 0.4 for 256 images, so an eighth of it for 32.
    assert [g["lr"] for g in trainer.optimizer.param_groups] == [0.4 / 8] * 2
    train(trainer, epoch=2, steps=1)
    assert [g["lr"] for g in trainer.optimizer.param_groups] == [0.04 / 8] * 2
    assert [g["lr"] for g in trainer.range_optimizer.param_groups] == [0.5]


def test_losses_fall():
    trainer = new_trainer(fp32=PhaseConfig(epochs=1, learning_rate=0.4))
    losses = train(trainer, steps=25)
    assert sum(losses[-1]) < 0.7 * sum(losses[0])


def test_only_weights_decay():
    trainer = new_trainer(weight_decay=0.5)
    names = {p: name for name, p in trainer.supernet.named_parameters()}
    decaying, others = (
        [names[p] for p in group["params"]] for group in trainer.optimizer.param_groups
    )
    assert [g["weight_decay"] for g in trainer.optimizer.param_groups] == [0.5, 0.0]
    assert {name.rpartition(".")[2] for name in decaying} == {"weight"}
    assert not any("norm" in name or "quantizer" in name for name in decaying)
    assert {name.rpartition(".")[2] for name in others} == {"weight", "bias"}
    ranges = [names[p] for p in trainer.range_optimizer.param_groups[0]["params"]]
    assert {name.rpartition(".")[2] for name in ranges} == {"log_scale", "zero_point"}
    assert len(decaying) + len(others) + len(ranges) == len(names)


def test_no_element_of_a_gradient_exceeds_the_limit():
    trainer = new_trainer(gradient_limit=1e-3)
    train(trainer, steps=1)
    largest = max(p.grad.abs().max() for p in trainer.supernet.parameters() if p.grad is not None)
    assert largest == pytest.approx(1e-3)


def test_the_lsq_phase_starts_with_every_range_and_without_the_old_momenta():
    trainer = new_trainer()
    train(trainer, epoch=0)
    assert trainer.precision(1) == FP32
    assert uninitialized(trainer.supernet)
    weight = trainer.supernet.stages["logits"].blocks[0].layers["linear"].linear.weight
    old = trainer.optimizer.state[weight]["momentum_buffer"].clone()
    train(trainer, epoch=2, steps=1)
    assert trainer.precision(2) == INT8
    assert uninitialized(trainer.supernet) == []
    assert trainer.supernet.image.enabled
    # Without momenta, the first step's are its gradients.
    new = trainer.optimizer.state[weight]["momentum_buffer"]
    torch.testing.assert_close(
        new, weight.grad + CONFIG.weight_decay * weight, atol=1e-6, rtol=1e-3
    )
    assert not torch.equal(new, old)


def test_ranges_are_learned_in_the_lsq_phase_and_only_there():
    trainer = new_trainer()
    quantizer = trainer.supernet.image
    train(trainer, epoch=1)
    assert quantizer.scale == 1 and quantizer.zero_point == 0
    train(trainer, epoch=2, steps=1)
    before = [quantizer.log_scale.item(), quantizer.zero_point.item()]
    train(trainer, epoch=3, steps=3)
    moved = [abs(quantizer.log_scale.item() - before[0]), abs(quantizer.zero_point - before[1])]
    # Adam's steps are about as large as its rate, whichever way they go.
    assert all(1e-5 < m < 1e-2 for m in moved)


@pytest.mark.parametrize("epoch", [0, 2], ids=["fp32", "int8"])
def test_mixed_precision_is_of_the_convolutions_alone(epoch):
    whole, mixed = new_trainer(), new_trainer(mixed_precision=True)
    expected, found = (train(trainer, epoch, steps=1)[0] for trainer in (whole, mixed))
    assert expected.tolist() != found.tolist()
    assert found == pytest.approx(expected, rel=0.1, abs=0.02)
    assert all(p.dtype == torch.float32 for p in mixed.supernet.parameters())


def test_its_state_continues_it():
    first, second = new_trainer(), new_trainer()
    train(first, epoch=2)
    second.load_state_dict({**deepcopy(first.state_dict()), "more": 1})
    for trainer in (first, second):
        train(trainer, epoch=3)
    a, b = first.supernet.state_dict(), second.supernet.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_loss_that_is_not_finite_names_space_epoch_precision_and_subnet():
    trainer = new_trainer()
    trainer.start_epoch(1)
    plan = trainer.plan(1, 0, 3, 8)
    message = r"supernet tiny-00-00: loss of subnet d1#2#3.* is nan in fp32 epoch 2; lower the"
    with pytest.raises(TrainingError, match=message):
        trainer.step(DATA.images[:8] * float("inf"), DATA.labels[:8], plan)


def test_a_quantizer_that_no_subnet_reaches_is_named(monkeypatch):
    monkeypatch.setattr(precision, "_TRIES", 0)
    message = r"supernet tiny-00-00: no sampled subnet reaches quantizer stages\.stage1"
    with pytest.raises(TrainingError, match=message):
        train(new_trainer(), epoch=2, steps=1)
