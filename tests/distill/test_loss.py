"""The NSR loss."""

import pytest
import torch

from nni_spaceevo.distill.loss import nsr_loss


def test_a_perfect_copy_loses_nothing():
    x = torch.randn(4, 3, 5, 5)
    assert nsr_loss(x, x).item() == 0


def test_the_mean_of_each_channel_loses_one():
    teacher = torch.randn(8, 3, 5, 5) * torch.tensor([1.0, 5.0, 0.1]).view(1, 3, 1, 1) + 2
    mean = teacher.mean((0, 2, 3), keepdim=True).expand_as(teacher)
    assert nsr_loss(mean, teacher).item() == pytest.approx(1)


def test_scaling_both_changes_nothing():
    student, teacher = torch.randn(2, 4, 3, 6, 6)
    scaled = nsr_loss(student * 7, teacher * 7)
    assert scaled.item() == pytest.approx(nsr_loss(student, teacher).item(), rel=1e-5)


def test_golden_value_by_hand():
    teacher = torch.tensor([[[[0.0, 2.0]]]])  # variance 1
    student = torch.tensor([[[[1.0, 2.0]]]])  # mean squared error 0.5
    assert nsr_loss(student, teacher).item() == pytest.approx(0.5)


def test_a_constant_channel_stays_finite():
    teacher = torch.zeros(2, 1, 3, 3)
    assert torch.isfinite(nsr_loss(torch.ones_like(teacher), teacher))
