"""The noise-to-signal ratio loss of block-wise distillation (SpaceEvo, section 4.3)."""

from __future__ import annotations

from torch import Tensor

_SMALLEST_VARIANCE = 1e-6


def nsr_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over channels of squared error over the teacher's variance.

    Parameters
    ----------
    student, teacher : features, (n, channels, h, w)

    Returns
    -------
    scalar; 0 is a perfect copy, 1 is as good as the channel's mean
    """
    error = (student - teacher).square().mean((0, 2, 3))
    variance = teacher.var((0, 2, 3), unbiased=False).clamp_min(_SMALLEST_VARIANCE)
    return (error / variance).mean()
