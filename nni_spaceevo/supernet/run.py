"""Training of a supernet from images to a file, killable at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor
from tqdm import tqdm

from ..device import ahead, keep_memory
from ..errors import ConfigError, TrainingError
from ..files import Record, convert, exclusive, plain
from ..hyperspace import Hyperspace, SpaceCode, SubnetCode
from ..network.checkpoint import load_checkpoint, save_checkpoint, settings
from ..parallel import ALONE, Ranks
from ..quant import FP32, INT8, Precision, set_precision
from .config import SupernetConfig
from .data import LabelledImages, check_labels, shuffled_batches
from .evaluation import calibrated_subnet, evaluate
from .model import Supernet
from .sandwich import StepPlan
from .trainer import SupernetTrainer
from .weights import save_supernet

# Settings of evaluations, which change what is told of a training and not what it ends with.
_JUDGING = ("recalibration_batches", "evaluate_every", "evaluated_subnets")


class Accuracies(Record, frozen=True):
    """Shares of the held-out images whose label subnets name, each with statistics of its own.

    Attributes
    ----------
    largest, smallest : of these subnets
    random : mean of the random subnets that are evaluated
    """

    largest: float
    smallest: float
    random: float

    @property
    def outcome(self) -> str:
        """The three in a few words."""
        return f"{self.largest:.2%} largest, {self.random:.2%} random, {self.smallest:.2%} smallest"


class SupernetEpoch(Record, frozen=True):
    """What one epoch came to.

    Attributes
    ----------
    epoch : counted from 0
    precision : `fp32` or `int8`, in which it trained
    largest, smallest, random : mean losses; cross-entropy of the largest, divergence of the others
    fp32 : accuracies without quantizers, of epochs after which there was an evaluation
    int8 : the same with quantizers, in the second phase
    """

    epoch: int
    precision: str
    largest: float
    smallest: float
    random: float
    fp32: Accuracies | None = None
    int8: Accuracies | None = None

    @property
    def outcome(self) -> str:
        """A line for people."""
        losses = f"loss {self.largest:.3f} of the largest, {self.smallest:.3f} of the smallest"
        judged = [f"{name.upper()} accuracy {found.outcome}" for name, found in self._accuracies]
        return "; ".join([f"epoch {self.epoch + 1}, {self.precision}: {losses}", *judged])

    @property
    def _accuracies(self) -> list[tuple[str, Accuracies]]:
        found = (("fp32", self.fp32), ("int8", self.int8))
        return [(name, value) for name, value in found if value is not None]


Report = Callable[[SupernetEpoch], None]


class SupernetRun:
    """Training of one supernet, continued from its checkpoint if there is one.

    Parameters
    ----------
    hyperspace, space : the space
    data : what it learns from and is judged with
    config : how
    folder : where its files lie: `<space>.training.pt` to continue from, and, in the end,
        `<space>.pt`, which `load_supernet` reads
    device : where it trains
    ranks : the processes that work on it together; each has its part of every batch
    save_every_s : seconds of work that a kill costs at most, besides the step under way

    Raises
    ------
    ConfigError
        The images have no labels, or none of a class; a resolution does not fit the hyperspace's
        strides; or there are fewer images than in a batch, or more processes.
    CheckpointError
        The checkpoint is damaged, or of another space, other settings or other images.
    """

    def __init__(
        self,
        hyperspace: Hyperspace,
        space: SpaceCode | str,
        data: LabelledImages,
        config: SupernetConfig,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
        save_every_s: float = 300.0,
    ) -> None:
        if data.train_labels is None or data.test_labels is None:
            raise ConfigError("supernet: the images have no labels to train with")
        classes = hyperspace.stages[-1].widths[-1]
        check_labels(data.train_labels, classes, "images to train on")
        check_labels(data.test_labels, classes, "held-out images")
        if data.train_size < config.batch_size:
            raise ConfigError(
                f"supernet: batch_size {config.batch_size} for {data.train_size} images to train "
                "on; expected at least one whole batch"
            )
        if config.batch_size < ranks.size:
            raise ConfigError(
                f"supernet: {ranks.size} processes for batches of {config.batch_size} images; "
                "expected at least one image a process"
            )
        self.data, self.config, self.save_every_s = data, config, save_every_s
        self._labels = data.train_labels
        self._device = torch.device(device)
        self.supernet = new_supernet(hyperspace, space, config).to(self._device)
        self.trainer = SupernetTrainer(self.supernet, config, ranks)
        self.path = folder / f"{self.supernet.space}.training.pt"
        self.weights_path = folder / f"{self.supernet.space}.pt"
        self.made_for = {
            **self.supernet.made_for,
            "images": data.fingerprint,
            **settings("supernet", config.deciding),
        }
        self.epochs: list[SupernetEpoch] = []
        # Of the epoch under way: steps done, and the sums of their losses.
        self._steps, self._sums = 0, np.zeros(3)
        self._saved_at = time.monotonic()
        self._load()

    def _load(self) -> None:
        if not self.path.is_file():
            return
        state = load_checkpoint(self.path, self.made_for)
        self.trainer.load_state_dict(state)
        self.epochs = [convert(row, SupernetEpoch, str(self.path)) for row in state["epochs"]]
        self._steps, self._sums = state["steps"], np.array(state["sums"])

    def _save(self) -> None:
        if not self.trainer.ranks.is_first:
            return
        content = {
            **self.trainer.state_dict(),
            "epochs": plain(self.epochs),
            "steps": self._steps,
            "sums": self._sums.tolist(),
        }
        save_checkpoint(self.path, self.made_for, content)
        self._saved_at = time.monotonic()

    def _check_weights(self) -> None:
        """Refuse weights that are not finite, of which a finite loss says nothing yet.

        All processes of a task have the same ones, so all refuse them. What was saved before stays.
        """
        if not all(bool(p.isfinite().all()) for p in self.supernet.parameters()):
            epoch = len(self.epochs) + (self._steps > 0)
            raise TrainingError(
                f"supernet {self.supernet.space}: weights are not finite in epoch {epoch}; lower "
                f"the learning rate. {self.path} is as it was before"
            )

    def run(self, report: Report = lambda epoch: None) -> Supernet:
        """Train what is left; a continued run ends with the same weights.

        Returns
        -------
        the supernet, in INT8 (FP32 without an LSQ+ phase) and evaluation mode

        Raises
        ------
        TrainingError
            A loss is not finite; names epoch and subnet. Or weights are not.
        LockedError
            Another process is training it.
        """
        keep_memory()
        ranks = self.trainer.ranks
        ranks.require_same(f"{self.made_for} {self.epochs} {self._steps}", str(self.path))
        with exclusive(self.path) if ranks.is_first else nullcontext():
            for epoch in range(len(self.epochs), self.config.epochs):
                self._train(epoch)
                self.epochs.append(self._ended(epoch))
                self._steps, self._sums = 0, np.zeros(3)
                self._check_weights()
                self._save()
                if ranks.is_first:
                    report(self.epochs[-1])
            set_precision(self.supernet, self.trainer.precision(self.config.epochs - 1))
            self.supernet.eval()
            if ranks.is_first:
                save_supernet(self.weights_path, self.supernet, training_of(self.data, self.config))
        return self.supernet

    def _train(self, epoch: int) -> None:
        self.trainer.start_epoch(epoch)
        rng = np.random.default_rng([self.config.seed, epoch])
        batches = shuffled_batches(self.data.train_size, self.config.batch_size, rng)
        bar = tqdm(
            total=len(batches),
            desc=f"Epoch {epoch + 1} of {self.config.epochs}, {self.trainer.precision(epoch).name}",
            initial=self._steps,
            leave=False,
            mininterval=1,
            disable=None if self.trainer.ranks.is_first else True,
        )

        def read(step: int) -> tuple[Tensor, Tensor, StepPlan]:
            """Images and labels of a step, and what it trains."""
            plan = self.trainer.plan(epoch, step, len(batches), len(batches[step]))
            part, seeds = batches[step][plan.part], plan.seeds[plan.part]
            images = self.data.train_batch(part, plan.resolution, seeds)
            return images, self._labels[part], plan

        steps = range(self._steps, len(batches))
        for images, labels, plan in ahead(self._device, read, steps):
            on_device = images.to(self._device), labels.to(self._device)
            self._sums += self.trainer.step(*on_device, plan)
            self._steps += 1
            bar.update()
            if time.monotonic() - self._saved_at >= self.save_every_s:
                self._check_weights()
                self._save()

    def _ended(self, epoch: int) -> SupernetEpoch:
        largest, smallest, random = (float(s / self._steps) for s in self._sums)
        ended = SupernetEpoch(
            epoch=epoch,
            precision=self.trainer.precision(epoch).name,
            largest=largest,
            smallest=smallest,
            random=random,
        )
        if not self.config.is_evaluated(epoch):
            return ended
        quantized = self.config.is_quantized(epoch)
        return replace(
            ended,
            fp32=self.accuracies(FP32),
            int8=self.accuracies(INT8) if quantized else None,
        )

    def accuracies(self, precision: Precision) -> Accuracies:
        """Of the largest, the smallest and the same few random subnets, by the weights as they are.

        Parameters
        ----------
        precision : that the subnets compute in; INT8 once the second phase has begun
        """
        rng = np.random.default_rng(self.config.seed)
        hyperspace, space = self.supernet.hyperspace, self.supernet.space
        drawn = [hyperspace.random_subnet(space, rng) for _ in range(self.config.evaluated_subnets)]
        random = [self.accuracy(code, precision) for code in drawn]
        return Accuracies(
            largest=self.accuracy(self.supernet.largest, precision),
            smallest=self.accuracy(self.supernet.smallest, precision),
            random=float(np.mean(random)),
        )

    def accuracy(self, code: SubnetCode, precision: Precision) -> float:
        """Share of the held-out images whose label a subnet names, BatchNorm recalibrated."""
        batches = self.config.batch_size, self.config.recalibration_batches
        subnet = calibrated_subnet(self.supernet, code, self.data, *batches, precision)
        return evaluate(subnet, self.data).accuracy


def training_of(data: LabelledImages, config: SupernetConfig) -> dict[str, str]:
    """What the weights of a trained supernet depend on, besides its space."""
    deciding = {key: value for key, value in config.deciding.items() if key not in _JUDGING}
    return {"images": data.fingerprint, **settings("supernet", deciding)}


def new_supernet(
    hyperspace: Hyperspace, space: SpaceCode | str, config: SupernetConfig
) -> Supernet:
    """A supernet whose first weights follow from the settings' seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Supernet(hyperspace, space)
