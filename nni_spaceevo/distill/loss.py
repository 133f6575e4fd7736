"""The noise-to-signal ratio loss of block-wise distillation (SpaceEvo, section 4.3)."""

from __future__ import annotations

from torch import Tensor

from .. import parallel

# The least that a channel's variance counts: one that hardly changes would outweigh all others.
SMALLEST_VARIANCE = 1e-6


def nsr_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over channels of squared error over the teacher's variance.

    Parameters
    ----------
    student, teacher : features, (n, channels, h, w); what is narrower than float32 is widened

    Returns
    -------
    scalar; 0 is a perfect copy, 1 is as good as the channel's mean. Of a batch that several
    processes share, it is this process's part, with the variance of the whole batch
    """
    if teacher.dtype.itemsize < 4:
        teacher = teacher.float()
    error = parallel.channel_mean((student - teacher).square())
    variance = parallel.channel_variance(teacher).clamp_min(SMALLEST_VARIANCE)
    return (error / variance).mean()
