"""In-place distillation: what a subnet learns from the largest one, from their logits.

`teacher` and `student` are logits (n, classes); the teacher's are constants. There is one
divergence an image, (n,).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student's classes from the teacher's."""
    log_p, log_q = F.log_softmax(teacher.detach(), 1), F.log_softmax(student, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def adaptive_divergence(
    student: Tensor, teacher: Tensor, alphas: tuple[float, float], limit: float
) -> Tensor:
    """For each image, the larger of two alpha-divergences (AlphaNet, arXiv 2102.07954, section 4).

    A negative alpha punishes a student that is less sure than the teacher, a positive one a student
    that is more. Gradients are those with class weights (p / q)**alpha of at most `limit`.

    Parameters
    ----------
    alphas : one below 0, one above
    limit : beta in the paper
    """
    log_p, log_q = F.log_softmax(teacher.detach(), 1), F.log_softmax(student, 1)
    found = [_alpha_divergence(log_p, log_q, alpha, limit) for alpha in alphas]
    (low, low_slope), (high, high_slope) = found
    is_low = low > high
    value = torch.where(is_low, low, high)
    slope = torch.where(is_low, low_slope, high_slope)
    # The value of one and the gradient of the other.
    return value + slope - slope.detach()


def _alpha_divergence(
    log_p: Tensor, log_q: Tensor, alpha: float, limit: float
) -> tuple[Tensor, Tensor]:
    """Divergence of each image, (n,), and a term with its gradient in `log_q`, both with limit.

    D = (E_q[(p / q)**alpha] - 1) / (alpha (alpha - 1)); its gradient is
    -E_q[(p / q)**alpha grad log q] / alpha.
    """
    q = log_q.detach().exp()
    log_ratio = log_p - log_q.detach()
    weight = (alpha * log_ratio).clamp_max(math.log(limit)).exp()
    slope = -(q * weight * log_q).sum(1) / alpha
    if alpha == 1:  # The limit: KL(p || q).
        return (log_p.exp() * log_ratio).sum(1), slope
    return ((q * weight).sum(1) - 1) / (alpha * (alpha - 1)), slope
