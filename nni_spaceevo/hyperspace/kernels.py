"""Abstract kernels: a block or network as the operators that a device computes, with shapes.

MFLOPs (multiply-accumulates, as the paper counts them) and parameters are sums over kernels; a
device lowers them to what its runtime really runs (`nni_spaceevo.latency`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .blocks import recipe_of
from .recipe import BlockConfig, ConvStep, LinearStep, PoolStep, SqueezeExciteStep, Step


@dataclass(frozen=True, slots=True)
class Kernel:
    """One operator on a square feature map.

    Attributes
    ----------
    op : "conv", "dwconv", "se", "add", "pool" or "linear"
    hw : input height and width in pixels
    cin, cout : input and output channels; equal for dwconv, se, add and pool
    kernel_size, stride : of convolutions
    activation : applied to the result
    squeezed : inner channels of an "se"
    norm : whether BatchNorm follows (it counts as parameters, not as multiply-accumulates)
    """

    op: str
    hw: int
    cin: int
    cout: int
    kernel_size: int = 1
    stride: int = 1
    activation: str = "none"
    squeezed: int = 0
    norm: bool = False

    @property
    def hw_out(self) -> int:
        """Output height and width."""
        return 1 if self.op == "pool" else -(-self.hw // self.stride)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and products with weights; sums are not counted."""
        if self.op == "se":
            return 2 * self.cin * self.squeezed
        if self.op == "linear":
            return self.cin * self.cout
        if self.op not in ("conv", "dwconv"):
            return 0
        per_pixel = self.cout * self.kernel_size**2 * (self.cin if self.op == "conv" else 1)
        return per_pixel * self.hw_out**2

    @property
    def params(self) -> int:
        """Weights, biases, and BatchNorm's two per channel."""
        if self.op == "se":
            return 2 * self.cin * self.squeezed + self.cin + self.squeezed
        if self.op == "linear":
            return self.cin * self.cout + self.cout
        if self.op not in ("conv", "dwconv"):
            return 0
        weights = self.cout * self.kernel_size**2 * (self.cin if self.op == "conv" else 1)
        return weights + (2 * self.cout if self.norm else 0)

    def convolutions(self) -> tuple[Kernel, ...]:
        """The convolution nodes of this kernel: itself, the two of an "se", or none."""
        if self.op in ("conv", "dwconv"):
            return (self,)
        if self.op == "se":
            return (
                Kernel("conv", 1, self.cin, self.squeezed, activation="relu"),
                Kernel("conv", 1, self.squeezed, self.cin, activation="hsigmoid"),
            )
        return ()


def _kernel_of(step: Step, hw: int) -> Kernel:
    match step:
        case ConvStep():
            op = "dwconv" if step.depthwise else "conv"
            shape = (step.kernel_size, step.stride, step.activation)
            return Kernel(op, hw, step.cin, step.cout, *shape, norm=step.norm)
        case SqueezeExciteStep():
            return Kernel("se", hw, step.channels, step.channels, squeezed=step.squeezed)
        case PoolStep():
            return Kernel("pool", hw, step.channels, step.channels)
        case LinearStep():
            return Kernel("linear", hw, step.cin, step.cout)


def block_kernels(config: BlockConfig, hw: int) -> tuple[Kernel, ...]:
    """Kernels of one block on an input of `hw` x `hw` pixels: main path, shortcut, sum."""
    recipe = recipe_of(config)
    kernels, size = [], hw
    for step in recipe.main:
        kernels.append(_kernel_of(step, size))
        size = kernels[-1].hw_out
    if recipe.shortcut is not None:
        kernels.append(_kernel_of(recipe.shortcut, hw))
    if recipe.residual:
        kernels.append(Kernel("add", size, config.cout, config.cout, activation=recipe.activation))
    return tuple(kernels)


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """A static block and the height and width of its input: what has a latency.

    Attributes
    ----------
    config : the block
    hw : input height and width in pixels
    """

    config: BlockConfig
    hw: int

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Its kernels: main path, shortcut, sum."""
        return block_kernels(self.config, self.hw)


def place(blocks: Iterable[BlockConfig], hw: int) -> tuple[PlacedBlock, ...]:
    """Blocks in a row, the first on an input of `hw` x `hw` pixels."""
    placed = []
    for config in blocks:
        placed.append(PlacedBlock(config, hw))
        hw = output_hw(config, hw)
    return tuple(placed)


def chain_kernels(blocks: Iterable[BlockConfig], hw: int) -> tuple[Kernel, ...]:
    """Kernels of blocks in a row, the first on an input of `hw` x `hw` pixels."""
    return tuple(kernel for block in place(blocks, hw) for kernel in block.kernels)


def output_hw(config: BlockConfig, hw: int) -> int:
    """Height and width after a block."""
    return 1 if config.type == "pool_conv" else -(-hw // config.stride)


def mflops(kernels: Iterable[Kernel]) -> float:
    """Millions of multiply-accumulates."""
    return sum(k.macs for k in kernels) / 1e6


def mparams(kernels: Iterable[Kernel]) -> float:
    """Millions of parameters."""
    return sum(k.params for k in kernels) / 1e6
