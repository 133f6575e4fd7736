"""One step: what it trains, from what each subnet learns, and what is random in it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nni_spaceevo.errors import TrainingError
from nni_spaceevo.parallel import Ranks
from nni_spaceevo.supernet.loss import adaptive_divergence, kl_divergence
from nni_spaceevo.supernet.model import Supernet
from nni_spaceevo.supernet.sandwich import (
    distillation_loss,
    dropped_out,
    others_loss,
    plan_step,
    sandwich_gradients,
)

from .tiny import CONFIG, stripes, tiny_hyperspace, uniform, used_supernet

TINY = tiny_hyperspace()
SPACE = uniform(TINY)
DATA = stripes()
IMAGES, LABELS = DATA.images[:16], DATA.labels[:16]
SUPERNET = Supernet(TINY, SPACE)
PLAIN = msgspec.structs.replace(CONFIG, dropout=0.0)


def plan(config=PLAIN, epoch=0, step=0):
    return plan_step(SUPERNET, config, (epoch, step, 3), images=16)


def test_a_step_trains_the_largest_the_smallest_and_random_subnets_at_one_resolution():
    plans = [plan(step=i) for i in range(40)]
    for found in plans:
        largest, smallest, *others = found.subnets
        assert {code.resolution for code in found.subnets} == {found.resolution}
        assert replace(largest, resolution=12) == TINY.largest_subnet(SPACE)
        assert replace(smallest, resolution=8) == TINY.smallest_subnet(SPACE)
        assert len(others) == CONFIG.random_subnets
    assert {found.resolution for found in plans} == set(TINY.resolutions)
    assert len({code.stages for found in plans for code in found.subnets}) > 60


def test_what_a_step_draws_follows_from_seed_epoch_and_step():
    def drawn(**kwargs):
        found = plan(**kwargs)
        return found.subnets, found.seeds[0]

    assert drawn(epoch=1, step=2) == drawn(epoch=1, step=2)
    other = msgspec.structs.replace(PLAIN, seed=4)
    starts = [drawn(epoch=e, step=s) for e in range(3) for s in range(3)] + [drawn(config=other)]
    assert len({number for _, number in starts}) == len(starts)


def test_processes_that_share_a_batch_train_the_same_subnets_on_parts_of_it():
    both = [plan_step(SUPERNET, PLAIN, (1, 2, 3), 15, Ranks(rank, 2)) for rank in range(2)]
    assert [found.part for found in both] == [slice(0, 7), slice(7, 15)]
    assert both[0] == replace(both[1], part=both[0].part)


def test_the_largest_learns_from_labels_and_the_others_from_the_largest():
    supernet = used_supernet(TINY, SPACE)  # Evaluation mode: subnets do not touch each other.
    found = plan()
    losses = sandwich_gradients(supernet, IMAGES, LABELS, found, PLAIN)
    teacher = supernet(IMAGES, found.subnets[0])
    expected = [F.cross_entropy(teacher, LABELS, label_smoothing=0.1)]
    for code in found.subnets[1:]:
        expected.append(distillation_loss(supernet(IMAGES, code), teacher, PLAIN).mean())
    assert losses == pytest.approx([loss.item() for loss in expected], rel=1e-6)
    gradients = {n: p.grad.clone() for n, p in supernet.named_parameters() if p.grad is not None}
    supernet.zero_grad()
    sum(expected).backward()
    for name, parameter in supernet.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_kl_is_an_option():
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    config = msgspec.structs.replace(PLAIN, distillation="kl")
    assert torch.equal(distillation_loss(a, b, config), kl_divergence(a, b))
    expected = adaptive_divergence(a, b, (-1.0, 1.0), 5.0)
    assert torch.equal(distillation_loss(a, b, PLAIN), expected)


def test_the_others_can_learn_from_labels_too():
    supernet, found = used_supernet(TINY, SPACE), plan()

    def losses(share):
        config = msgspec.structs.replace(PLAIN, label_share=share)
        return sandwich_gradients(supernet, IMAGES, LABELS, found, config)

    published, half, labels_alone = losses(0.0), losses(0.5), losses(1.0)
    assert published[0] == half[0] == labels_alone[0]
    assert half == pytest.approx(np.mean([published, labels_alone], axis=0), rel=1e-6)
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    config, labels = msgspec.structs.replace(PLAIN, label_share=1.0), torch.arange(4) % 3
    smoothed = F.cross_entropy(student, labels, label_smoothing=0.1, reduction="none")
    assert torch.equal(others_loss(student, teacher, labels, config), smoothed)


def test_dropout_is_on_the_largest_alone():
    supernet = used_supernet(TINY, SPACE)
    without = sandwich_gradients(supernet, IMAGES, LABELS, plan(), PLAIN)
    with_it = sandwich_gradients(supernet, IMAGES, LABELS, plan(), CONFIG)
    again = sandwich_gradients(supernet, IMAGES, LABELS, plan(), CONFIG)
    assert with_it == again
    assert with_it[0] != without[0]
    seen = []
    features = supernet.classify
    supernet.classify = lambda x: seen.append((x == 0).float().mean().item()) or features(x)
    sandwich_gradients(
        supernet, IMAGES, LABELS, plan(), msgspec.structs.replace(CONFIG, dropout=0.9)
    )
    assert seen[0] > 0.8 > max(seen[1:])


def test_dropout_keeps_the_mean_and_is_the_same_for_all_who_share_a_batch():
    features = torch.ones(64, 100, 1, 1)
    whole = plan_step(SUPERNET, PLAIN, (0, 0, 1), images=64)
    found = dropped_out(features, 0.2, whole)
    assert found.unique().tolist() == [0.0, 1.25]
    assert found.mean().item() == pytest.approx(1.0, abs=0.02)
    assert dropped_out(features, 0.0, whole) is features
    parts = [plan_step(SUPERNET, PLAIN, (0, 0, 1), 64, Ranks(rank, 3)) for rank in range(3)]
    split = [dropped_out(features[p.part], 0.2, p) for p in parts]
    assert torch.equal(torch.cat(split), found)


def test_a_loss_that_is_not_finite_names_the_subnet():
    supernet = used_supernet(TINY, SPACE)
    found = plan()
    with pytest.raises(TrainingError, match=f"loss of subnet {found.subnets[0]} is nan"):
        sandwich_gradients(supernet, IMAGES * float("nan"), LABELS, found, PLAIN)
