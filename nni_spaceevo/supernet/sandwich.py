"""One step of training: the sandwich rule with in-place distillation (BigNAS, AlphaNet).

The largest subnet learns from the labels, the smallest and a few random ones from the largest, and
where it is asked for from the labels too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import parallel
from ..errors import TrainingError
from ..hyperspace import SubnetCode
from ..parallel import ALONE, Ranks
from .config import SupernetConfig
from .loss import adaptive_divergence, kl_divergence
from .model import Supernet

Backward = Callable[[Tensor], object]


@dataclass(frozen=True)
class StepPlan:
    """What one step trains.

    Attributes
    ----------
    epoch, step, steps : when it is, counted from 0, and how many steps the epoch has
    images : in the whole batch, of which each process may have a part
    part : of them, this process's
    resolution : of the images, the same for all subnets
    subnets : the largest, the smallest, and random ones
    seeds : of augmentation, one an image of the whole batch
    dropout : seed of the features that are dropped
    """

    epoch: int
    step: int
    steps: int
    images: int
    part: slice
    resolution: int
    subnets: tuple[SubnetCode, ...]
    seeds: tuple[int, ...]
    dropout: int


def plan_step(
    supernet: Supernet,
    config: SupernetConfig,
    moment: tuple[int, int, int],
    images: int,
    ranks: Ranks = ALONE,
) -> StepPlan:
    """What a step trains; see `StepPlan`.

    It depends on the seed, the epoch and the step alone, so that a continued run draws what this
    one draws.

    Parameters
    ----------
    moment : epoch and step, counted from 0, and how many steps the epoch has
    images : in the whole batch
    ranks : the processes that share it
    """
    epoch, step, steps = moment
    hyperspace, space = supernet.hyperspace, supernet.space
    # One more, for trailing zeros do not change what a generator draws.
    rng = np.random.default_rng([config.seed, epoch, step + 1])
    resolution = int(rng.choice(hyperspace.resolutions))
    random = (hyperspace.random_subnet(space, rng) for _ in range(config.random_subnets))
    subnets = (supernet.largest, supernet.smallest, *random)
    seeds = rng.integers(2**63, size=images + 1).tolist()
    return StepPlan(
        epoch=epoch,
        step=step,
        steps=steps,
        images=images,
        part=ranks.part(images),
        resolution=resolution,
        subnets=tuple(replace(code, resolution=resolution) for code in subnets),
        seeds=tuple(seeds[:-1]),
        dropout=seeds[-1],
    )


def sandwich_gradients(
    supernet: Supernet,
    images: Tensor,
    labels: Tensor,
    plan: StepPlan,
    config: SupernetConfig,
    backward: Backward = Tensor.backward,
) -> list[float]:
    """Add the gradients of all of a plan's subnets to those that are there.

    Parameters
    ----------
    images, labels : (n, channels, h, w) and int64 (n,), the plan's part of the batch
    backward : what makes gradients of a loss

    Returns
    -------
    losses, one a subnet: cross-entropy of the largest, `others_loss` of the others; of a shared
    batch, this process's part of them

    Raises
    ------
    TrainingError
        A loss is not finite; names the subnet.
    """
    largest, *others = plan.subnets
    features = dropped_out(supernet.features(images, largest), config.dropout, plan)
    teacher = supernet.classify(features)
    losses = [_learn(_label_loss(teacher, labels, config), backward)]
    for code in others:
        loss = others_loss(supernet(images, code), teacher, labels, config)
        losses.append(_learn(loss, backward))
    # All at once: a GPU has to be waited for to read a number.
    values: list[float] = torch.stack(losses).tolist()
    for code, value in zip(plan.subnets, values, strict=True):
        if not math.isfinite(value):
            raise TrainingError(f"loss of subnet {code} is {value}")
    return values


def others_loss(student: Tensor, teacher: Tensor, labels: Tensor, config: SupernetConfig) -> Tensor:
    """What subnets other than the largest learn by, of logits (n, classes) and labels (n,); (n,).

    Published is the divergence from the largest alone. In a few epochs the largest has little to
    teach yet, and `label_share` of the loss can be the labels' instead.
    """
    share = config.label_share
    if not share:
        return distillation_loss(student, teacher, config)
    own = _label_loss(student, labels, config)
    if share == 1:
        return own
    return share * own + (1 - share) * distillation_loss(student, teacher, config)


def distillation_loss(student: Tensor, teacher: Tensor, config: SupernetConfig) -> Tensor:
    """The divergence that the settings ask for, of logits (n, classes); (n,)."""
    if config.distillation == "kl":
        return kl_divergence(student, teacher)
    return adaptive_divergence(student, teacher, config.alphas, config.ratio_limit)


def dropped_out(features: Tensor, share: float, plan: StepPlan) -> Tensor:
    """Features (n, c, 1, 1) with that share of them set to 0, and the others larger instead."""
    if not share:
        return features
    drawn = np.random.default_rng(plan.dropout).random((plan.images, features.shape[1]))
    kept = torch.from_numpy(drawn[plan.part] >= share).to(features)
    return features * kept[:, :, None, None] / (1 - share)


def _label_loss(logits: Tensor, labels: Tensor, config: SupernetConfig) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing, reduction="none")


def _learn(losses: Tensor, backward: Backward) -> Tensor:
    """Make gradients of the mean loss of the whole batch; returns this process's part of it."""
    loss = losses.sum() / parallel.elements(losses)
    backward(loss)
    return loss.detach()
