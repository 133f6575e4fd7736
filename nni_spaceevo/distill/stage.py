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

from ..device import ahead, autocast, channels_last, keep_memory
from ..errors import TrainingError
from ..files import digest, to_json
from ..hyperspace import Chain, ElasticStage
from ..network import StageNet
from ..network.checkpoint import load_checkpoint, save_checkpoint, settings
from ..parallel import ALONE, Ranks
from ..quant import FP32, INT8, ActivationQuantizer, set_precision, until_initialized
from .cache import FeatureCache
from .config import DistillConfig
from .loss import nsr_loss
from .task import Batch, Features, StageTask

SubStage = tuple[int, Chain]


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
        self.to(memory_format=torch.channels_last)

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
    features : where the teacher's features are kept, within `config.cache_gb`; None keeps none
    ranks : the processes that work on it together; each has its part of every batch

    Attributes
    ----------
    made_for : fingerprint of all that the result depends on
    batches, cached_batches : those of this run, and how many of their features were on disk already

    Raises
    ------
    CheckpointError
        The checkpoint is damaged, or of other settings; names what differs.
    """

    def __init__(
        self,
        task: StageTask,
        config: DistillConfig,
        folder: Path,
        features: Path | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        task.teacher.eval()
        if isinstance(task.teacher, nn.Module):
            task.teacher.to(task.device)
        self.task, self.config, self.ranks = task, config, ranks
        self.path = folder / f"{task.name}.pt"
        self._parts = {
            "task": task.name,
            "hyperspace": task.hyperspace.fingerprint,
            "teacher": task.teacher.fingerprint,
            "images": task.data.fingerprint,
            "seed": str(task.seed),
            **settings("distill", config.deciding),
        }
        self.made_for = digest(to_json(self._parts))
        self._features_folder = features
        self.batches = self.cached_batches = 0
        torch.manual_seed(int(np.random.default_rng(task.seeds).integers(2**31)))
        self.model = StageDistiller(task).to(task.device)
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
        state = load_checkpoint(self.path, self._parts)
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.losses = [EpochLoss(**row) for row in state["losses"]]

    def _save(self) -> None:
        content = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "losses": [vars(row) for row in self.losses],
        }
        save_checkpoint(self.path, self._parts, content)

    def _cache(self) -> FeatureCache:
        """The teacher's features of this process's part of every batch."""
        task, config = self.task, self.config
        key = {
            "hyperspace": task.hyperspace.fingerprint,
            "teacher": task.teacher.fingerprint,
            "images": task.data.fingerprint,
            "seed": task.seed,
            "batch_size": config.batch_size,
            "part": [self.ranks.rank, self.ranks.size],
            "computed": [task.device.type, config.mixed_precision, str(torch.__version__)],
        }
        folder = self._features_folder
        return FeatureCache(
            folder or Path(),
            task.stage_name,
            digest(to_json(key)),
            config.cache_gb if folder else 0,
        )

    def run(self, report: Report = lambda loss: None) -> StageDistiller:
        """Train what is left; a continued run ends with the same weights.

        Parameters
        ----------
        report : receives the losses of each epoch, in the first process

        Returns
        -------
        the distilled stage, in INT8 and evaluation mode

        Raises
        ------
        TrainingError
            The loss is not finite; names stage, block type and epoch. Or another process failed.
        FileAccessError
            A checkpoint cannot be written, or an image not be read; names the file.
        """
        keep_memory()
        self.ranks.require_same(f"{self.made_for} {self.losses}", self.task.name)
        with self._cache() as cache:
            for epoch in range(len(self.losses), self.epochs):
                self.losses.append(self._epoch(epoch, cache))
                # All processes have the same weights; one writes them.
                if self.ranks.is_first:
                    self._save()
                    report(self.losses[-1])
        set_precision(self.model, INT8)
        return self.model.eval()

    def _epoch(self, epoch: int, cache: FeatureCache) -> EpochLoss:
        quantized = epoch >= self.config.epochs_fp32
        precision = INT8 if quantized else FP32
        set_precision(self.model, precision)
        self.model.train()
        # Randomness depends on the epoch alone, so that a continued run draws the same.
        rng = np.random.default_rng([*self.task.seeds, epoch])
        batches = self.task.batches(self.config.batch_size, epoch)
        starts_int8 = epoch == self.config.epochs_fp32
        if starts_int8:
            self._optimizer = self._new_optimizer()
        totals = np.zeros(3)

        def read(i: int) -> Features | Tensor:
            """What the cache has of a batch, or else its images."""
            return cache.get(epoch, i) or self._images(batches[i])

        found = ahead(self.task.device, read, range(len(batches)))
        for i, (batch, given) in enumerate(zip(batches, found, strict=True)):
            self._set_learning_rate(epoch + i / len(batches), quantized)
            features = self._features(given, batch, (epoch, i), cache)
            if starts_int8 and i == 0:
                self._initialize_quantizers(features, len(batch), rng)
            totals += self._step(features, len(batch), rng)
            # Several processes must end together, which they do at the end of an epoch.
            if self.ranks.size == 1:
                self._check(totals, epoch)
        totals = self.ranks.total(torch.from_numpy(totals)).numpy()
        self._check(totals, epoch)
        return EpochLoss(precision.name, epoch, *(float(t) for t in totals / len(batches)))

    def _check(self, totals: np.ndarray, epoch: int) -> None:
        if not np.isfinite(totals).all():
            precision = INT8 if epoch >= self.config.epochs_fp32 else FP32
            raise TrainingError(
                f"{self.task.name}: NSR loss is not finite in {precision.name} epoch {epoch + 1}; "
                "lower the learning rate"
            )

    def _set_learning_rate(self, epochs_done: float, quantized: bool) -> None:
        c = self.config
        peak = c.learning_rate_int8 if quantized else c.learning_rate_fp32
        start = c.epochs_fp32 if quantized else 0
        done = (epochs_done - start) / (c.epochs_int8 if quantized else c.epochs_fp32)
        for group in self._optimizer.param_groups:
            group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * done))

    def _images(self, batch: Batch) -> Tensor:
        """The images of this process's part of a batch, of which there is at least one."""
        part = self.ranks.part(len(batch))
        # A process without images has no features of the right shape.
        some = batch.part(part) if part.start < part.stop else batch.part(slice(1))
        return self.task.data.train_batch(some.index, some.resolution, some.seeds)

    def _features(
        self,
        given: Features | Tensor,
        batch: Batch,
        number: tuple[int, int],
        cache: FeatureCache,
    ) -> Features:
        """The teacher's features of this process's part of a batch.

        Parameters
        ----------
        given : what the cache had, or else the images
        batch : all of it
        number : epoch and batch
        cache : given what it lacks
        """
        self.batches += 1
        if not isinstance(given, Tensor):
            self.cached_batches += 1
            # They come from the disk in another order, and sums depend on the order.
            before, after = (channels_last(f.to(self.task.device)) for f in given)
            return before, after
        part = self.ranks.part(len(batch))
        with autocast(self.task.device, self.config.mixed_precision):
            found = self.task.features(given)
        before, after = (channels_last(f[: part.stop - part.start]) for f in found)
        cache.put(*number, (before, after))
        return before, after

    def _step(self, features: Features, images: int, rng: np.random.Generator) -> np.ndarray:
        """One sandwich step; returns the losses of largest, smallest and random sub-stages."""
        before, after = features
        model, extra = self.model, self.config.random_substages
        randoms = [model.random(rng) for _ in range(extra)]
        self._optimizer.zero_grad()
        losses = []
        with self.ranks.sharing(images):
            for substage in (model.largest(), model.smallest(), *randoms):
                loss = nsr_loss(self._student(before, substage), after)
                loss.backward()
                losses.append(loss.detach())
        self.ranks.add_gradients(model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        self._optimizer.step()
        # Read last, and at once: to read a number, a GPU has to be waited for.
        values = torch.stack(losses).tolist()
        return np.array([values[0], values[1], np.mean(values[2:] or values[:2])])

    def _student(self, before: Tensor, substage: SubStage) -> Tensor:
        with autocast(self.task.device, self.config.mixed_precision):
            after: Tensor = self.model(before, substage)
        return after

    @torch.no_grad()
    def _initialize_quantizers(
        self, features: Features, images: int, rng: np.random.Generator
    ) -> None:
        """Give every quantizer a range: the largest sub-stage first, then random ones."""
        before, _ = features
        with self.ranks.sharing(images):
            self._student(before, self.model.largest())
            for _ in until_initialized(self.model, f"{self.task.name}: no sampled sub-stage"):
                self._student(before, self.model.random(rng))
