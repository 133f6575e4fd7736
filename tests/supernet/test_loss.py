"""Divergences of in-place distillation: their values, gradients and limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_spaceevo.supernet.loss import adaptive_divergence, kl_divergence

TEACHER = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.5, 0.0], [1.0, 1.0, -3.0]])
STUDENT = torch.tensor([[0.0, 0.5, 0.0], [3.0, -1.0, 0.0], [1.0, 0.0, 0.0]])


def alpha_divergence(student, teacher, alpha):
    """The definition, of each image: equation 3 of the paper."""
    p, q = teacher.softmax(1), student.softmax(1)
    if alpha == 1:
        return (p * (p / q).log()).sum(1)
    return (q * ((p / q) ** alpha - 1)).sum(1) / (alpha * (alpha - 1))


def gradient(loss, student):
    student = student.clone().requires_grad_()
    loss(student).sum().backward()
    return student.grad


def test_kl_is_torchs():
    expected = torch.nn.functional.kl_div(
        STUDENT.log_softmax(1), TEACHER.softmax(1), reduction="none"
    )
    torch.testing.assert_close(kl_divergence(STUDENT, TEACHER), expected.sum(1))
    # The gradient of KL in the logits is q - p.
    found = gradient(lambda s: kl_divergence(s, TEACHER), STUDENT)
    torch.testing.assert_close(found, (STUDENT.softmax(1) - TEACHER.softmax(1)))


@pytest.mark.parametrize("alphas", [(-1.0, 1.0), (-0.5, 2.0), (-2.0, 0.5)])
def test_each_image_has_the_larger_of_the_two_divergences(alphas):
    found = adaptive_divergence(STUDENT, TEACHER, alphas, limit=1e9)
    low, high = (alpha_divergence(STUDENT, TEACHER, alpha) for alpha in alphas)
    torch.testing.assert_close(found, torch.maximum(low, high), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alphas", [(-1.0, 1.0), (-0.5, 2.0), (-2.0, 0.5)])
def test_without_a_limit_its_gradient_is_the_derivative(alphas):
    def definition(student):
        both = [alpha_divergence(student, TEACHER, alpha) for alpha in alphas]
        return torch.maximum(*both)

    found = gradient(lambda s: adaptive_divergence(s, TEACHER, alphas, limit=1e9), STUDENT)
    torch.testing.assert_close(found, gradient(definition, STUDENT), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "alpha"),
    [([0.0, 0.0, 0.0], [6.0, 0.0, 0.0], -1.0), ([8.0, 0.0, 0.0], [2.0, 2.0, 0.0], 1.0)],
    ids=["too unsure", "too sure"],
)
def test_too_unsure_is_judged_by_the_negative_alpha_and_too_sure_by_the_positive(
    student, teacher, alpha
):
    student, teacher = torch.tensor([student]), torch.tensor([teacher])
    found = adaptive_divergence(student, teacher, (-1.0, 1.0), limit=1e9)
    expected = alpha_divergence(student, teacher, alpha)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 1.1 * alpha_divergence(student, teacher, -alpha)


def test_the_limit_bounds_the_weights_of_classes():
    teacher, student = torch.tensor([[20.0, 0.0]]), torch.tensor([[0.0, 20.0]])
    free = gradient(lambda s: adaptive_divergence(s, teacher, (-1.0, 1.0), 1e9), student)
    bound = gradient(lambda s: adaptive_divergence(s, teacher, (-1.0, 1.0), 5.0), student)
    assert free.abs().max() > 1000 * bound.abs().max()
    # q is about (0, 1), so its weight is at most the limit.
    assert bound.abs().max() <= 5.0


@given(st.floats(-200, 200), st.floats(-200, 200))
def test_values_and_gradients_are_finite_however_sure_both_are(a, b):
    teacher, student = torch.tensor([[a, 0.0, 1.0]]), torch.tensor([[b, 1.0, 0.0]])
    for loss in (
        lambda s: adaptive_divergence(s, teacher, (-1.0, 1.0), 5.0),
        lambda s: kl_divergence(s, teacher),
    ):
        assert torch.isfinite(loss(student)).all()
        assert torch.isfinite(gradient(loss, student)).all()


def test_a_perfect_student_has_no_loss_and_no_gradient():
    for loss in (
        lambda s: adaptive_divergence(s, TEACHER, (-1.0, 1.0), 5.0),
        lambda s: kl_divergence(s, TEACHER),
    ):
        assert loss(TEACHER).abs().max() < 1e-6
        assert gradient(loss, TEACHER).abs().max() < 1e-6


def test_the_teacher_learns_nothing_from_its_student():
    teacher = TEACHER.clone().requires_grad_()
    student = STUDENT.clone().requires_grad_()
    adaptive_divergence(student, teacher, (-1.0, 1.0), 5.0).sum().backward()
    assert teacher.grad is None
