"""Block-wise distillation of one elastic stage, in FP32 and then with LSQ+ (section 4.3).

The stage stands between two 1x1 projections, from and to the teacher's widths; each step trains the
largest, the smallest and a few random sub-stages (the sandwich rule) against one pass of the
teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import TrainingError
from ..files import digest, to_json
from ..hyperspace import BlockOption, Chain, ElasticStage, Hyperspace
from ..network import StageNet
from ..network.checkpoint import load_checkpoint, save_checkpoint
from ..quant import FP32, INT8, ActivationQuantizer, set_precision, uninitialized
from .config import DistillConfig
from .data import Images, batches
from .loss import nsr_loss
from .teachers.protocol import FeatureTeacher

_INITIALIZATION_TRIES = 1000
SubStage = tuple[int, Chain]


@dataclass(frozen=True, eq=False)
class StageTask:
    """One (stage, block type), and what it is distilled and judged with.

    Attributes
    ----------
    hyperspace, stage, block : which elastic stage, by index
    teacher, data : what it learns from
    seed : of the job; everything random follows from it, stage and block
    """

    hyperspace: Hyperspace
    stage: int
    block: int
    teacher: FeatureTeacher
    data: Images
    seed: int

    @property
    def name(self) -> str:
        """Stage and block type, as in file names: `stage1_mbv2_res`."""
        where, option = self.hyperspace.searchable[self.stage], self.option
        return f"{where.name}_{option.type}"

    @property
    def option(self) -> BlockOption:
        """The block type with its elastic choices."""
        return self.hyperspace.block_types[self.block]

    @property
    def seeds(self) -> list[int]:
        """What random generators of this task start with."""
        return [self.seed, self.stage, self.block]

    def train_features(
        self, index: Tensor, resolution: int, rng: np.random.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The teacher's features before and after the stage, of images that `rng` augments."""
        images = self.data.train_batch(index, resolution, rng)
        return self.teacher.stage_features(images, self.stage)

    def test_features(self, index: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
        """The same of held-out images."""
        return self.teacher.stage_features(self.data.test_batch(index, resolution), self.stage)


class StageDistiller(nn.Module):
    """An elastic stage of all its widths between projections from and to the teacher.

    The projections stay in FP32, for no device runs them; what enters the stage is quantized, as
    it is on the device.
    """

    def __init__(self, task: StageTask) -> None:
        super().__init__()
        where = task.hyperspace.searchable[task.stage]
        before, after = task.teacher.widths[task.stage : task.stage + 2]
        self.elastic = ElasticStage(stage=where, option=task.option, widths=where.widths)
        self.input_widths = task.hyperspace.input_widths(where)
        self.enter = nn.Conv2d(before, self.input_widths[-1], 1)
        self.entry = ActivationQuantizer(unsigned=False)
        self.stage = StageNet(self.elastic, self.input_widths)
        self.leave = nn.Conv2d(where.widths[-1], after, 1)

    def forward(self, feature: Tensor, substage: SubStage) -> Tensor:
        """Map the teacher's feature before the stage to its feature after it, through `substage`.

        Parameters
        ----------
        feature : (n, teacher's width, h, w)
        substage : channels entering the stage, and its blocks
        """
        cin, chain = substage
        assert self.enter.bias is not None
        x = F.conv2d(feature, self.enter.weight[:cin], self.enter.bias[:cin])
        x = self.stage(self.entry(x), chain)
        return F.conv2d(x, self.leave.weight[:, : chain[-1].width], self.leave.bias)

    def largest(self) -> SubStage:
        """The largest sub-stage."""
        return self.input_widths[-1], self.elastic.largest()

    def smallest(self) -> SubStage:
        """The smallest sub-stage."""
        return self.input_widths[0], self.elastic.smallest()

    def random(self, rng: np.random.Generator) -> SubStage:
        """A sub-stage drawn uniformly."""
        return int(rng.choice(self.input_widths)), self.elastic.random(rng)


@dataclass(frozen=True)
class EpochLoss:
    """Mean NSR losses of one epoch."""

    precision: str
    epoch: int
    largest: float
    smallest: float
    random: float


Report = Callable[[EpochLoss], None]


class StageRun:
    """Distillation of one task, continued from its checkpoint if there is one.

    Parameters
    ----------
    task : what is distilled
    config : how
    folder : where the checkpoint lies
    """

    def __init__(self, task: StageTask, config: DistillConfig, folder: Path) -> None:
        task.teacher.eval()
        self.task, self.config = task, config
        self.path = folder / f"{task.name}.pt"
        parts = (
            task.hyperspace.fingerprint,
            task.teacher.fingerprint,
            to_json(config),
            str(task.seeds),
            task.data.fingerprint,
        )
        self.made_for = digest(*filter(None, parts))
        torch.manual_seed(int(np.random.default_rng(task.seeds).integers(2**31)))
        self.model = StageDistiller(task)
        self.losses: list[EpochLoss] = []
        self._optimizer = self._new_optimizer()
        self._load()

    @property
    def epochs(self) -> int:
        """Epochs of both phases."""
        return self.config.epochs_fp32 + self.config.epochs_int8

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), self.config.learning_rate_fp32)

    def _load(self) -> None:
        if not self.path.is_file():
            return
        state = load_checkpoint(self.path, self.made_for)
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.losses = [EpochLoss(**row) for row in state["losses"]]

    def _save(self) -> None:
        content = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "losses": [vars(row) for row in self.losses],
        }
        save_checkpoint(self.path, self.made_for, content)

    def run(self, report: Report = lambda loss: None) -> StageDistiller:
        """Train what is left; a continued run ends with the same weights.

        Returns
        -------
        the distilled stage, in INT8 and evaluation mode

        Raises
        ------
        TrainingError
            The loss is not finite; names stage, block type and epoch.
        """
        for epoch in range(len(self.losses), self.epochs):
            self.losses.append(self._epoch(epoch))
            self._save()
            report(self.losses[-1])
        set_precision(self.model, INT8)
        return self.model.eval()

    def _epoch(self, epoch: int) -> EpochLoss:
        quantized = epoch >= self.config.epochs_fp32
        precision = INT8 if quantized else FP32
        set_precision(self.model, precision)
        self.model.train()
        # Randomness depends on the epoch alone, so that a continued run draws the same.
        rng = np.random.default_rng([*self.task.seeds, epoch])
        if epoch == self.config.epochs_fp32:
            self._optimizer = self._new_optimizer()
            self._initialize_quantizers(rng)
        indices = list(batches(self.task.data.train_size, self.config.batch_size, rng))
        totals = np.zeros(3)
        for i, index in enumerate(indices):
            self._set_learning_rate(epoch + i / len(indices), quantized)
            totals += self._step(index, rng)
        if not np.isfinite(totals).all():
            raise TrainingError(
                f"{self.task.name}: NSR loss is not finite in {precision.name} epoch {epoch + 1}; "
                "lower the learning rate"
            )
        return EpochLoss(precision.name, epoch, *(float(t) for t in totals / len(indices)))

    def _set_learning_rate(self, epochs_done: float, quantized: bool) -> None:
        c = self.config
        peak = c.learning_rate_int8 if quantized else c.learning_rate_fp32
        start = c.epochs_fp32 if quantized else 0
        done = (epochs_done - start) / (c.epochs_int8 if quantized else c.epochs_fp32)
        for group in self._optimizer.param_groups:
            group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * done))

    def _features(self, index: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        resolution = int(rng.choice(self.task.hyperspace.distill_resolutions))
        return self.task.train_features(index, resolution, rng)

    def _step(self, index: Tensor, rng: np.random.Generator) -> np.ndarray:
        """One sandwich step; returns the losses of largest, smallest and random sub-stages."""
        before, after = self._features(index, rng)
        model, extra = self.model, self.config.random_substages
        randoms = [model.random(rng) for _ in range(extra)]
        self._optimizer.zero_grad()
        losses = []
        for substage in (model.largest(), model.smallest(), *randoms):
            loss = nsr_loss(model(before, substage), after)
            loss.backward()
            losses.append(loss.item())
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        self._optimizer.step()
        return np.array([losses[0], losses[1], np.mean(losses[2:] or losses[:2])])

    @torch.no_grad()
    def _initialize_quantizers(self, rng: np.random.Generator) -> None:
        """Give every quantizer a range: the largest sub-stage first, then random ones."""
        index = next(batches(self.task.data.train_size, self.config.batch_size, rng))
        before, _ = self._features(index, rng)
        self.model(before, self.model.largest())
        for _ in range(_INITIALIZATION_TRIES):
            if not uninitialized(self.model):
                return
            self.model(before, self.model.random(rng))
        missed = uninitialized(self.model)[0]
        raise TrainingError(f"{self.task.name}: no sampled sub-stage reaches quantizer {missed}")
