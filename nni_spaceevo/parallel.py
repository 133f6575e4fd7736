"""One batch worked on by several processes as if by one.

`torchrun` starts the processes, and each works on its part of every batch. While a batch is shared
(`Ranks.sharing`), variances and ranges are those of the whole batch, and a mean is this process's
part of it: the parts add up. So do gradients, which `Ranks.add_gradients` adds up once a step.

torch's own wrappers do not fit. SyncBatchNorm does not run on CPU. DistributedDataParallel adds up
after every backward pass, of which a sandwich step has several, each through other parameters: it
would have to look for the unused ones (find_unused_parameters) every time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Its functions keep the group that there is when it is imported as a default argument, for ever:
# imported later, by torch's optimizers, it would keep a group and its threads beyond its end.
import torch.distributed.nn
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import TrainingError, first_line
from .files import digest

# A process that dies is noticed at once. This is for one that neither dies nor answers.
_PATIENCE = timedelta(minutes=30)
_OVER_IMAGES_AND_PIXELS = (0, 2, 3)


@dataclass(frozen=True)
class Ranks:
    """The processes that share a task.

    Attributes
    ----------
    rank : number of this one, from 0
    size : how many there are
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and talks to people."""
        return self.rank == 0

    def part(self, images: int, rank: int | None = None) -> slice:
        """A process's part of a batch, this one's by default; parts differ by one image at most."""
        rank = self.rank if rank is None else rank
        return slice(images * rank // self.size, images * (rank + 1) // self.size)

    @contextmanager
    def sharing(self, images: int) -> Iterator[None]:
        """Within, every process works on its part of one batch of so many images.

        Everything that this file computes is then about the whole batch, so all processes must
        compute the same things in the same order.
        """
        token = _SHARED.set(_Batch(self, images) if self.size > 1 else None)
        try:
            yield
        finally:
            _SHARED.reset(token)

    def total(self, values: Tensor) -> Tensor:
        """Sum of `values` over all processes, in place.

        Raises
        ------
        TrainingError
            Another process has ended, or has not answered for half an hour.
        """
        if self.size > 1:
            _all_reduce(values)
        return values

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give each parameter the sum of its gradients in all processes; raises as `total`.

        Which parameters have a gradient must not depend on the process.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = self.total(torch.cat([g.flatten() for g in gradients]))
        parts = flat.split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def from_first(self, number: int) -> int:
        """The first process's number, whatever the others have; raises as `total`."""
        return int(self.total(torch.tensor(number if self.is_first else 0)))

    def text_from_first(self, text: str) -> str:
        """The first process's text, whatever the others have; raises as `total`."""
        letters = list(text.encode())
        sent = torch.zeros(self.from_first(len(letters)), dtype=torch.int64)
        if self.is_first:
            sent += torch.tensor(letters, dtype=torch.int64)
        return bytes(self.total(sent).tolist()).decode()

    def wait(self) -> None:
        """Wait until all processes are here; raises as `total`."""
        self.from_first(0)

    def require_same(self, value: str, what: str) -> None:
        """Refuse to go on if processes have different values.

        Raises
        ------
        TrainingError
            They have; names the first that differs.
        """
        values = torch.zeros(self.size, dtype=torch.int64)
        values[self.rank] = int(digest(value)[:15], 16)
        others = (self.total(values) != values[0]).nonzero()
        if len(others):
            raise TrainingError(
                f"{what}: process {int(others[0])} of {self.size} has another state than process "
                "0; expected one work folder, the same images and one version for all"
            )


ALONE = Ranks()


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the other processes of this task, which `torchrun` has started; alone without it.

    Parameters
    ----------
    device : that this process computes on; GPUs talk by NCCL, CPUs by gloo

    Raises
    ------
    TrainingError
        The processes do not meet.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the {size} processes of this task do not meet ({first_line(error)}); start them "
            "with torchrun"
        ) from error
    try:
        yield Ranks(dist.get_rank(), size)
    except BaseException:
        # NCCL would wait for what the others will never send. gloo's threads, left alone, may want
        # the interpreter when it is gone, and then abort instead of giving our exit code.
        if device.type == "cpu":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


# ---- statistics of a batch -------------------------------------------------------------------


