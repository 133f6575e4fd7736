"""A teacher quantized with LSQ+ before anything is distilled from it, as in the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import TrainingError
from ...network.checkpoint import load_checkpoint, save_checkpoint
from ...quant import FP32, INT8, ActivationQuantizer, Quantizer, WeightQuantizer, set_precision
from ..data import Images, image_seeds
from ..loss import nsr_loss
from .pretrained import PretrainedTeacher

# A handful of steps is enough: only scales and zero points learn, from a start that is close.
_STEPS = 32
_BATCH = 16
_LEARNING_RATE = 3e-3


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose input and weight are fake-quantized.

    Parameters
    ----------
    layer : any `Conv2d` or `Linear`, of a subclass too; its weight is used, not copied
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.input = ActivationQuantizer(unsigned=False)
        self.weight = WeightQuantizer(len(layer.weight))
        self.weight.cover(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives for the quantized `x`."""
        weight = self.weight(self.layer.weight, self.layer.weight)
        return torch.func.functional_call(self.layer, {"weight": weight}, (self.input(x),))


def quantize_teacher(
    teacher: PretrainedTeacher,
    data: Images,
    resolutions: tuple[int, ...],
    seed: int,
    path: Path,
    progress: Callable[[str], None] = lambda line: None,
) -> PretrainedTeacher:
    """Quantize a teacher, or read its ranges if `path` has them already.

    Scales and zero points alone learn, to give the features that the teacher gave before, so no
    labels are needed.

    Parameters
    ----------
    teacher : changed in place
    data : training images, augmented
    resolutions : of the images, one drawn for each step
    seed : of what is drawn
    path : checkpoint of the ranges
    progress : receives a line about the outcome

    Raises
    ------
    TrainingError
        The loss is not finite.
    CheckpointError
        `path` is damaged, or of another teacher or other images.
    """
    made_for = {
        "teacher": teacher.fingerprint,
        "images": data.fingerprint,
        "resolutions": str(resolutions),
        "seed": str(seed),
    }
    for name, module in list(teacher.trunk.named_modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            teacher.trunk.set_submodule(name, QuantizedLayer(module))
    quantizers = nn.ModuleDict(
        {
            name.replace(".", "/"): module
            for name, module in teacher.trunk.named_modules()
            if isinstance(module, Quantizer)
        }
    )
    if path.is_file():
        quantizers.load_state_dict(load_checkpoint(path, made_for)["quantizers"])
    else:
        first, last = _learn(teacher, quantizers, data, resolutions, seed)
        progress(f"quantized with LSQ+; NSR loss of its features {last:.4f}, {first:.4f} at first")
        save_checkpoint(path, made_for, {"quantizers": quantizers.state_dict()})
    set_precision(teacher, INT8)
    teacher.forget()
    return teacher.requires_grad_(False).eval()


def _learn(
    teacher: PretrainedTeacher,
    quantizers: nn.ModuleDict,
    data: Images,
    resolutions: tuple[int, ...],
    seed: int,
) -> tuple[float, float]:
    """Learn the ranges; returns the loss on the first images before and after."""
    rng = np.random.default_rng(seed)
    (of_images,) = rng.spawn(1)

    def batch(resolution: int) -> Tensor:
        count = min(_BATCH, data.train_size)
        index = torch.from_numpy(rng.choice(data.train_size, count, replace=False))
        return data.train_batch(index, resolution, image_seeds(of_images, count))

    first = [batch(resolution) for resolution in resolutions]
    _observe(teacher, first)
    before = _mean_loss(teacher, first)
    quantizers.train().requires_grad_(True)
    optimizer = torch.optim.Adam(quantizers.parameters(), _LEARNING_RATE)
    losses = []
    for step in range(_STEPS):
        images = batch(int(rng.choice(resolutions)))
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / _STEPS))
        loss = _loss(teacher, images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not np.isfinite(losses).all():
        raise TrainingError("teacher: the quantized teacher's NSR loss is not finite")
    return before, _mean_loss(teacher, first)


@torch.no_grad()
def _observe(teacher: PretrainedTeacher, batches: list[Tensor]) -> None:
    """Start the ranges of what enters layers from all that enters them in some batches."""
    layers = [m for m in teacher.modules() if isinstance(m, QuantizedLayer)]
    seen: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[layer] += inputs[0].aminmax()

    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    set_precision(teacher, FP32)
    for images in batches:
        teacher(images)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        layer.input.initialize(torch.stack(seen[layer]))


@torch.no_grad()
def _mean_loss(teacher: PretrainedTeacher, batches: list[Tensor]) -> float:
    return float(np.mean([_loss(teacher, images).item() for images in batches]))


def _loss(teacher: PretrainedTeacher, images: Tensor) -> Tensor:
    """Mean NSR loss of the quantized features against those in FP32."""
    set_precision(teacher, FP32)
    with torch.no_grad():
        wanted = teacher(images)
    set_precision(teacher, INT8)
    losses = [nsr_loss(a, b) for a, b in zip(teacher(images), wanted, strict=True)]
    return torch.stack(losses).mean()
