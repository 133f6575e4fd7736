"""A teacher trained here: a small residual network with the strides of the hyperspace."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError, TrainingError
from ...files import digest, plain
from ...hyperspace import Hyperspace
from ...network.checkpoint import load_checkpoint, save_checkpoint, settings
from ..config import TeacherConfig
from ..data import Images, batches, image_seeds, to_channels
from .protocol import borders

Progress = Callable[[str], None]
_EVALUATION_BATCH = 512


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
        strides = [next(iter(borders(hyperspace).values())), *(s.stride for s in searchable)]
        self.in_channels = hyperspace.in_channels
        channels = (hyperspace.in_channels, *widths)
        self.stages = nn.ModuleList(
            TeacherStage(channels[i], channels[i + 1], stride) for i, stride in enumerate(strides)
        )
        self.classify = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, channels, h, w)."""
        images = to_channels(images, self.in_channels)
        for stage in self.stages:
            images = stage(images)
        return self.classify(images.mean((2, 3)))

    @torch.no_grad()
    def stage_features(self, images: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """Features before and after searchable stage number `stage`, both (n, channels, h, w)."""
        before = to_channels(images, self.in_channels)
        for module in self.stages[: stage + 1]:
            before = module(before)
        return before, self.stages[stage + 1](before)

    @property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        return digest(*(v.cpu().numpy().tobytes() for v in self.state_dict().values()))


@torch.no_grad()
def accuracy(teacher: Teacher, data: Images, labels: Tensor, resolution: int) -> float:
    """Share of the held-out images whose label `teacher` names, in evaluation mode."""
    teacher.eval()
    right = 0
    for index in torch.arange(data.test_size).split(_EVALUATION_BATCH):
        named = teacher(data.test_batch(index, resolution)).argmax(1)
        right += int((named == labels[index]).sum())
    return right / data.test_size


def new_teacher(hyperspace: Hyperspace, data: Images, config: TeacherConfig) -> Teacher:
    """A teacher for the classes of a dataset, not trained yet.

    Raises
    ------
    ConfigError
        The images have no labels, or the widths do not fit the hyperspace.
    """
    if data.train_labels is None or data.test_labels is None:
        raise ConfigError(
            "teacher: the dataset has no labels to train one with; expected labels, which an image "
            "folder has if both folders have the same class folders, or a pretrained `model`"
        )
    return Teacher(hyperspace, config.widths, data.classes)


def train_teacher(
    hyperspace: Hyperspace,
    data: Images,
    config: TeacherConfig,
    seed: int,
    path: Path,
    progress: Progress = lambda line: None,
) -> Teacher:
    """Train the teacher, or read it if `path` has it already.

    Every epoch ends with a checkpoint, from which a killed run continues to the same weights.

    Raises
    ------
    ConfigError
        The images have no labels.
    TrainingError
        The loss is not finite, or the held-out accuracy stays below `config.min_accuracy`.
    CheckpointError
        `path` is damaged or was trained with other settings.
    """
    made_for = {
        "hyperspace": hyperspace.fingerprint,
        "images": data.fingerprint,
        "seed": str(seed),
        **settings("teacher", plain(config)),
    }
    torch.manual_seed(seed)
    teacher = new_teacher(hyperspace, data, config)
    optimizer = torch.optim.AdamW(teacher.parameters(), config.learning_rate, weight_decay=0.01)
    done = 0
    if path.is_file():
        # Whether it is good enough is asked in the end, by what is asked now.
        state = load_checkpoint(path, made_for, apart_from=("teacher.min_accuracy",))
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
    data: Images,
    config: TeacherConfig,
    seed: int,
    epoch: int,
) -> float:
    # Randomness depends on the epoch alone, so that a continued run draws what this one draws.
    rng = np.random.default_rng([seed, epoch])
    (of_images,) = rng.spawn(1)
    teacher.train()
    assert data.train_labels is not None
    total, steps = 0.0, list(batches(data.train_size, config.batch_size, rng))
    for i, index in enumerate(steps):
        done = (epoch + i / len(steps)) / config.epochs
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * one_cycle(done)
        resolution = int(rng.choice(hyperspace.distill_resolutions))
        images = data.train_batch(index, resolution, image_seeds(of_images, len(index)))
        logits = teacher(images)
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
    data: Images,
    config: TeacherConfig,
    path: Path,
    progress: Progress,
) -> None:
    assert data.test_labels is not None
    for resolution in hyperspace.distill_resolutions:
        reached = accuracy(teacher, data, data.test_labels, resolution)
        progress(f"held-out accuracy at {resolution} px: {reached:.2%}")
        if reached < config.min_accuracy:
            raise TrainingError(
                f"teacher {path}: held-out accuracy {reached:.2%} at {resolution} px, expected at "
                f"least {config.min_accuracy:.2%}; train longer (epochs) or wider (widths)"
            )
