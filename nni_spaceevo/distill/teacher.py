"""The teacher: a small residual network whose stages have the hyperspace's strides."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, TrainingError
from ..files import digest, to_json
from ..hyperspace import Hyperspace
from ..network.checkpoint import load_checkpoint, save_checkpoint
from .config import TeacherConfig
from .data import ImageData, batches, resize

Progress = Callable[[str], None]


class FeatureTeacher(Protocol):
    """What distillation asks of a teacher, ours or a user's own.

    Attributes
    ----------
    widths : channels before the first searchable stage and after each one
    fingerprint : changes with the features; checkpoints carry it
    """

    widths: tuple[int, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of whatever decides the features."""

    def eval(self) -> Any:
        """Switch to evaluation mode."""

    def stage_features(self, images: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """Features before and after searchable stage number `stage`, without gradients."""


class TeacherStage(nn.Module):
    """A convolution with the stage's stride, then a residual block."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.enter = _conv_norm(cin, cout, stride)
        self.inner = nn.Sequential(_conv_norm(cout, cout, 1), nn.ReLU(), _conv_norm(cout, cout, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, cin, h, w) to (n, cout, ceil(h / stride), ceil(w / stride))."""
        x = F.relu(self.enter(x))
        return F.relu(x + self.inner(x))


def _conv_norm(cin: int, cout: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout))


class Teacher(nn.Module):
    """A classifier that yields the features at the borders of the searchable stages.

    Parameters
    ----------
    hyperspace : gives the strides
    widths : channels after the stem and after each searchable stage
    classes : number of classes

    Raises
    ------
    ConfigError
        `widths` does not fit the hyperspace's stages.
    """

    def __init__(self, hyperspace: Hyperspace, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        searchable = hyperspace.searchable
        if len(widths) != len(searchable) + 1:
            raise ConfigError(
                f"teacher: widths has {len(widths)} values; expected {len(searchable) + 1}, one "
                f"after the stem and one for each of {', '.join(s.name for s in searchable)}"
            )
        self.widths = widths
        stem_stride = math.prod(s.stride for s in hyperspace.stages[: _first(hyperspace)])
        strides = [stem_stride, *(s.stride for s in searchable)]
        channels = (hyperspace.in_channels, *widths)
        self.stages = nn.ModuleList(
            TeacherStage(channels[i], channels[i + 1], stride) for i, stride in enumerate(strides)
        )
        self.classify = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, channels, h, w)."""
        for stage in self.stages:
            images = stage(images)
        return self.classify(images.mean((2, 3)))

    @torch.no_grad()
    def stage_features(self, images: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """Features before and after searchable stage number `stage`, both (n, channels, h, w)."""
        before = images
        for module in self.stages[: stage + 1]:
            before = module(before)
        return before, self.stages[stage + 1](before)

    @property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        return digest(*(v.numpy().tobytes() for v in self.state_dict().values()))


def _first(hyperspace: Hyperspace) -> int:
    return hyperspace.stages.index(hyperspace.searchable[0])


@torch.no_grad()
def accuracy(teacher: Teacher, images: Tensor, labels: Tensor, resolution: int) -> float:
    """Share of `images` whose label `teacher` names, in evaluation mode."""
    teacher.eval()
    return float((teacher(resize(images, resolution)).argmax(1) == labels).float().mean())


def train_teacher(
    hyperspace: Hyperspace,
    data: ImageData,
    config: TeacherConfig,
    seed: int,
    path: Path,
    progress: Progress = lambda line: None,
) -> Teacher:
    """Train the teacher, or read it if `path` has it already.

    Every epoch ends with a checkpoint, from which a killed run continues to the same weights.

    Raises
    ------
    TrainingError
        The loss is not finite, or the held-out accuracy stays below `config.min_accuracy`.
    CheckpointError
        `path` is damaged or was trained with other settings.
    """
    made_for = digest(hyperspace.fingerprint, to_json(config), str(seed))
    torch.manual_seed(seed)
    teacher = Teacher(hyperspace, config.widths, data.classes)
    optimizer = torch.optim.AdamW(teacher.parameters(), config.learning_rate, weight_decay=0.01)
    done = 0
    if path.is_file():
        state = load_checkpoint(path, made_for)
        teacher.load_state_dict(state["teacher"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["epochs"]
    for epoch in range(done, config.epochs):
        loss = _epoch(teacher, optimizer, hyperspace, data, config, seed, epoch)
        progress(f"epoch {epoch + 1}/{config.epochs}, loss {loss:.3f}")
        state = {"teacher": teacher.state_dict(), "optimizer": optimizer.state_dict()}
        save_checkpoint(path, made_for, {**state, "epochs": epoch + 1})
    _require_accuracy(teacher, hyperspace, data, config, path, progress)
    return teacher.requires_grad_(False)


def _epoch(
    teacher: Teacher,
    optimizer: torch.optim.Optimizer,
    hyperspace: Hyperspace,
    data: ImageData,
    config: TeacherConfig,
    seed: int,
    epoch: int,
) -> float:
    # Randomness depends on the epoch alone, so that a continued run draws what this one draws.
    rng = np.random.default_rng([seed, epoch])
    teacher.train()
    total, steps = 0.0, list(batches(len(data.train_labels), config.batch_size, rng))
    for i, index in enumerate(steps):
        done = (epoch + i / len(steps)) / config.epochs
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * one_cycle(done)
        resolution = int(rng.choice(hyperspace.distill_resolutions))
        logits = teacher(resize(data.train_images[index], resolution))
        loss = F.cross_entropy(logits, data.train_labels[index], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    if not math.isfinite(total):
        raise TrainingError(f"teacher: loss is {total} in epoch {epoch + 1}; lower learning_rate")
    return total / len(steps)


def one_cycle(done: float, warm_up: float = 0.2) -> float:
    """Share of the peak learning rate when a share `done` of the training is over."""
    if done < warm_up:
        return done / warm_up
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def _require_accuracy(
    teacher: Teacher,
    hyperspace: Hyperspace,
    data: ImageData,
    config: TeacherConfig,
    path: Path,
    progress: Progress,
) -> None:
    for resolution in hyperspace.distill_resolutions:
        reached = accuracy(teacher, data.test_images, data.test_labels, resolution)
        progress(f"held-out accuracy at {resolution} px: {reached:.2%}")
        if reached < config.min_accuracy:
            raise TrainingError(
                f"teacher {path}: held-out accuracy {reached:.2%} at {resolution} px, expected at "
                f"least {config.min_accuracy:.2%}; train longer (epochs) or wider (widths)"
            )
