"""Precision as a value: what a network computes in, switched on a module tree at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..errors import TrainingError
from .lsq import Quantizer

_TRIES = 1000


@dataclass(frozen=True, slots=True)
class Precision:
    """FP32, or INT8 by fake quantization."""

    name: str
    quantized: bool


FP32 = Precision("fp32", quantized=False)
INT8 = Precision("int8", quantized=True)


def set_precision(module: nn.Module, precision: Precision) -> None:
    """Switch all quantizers below `module` on or off, and tell each its path for error messages."""
    for path, child in module.named_modules():
        if isinstance(child, Quantizer):
            child.enabled = precision.quantized
            child.path = path


def uninitialized(module: nn.Module) -> list[str]:
    """Paths of the quantizers below `module` that have no range yet."""
    return [
        path
        for path, child in module.named_modules()
        if isinstance(child, Quantizer) and not child.has_range
    ]


def until_initialized(module: nn.Module, what: str) -> Iterator[None]:
    """Yield as long as a quantizer has no range; each time, the caller runs another sub-network.

    Parameters
    ----------
    module : whose quantizers take their ranges from what they see first
    what : whose quantizers they are, and what was run, for the error: `stage1_resnet: no sampled
        sub-stage`

    Raises
    ------
    TrainingError
        After 1000 times there still is one; names it.
    """
    for _ in range(_TRIES):
        if not uninitialized(module):
            return
        yield
    if missed := uninitialized(module):
        raise TrainingError(f"{what} reaches quantizer {missed[0]}")
