"""Precision as a value: what a network computes in, switched on a module tree at once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .lsq import Quantizer


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
        if isinstance(child, Quantizer) and not child.initialized
    ]
