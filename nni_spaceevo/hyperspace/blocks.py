"""The published block types, each declared once as a recipe (SpaceEvo, tables of section 4).

To add one: write a function from `BlockConfig` to `Recipe` and register it with `block_type`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from ..errors import ConfigError
from .recipe import (
    BlockConfig,
    ConvStep,
    LinearStep,
    PoolStep,
    Recipe,
    SqueezeExciteStep,
    Step,
    make_divisible,
)


@dataclass(frozen=True, slots=True)
class BlockType:
    """A named recipe.

    Attributes
    ----------
    name : short name, as in YAML files and trial parameters
    title : the paper's name
    recipe : the steps of one configuration
    expands : whether the recipe has an expand ratio
    """

    name: str
    title: str
    recipe: Callable[[BlockConfig], Recipe]
    expands: bool


BLOCK_TYPES: dict[str, BlockType] = {}


def block_type(
    name: str, title: str, *, expands: bool
) -> Callable[[Callable[[BlockConfig], Recipe]], Callable[[BlockConfig], Recipe]]:
    """Register a recipe under `name`; a name that is taken is refused."""

    def register(recipe: Callable[[BlockConfig], Recipe]) -> Callable[[BlockConfig], Recipe]:
        if name in BLOCK_TYPES:
            raise ConfigError(f"block type {name!r} is already registered")
        BLOCK_TYPES[name] = BlockType(name, title, recipe, expands)
        return recipe

    return register


def get_block_type(name: str) -> BlockType:
    """Look a block type up, or raise `ConfigError` with the known names."""
    if name not in BLOCK_TYPES:
        raise ConfigError(f"unknown block type {name!r}; known: {', '.join(sorted(BLOCK_TYPES))}")
    return BLOCK_TYPES[name]


@cache
def recipe_of(config: BlockConfig) -> Recipe:
    """Steps of one static block."""
    return get_block_type(config.type).recipe(config)


def _shortcut(c: BlockConfig) -> ConvStep | None:
    """1x1 convolution where the identity does not fit, None where it does."""
    if c.stride == 1 and c.cin == c.cout:
        return None
    return ConvStep("shortcut", c.cin, c.cout, stride=c.stride)


def _depthwise_k3(c: BlockConfig, hidden: int) -> list[Step]:
    """A kxk depthwise convolution as stacked 3x3 ones, BatchNorm and activation after the last."""
    count = (c.kernel_size - 1) // 2
    return [
        ConvStep(
            f"depthwise{i}",
            hidden,
            hidden,
            3,
            c.stride if i == 0 else 1,
            depthwise=True,
            norm=i == count - 1,
            activation=c.activation if i == count - 1 else "none",
        )
        for i in range(count)
    ]


def _inverted_residual(
    c: BlockConfig, *, se: bool, residual: bool = True, k3: bool = False
) -> Recipe:
    hidden = make_divisible(c.cin * (c.expand or 1))
    main: list[Step] = []
    if hidden != c.cin:
        main.append(ConvStep("expand", c.cin, hidden, activation=c.activation))
    if k3:
        main += _depthwise_k3(c, hidden)
    else:
        main.append(
            ConvStep(
                "depthwise",
                hidden,
                hidden,
                c.kernel_size,
                c.stride,
                depthwise=True,
                activation=c.activation,
            )
        )
    if se:
        main.append(SqueezeExciteStep("se", hidden, make_divisible(hidden // 4)))
    main.append(ConvStep("project", hidden, c.cout))
    if not residual and _shortcut(c) is not None:
        return Recipe(tuple(main))
    return Recipe(tuple(main), residual=True, shortcut=_shortcut(c))


@block_type("mbv1_dual", "MobileNetV1Dual", expands=False)
def _mbv1_dual(c: BlockConfig) -> Recipe:
    main = (
        ConvStep(
            "depthwise1",
            c.cin,
            c.cin,
            c.kernel_size,
            c.stride,
            depthwise=True,
            activation=c.activation,
        ),
        ConvStep("pointwise1", c.cin, c.cout, activation=c.activation),
        ConvStep(
            "depthwise2", c.cout, c.cout, c.kernel_size, depthwise=True, activation=c.activation
        ),
        ConvStep("pointwise2", c.cout, c.cout, activation=c.activation),
    )
    return Recipe(main, residual=True, shortcut=_shortcut(c))


@block_type("mbv2", "MobileNetV2", expands=True)
def _mbv2(c: BlockConfig) -> Recipe:
    return _inverted_residual(c, se=False, residual=False)


@block_type("mbv2_res", "MobileNetV2Res", expands=True)
def _mbv2_res(c: BlockConfig) -> Recipe:
    return _inverted_residual(c, se=False)


@block_type("mbv3_res", "MobileNetV3Res", expands=True)
def _mbv3_res(c: BlockConfig) -> Recipe:
    return _inverted_residual(c, se=True)


@block_type("mbv2_k3_res", "MobileNetV2K3Res", expands=True)
def _mbv2_k3_res(c: BlockConfig) -> Recipe:
    return _inverted_residual(c, se=False, k3=True)


@block_type("mbv3_k3_res", "MobileNetV3K3Res", expands=True)
def _mbv3_k3_res(c: BlockConfig) -> Recipe:
    return _inverted_residual(c, se=True, k3=True)


def _bottleneck(c: BlockConfig, *, se: bool) -> Recipe:
    hidden = make_divisible(c.cout * (c.expand or 1))
    main: list[Step] = [
        ConvStep("reduce", c.cin, hidden, activation=c.activation),
        ConvStep("spatial", hidden, hidden, c.kernel_size, c.stride, activation=c.activation),
    ]
    if se:
        # As in RegNet, the squeeze follows the block's input width, not the hidden width.
        main.append(SqueezeExciteStep("se", hidden, make_divisible(c.cin // 4)))
    main.append(ConvStep("project", hidden, c.cout))
    return Recipe(tuple(main), residual=True, shortcut=_shortcut(c), activation=c.activation)


@block_type("resnet", "ResNet", expands=True)
def _resnet(c: BlockConfig) -> Recipe:
    return _bottleneck(c, se=False)


@block_type("resnet_se", "ResNetSE", expands=True)
def _resnet_se(c: BlockConfig) -> Recipe:
    return _bottleneck(c, se=True)


def _fused_mbconv(c: BlockConfig, *, se: bool) -> Recipe:
    hidden = make_divisible(c.cin * (c.expand or 1))
    main: list[Step] = [
        ConvStep("fused", c.cin, hidden, c.kernel_size, c.stride, activation=c.activation)
    ]
    if se:
        main.append(SqueezeExciteStep("se", hidden, make_divisible(c.cin // 4)))
    main.append(ConvStep("project", hidden, c.cout))
    return Recipe(tuple(main), residual=True, shortcut=_shortcut(c))


@block_type("fused_mb_res", "FusedMBConvRes", expands=True)
def _fused_mb_res(c: BlockConfig) -> Recipe:
    return _fused_mbconv(c, se=False)


@block_type("fused_mb_se_res", "FusedMBConvSERes", expands=True)
def _fused_mb_se_res(c: BlockConfig) -> Recipe:
    return _fused_mbconv(c, se=True)


@block_type("conv", "ConvBnAct", expands=False)
def _conv(c: BlockConfig) -> Recipe:
    """First convolution and final expand."""
    return Recipe(
        (ConvStep("conv", c.cin, c.cout, c.kernel_size, c.stride, activation=c.activation),)
    )


@block_type("pool_conv", "FeatureMix", expands=False)
def _pool_conv(c: BlockConfig) -> Recipe:
    """Feature mix: global pool, then a 1x1 convolution."""
    return Recipe(
        (PoolStep("pool", c.cin), ConvStep("conv", c.cin, c.cout, activation=c.activation))
    )


@block_type("linear", "Logits", expands=False)
def _linear(c: BlockConfig) -> Recipe:
    return Recipe((LinearStep("linear", c.cin, c.cout),))
