"""Training of a supernet step by step, wherever the images come from."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import TrainingError
from ..parallel import ALONE, Ranks
from ..quant import FP32, INT8, Precision, Quantizer, set_precision, until_initialized
from .config import SupernetConfig
from .model import Supernet
from .sandwich import Backward, StepPlan, plan_step, sandwich_gradients


def share_of_peak(config: SupernetConfig, epoch: int, step: int, steps: int) -> float:
    """Learning rate of step `step` of `steps` in epoch `epoch`, as a share of its phase's peak.

    It grows linearly while warming up, and then falls as half a cosine.
    """
    phase, number = config.phase(epoch)
    begun, done = number + step / steps, number + (step + 1) / steps
    if begun < phase.warmup_epochs:
        return min(1.0, done / phase.warmup_epochs)
    past = (begun - phase.warmup_epochs) / (phase.epochs - phase.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * past))


class SupernetTrainer:
    """A supernet with its optimizers; FP32 first, then LSQ+ with new momenta.

    Parameters
    ----------
    supernet : what is trained, on any device
    config : how
    ranks : the processes that share every batch

    Attributes
    ----------
    optimizer : SGD of everything but the ranges
    range_optimizer : Adam of the quantizers' ranges. SGD, as published, does not suit scales that
        are learned by their logarithm: their gradients are those of the scales times the scales,
        and steps would be millionths
    """

    def __init__(self, supernet: Supernet, config: SupernetConfig, ranks: Ranks = ALONE) -> None:
        self.supernet, self.config, self.ranks = supernet, config, ranks
        quantizers = [m for m in supernet.modules() if isinstance(m, Quantizer)]
        ranges = {p for quantizer in quantizers for p in quantizer.parameters()}
        others = [p for p in supernet.parameters() if p not in ranges]
        # Weights of convolutions and of the last layer are those with more than one dimension.
        weights = {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay}
        rest = {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0}
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            [weights, rest],
            lr=config.fp32.learning_rate,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
        )
        in_order = [p for p in supernet.parameters() if p in ranges]
        # LSQ's factor makes gradients of ranges as small as Adam's usual eps, 1e-8.
        self.range_optimizer: torch.optim.Optimizer = torch.optim.Adam(
            in_order, lr=config.range_learning_rate, eps=1e-12
        )

    def state_dict(self) -> dict[str, Any]:
        """Supernet and optimizers."""
        return {
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "range_optimizer": self.range_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, which may have more keys."""
        self.supernet.load_state_dict(state["supernet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.range_optimizer.load_state_dict(state["range_optimizer"])

    def start_epoch(self, epoch: int) -> None:
        """Let the supernet train in the precision of an epoch, counted from 0."""
        set_precision(self.supernet, self.precision(epoch))
        self.supernet.train()

    def precision(self, epoch: int) -> Precision:
        """What an epoch computes in."""
        return INT8 if self.config.is_quantized(epoch) else FP32

    def plan(self, epoch: int, step: int, steps: int, images: int) -> StepPlan:
        """What step `step` of `steps` trains with a batch of so many images; see `StepPlan`."""
        moment = (epoch, step, steps)
        return plan_step(self.supernet, self.config, moment, images, self.ranks)

    def step(self, images: Tensor, labels: Tensor, plan: StepPlan) -> np.ndarray:
        """Train one step.

        Parameters
        ----------
        images, labels : (n, channels, h, w) and int64 (n,), the plan's part of the batch, on the
            supernet's device

        Returns
        -------
        losses of the largest, the smallest and, on average, the random subnets

        Raises
        ------
        TrainingError
            A loss is not finite; names epoch and subnet.
        """
        losses = self.gradients(images, labels, plan)
        self.optimizer.step()
        self.range_optimizer.step()
        return losses

    def gradients(
        self, images: Tensor, labels: Tensor, plan: StepPlan, backward: Backward = Tensor.backward
    ) -> np.ndarray:
        """All of `step` but the optimizers' part; `backward` makes the gradients of a loss."""
        self._set_learning_rates(plan)
        with self.ranks.sharing(plan.images), self._autocast(images.device):
            if plan.step == 0 and self.config.phase(plan.epoch)[1] == 0:
                self._start_phase(images, plan)
            self.supernet.zero_grad()
            losses = self._add_gradients(images, labels, plan, backward)
        self.ranks.add_gradients(self.supernet.parameters())
        nn.utils.clip_grad_value_(self.supernet.parameters(), self.config.gradient_limit)
        losses = self.ranks.total(torch.tensor(losses, dtype=torch.float64)).tolist()
        return np.array([losses[0], losses[1], np.mean(losses[2:] or losses[:2])])

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        # A disabled autocast would also disable that of Lightning.
        if self.config.mixed_precision:
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()

    def _set_learning_rates(self, plan: StepPlan) -> None:
        share = share_of_peak(self.config, plan.epoch, plan.step, plan.steps)
        phase, _ = self.config.phase(plan.epoch)
        peak = phase.learning_rate * self.config.batch_size / 256
        for group in self.optimizer.param_groups:
            group["lr"] = peak * share
        for group in self.range_optimizer.param_groups:
            group["lr"] = self.config.range_learning_rate * share

    def _add_gradients(
        self, images: Tensor, labels: Tensor, plan: StepPlan, backward: Backward
    ) -> list[float]:
        try:
            return sandwich_gradients(self.supernet, images, labels, plan, self.config, backward)
        except TrainingError as error:
            name = self.precision(plan.epoch).name
            raise TrainingError(
                f"supernet {self.supernet.space}: {error} in {name} epoch {plan.epoch + 1}; lower "
                "the learning rate"
            ) from error

    def _start_phase(self, images: Tensor, plan: StepPlan) -> None:
        self.optimizer.state.clear()
        self.range_optimizer.state.clear()
        if self.config.is_quantized(plan.epoch):
            self._initialize_quantizers(images, plan)

    @torch.no_grad()
    def _initialize_quantizers(self, images: Tensor, plan: StepPlan) -> None:
        """Give every quantizer a range: the largest subnet first, then random ones."""
        supernet, rng = self.supernet, np.random.default_rng(self.config.seed)
        supernet(images, plan.subnets[0])
        for _ in until_initialized(supernet, f"supernet {supernet.space}: no sampled subnet"):
            supernet(images, supernet.hyperspace.random_subnet(supernet.space, rng))
