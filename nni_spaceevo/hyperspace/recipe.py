"""The language of block recipes: steps with their widths, and the two ways a block can end.

A block type is declared once as a function from a `BlockConfig` to a `Recipe`. Kernels (and so
MFLOPs, parameters and latency), the static torch module and the elastic torch module are readings
of the same recipe.
"""

from __future__ import annotations

from dataclasses import dataclass

ACTIVATIONS = ("none", "relu", "relu6", "hswish", "swish", "hsigmoid")


@dataclass(frozen=True, slots=True)
class BlockConfig:
    """One static block.

    Attributes
    ----------
    type : name of a registered block type
    cin, cout : input and output channels
    kernel_size : spatial kernel size
    expand : expand ratio, None for block types without one
    stride : stride of the block's spatial convolution
    activation : one of `ACTIVATIONS`
    """

    type: str
    cin: int
    cout: int
    kernel_size: int = 1
    expand: float | None = None
    stride: int = 1
    activation: str = "relu"


@dataclass(frozen=True, slots=True)
class ConvStep:
    """Convolution (dense or depthwise), bias or BatchNorm where asked for, activation."""

    name: str
    cin: int
    cout: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    norm: bool = True
    activation: str = "none"
    bias: bool = False


@dataclass(frozen=True, slots=True)
class SqueezeExciteStep:
    """Global pool, 1x1 conv + ReLU, 1x1 conv + hard sigmoid (both with bias), product."""

    name: str
    channels: int
    squeezed: int

    @property
    def convs(self) -> tuple[ConvStep, ConvStep]:
        """The two convolutions, named `reduce` and `expand`."""
        inner = {"norm": False, "bias": True}
        return (
            ConvStep("reduce", self.channels, self.squeezed, activation="relu", **inner),
            ConvStep("expand", self.squeezed, self.channels, activation="hsigmoid", **inner),
        )


@dataclass(frozen=True, slots=True)
class PoolStep:
    """Global average pool to 1x1."""

    name: str
    channels: int


@dataclass(frozen=True, slots=True)
class LinearStep:
    """Fully connected layer with bias on a 1x1 feature."""

    name: str
    cin: int
    cout: int


Step = ConvStep | SqueezeExciteStep | PoolStep | LinearStep


@dataclass(frozen=True, slots=True)
class Recipe:
    """A block as steps: the main path, then (if `residual`) the sum with the shortcut.

    Attributes
    ----------
    main : steps of the main path, in order
    residual : whether the block ends with a sum
    shortcut : convolution on the shortcut; None is the identity
    activation : activation after the sum
    """

    main: tuple[Step, ...]
    residual: bool = False
    shortcut: ConvStep | None = None
    activation: str = "none"

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, the shortcut's last."""
        return self.main if self.shortcut is None else (*self.main, self.shortcut)


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, at least it, never losing over 10 %."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