def channel_mean(x: Tensor) -> Tensor:
    """Mean of each channel of `x` (n, channels, h, w); of a shared batch, this process's part."""
    batch = _SHARED.get()
    if batch is None:
        return x.mean(_OVER_IMAGES_AND_PIXELS)
    return x.sum(_OVER_IMAGES_AND_PIXELS) / batch.count(x)


def channel_variance(x: Tensor) -> Tensor:
    """Variance of each channel of `x` (n, channels, h, w) over the whole batch, no gradient."""
    batch = _SHARED.get()
    if batch is None:
        return x.detach().var(_OVER_IMAGES_AND_PIXELS, unbiased=False)
    return batch.moments(x.detach())[1]


def extent(x: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest element of `x` in the whole batch, no gradient."""
    batch = _SHARED.get()
    x = x.detach()
    if batch is None:
        return x.amin(), x.amax()
    ends = torch.stack([-x.amin(), x.amax()]) if x.numel() else x.new_full((2,), -math.inf)
    _all_reduce(ends, dist.ReduceOp.MAX)
    return -ends[0], ends[1]


def elements(x: Tensor) -> int:
    """Number of elements that `x` (n, …) has in the whole batch."""
    batch = _SHARED.get()
    return x.numel() if batch is None else batch.images * math.prod(x.shape[1:])


def batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """`F.batch_norm`, with the statistics of the whole batch."""
    batch = _SHARED.get()
    if batch is None or not training:
        return F.batch_norm(
            x, running_mean, running_var, weight, bias, training, momentum=momentum, eps=eps
        )
    mean, variance = batch.moments(x.detach())
    count = batch.count(x)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * (count / (count - 1)), momentum)
    normalized: Tensor = _BatchNorm.apply(x, weight, bias, mean, (variance + eps).rsqrt(), batch)
    return normalized


@dataclass(frozen=True)
class _Batch:
    """A batch that several processes share."""

    ranks: Ranks
    images: int

    def count(self, x: Tensor) -> int:
        """Values of each channel of (n, channels, h, w) in the whole batch."""
        return self.images * math.prod(x.shape[2:])

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel over the whole batch."""
        ranks = self.ranks
        parts = [ranks.part(self.images, rank) for rank in range(ranks.size)]
        shares = _wide(x).new_tensor([(p.stop - p.start) / self.images for p in parts])
        found = shares.new_zeros(ranks.size, 2, x.shape[1])
        if len(x):
            moments = torch.var_mean(_wide(x), _OVER_IMAGES_AND_PIXELS, unbiased=False)
            found[ranks.rank] = torch.stack(moments)
        variances, means = ranks.total(found).unbind(1)
        mean = shares @ means
        return mean, shares @ (variances + (means - mean).square())


_SHARED: ContextVar[_Batch | None] = ContextVar("shared batch", default=None)


class _BatchNorm(torch.autograd.Function):
    """Normalization by the statistics of the whole batch, which depend on all of its images."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        scale: Tensor,
        batch: _Batch,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.batch = batch
        normal = (_wide(x) - _spread(mean)) * _spread(scale)
        return (normal * _spread(weight) + _spread(bias)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        gradient = _wide(gradients[0])
        normal = (_wide(x) - _spread(mean)) * _spread(scale)
        own = [v.sum(_OVER_IMAGES_AND_PIXELS) for v in (gradient, gradient * normal)]
        whole = ctx.batch.ranks.total(torch.stack(own)) / ctx.batch.count(x)
        through_x = gradient - _spread(whole[0]) - normal * _spread(whole[1])
        return (through_x * _spread(weight * scale)).to(x.dtype), own[1], own[0], None, None, None


def _wide(x: Tensor) -> Tensor:
    """`x` in at least float32."""
    return x.float() if x.dtype.itemsize < 4 else x


def _spread(channels: Tensor) -> Tensor:
    return channels[:, None, None]


def _all_reduce(values: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
    try:
        dist.all_reduce(values, operation)
    except RuntimeError as error:
        raise TrainingError(
            f"process {dist.get_rank()} has lost the others of its task ({first_line(error)}); "
            "the message of the one that failed says why"
        ) from error
