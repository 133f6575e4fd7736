"""Blocks, stages and networks as torch modules, all read from the block recipes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import torch
from torch import Tensor, nn

from ..errors import CodeError
from ..hyperspace import (
    BlockChoice,
    BlockConfig,
    Chain,
    ElasticStage,
    Hyperspace,
    SpaceCode,
    Step,
    SubnetCode,
    recipe_of,
)
from ..quant import ActivationQuantizer
from .layers import QuantizedActivation, build_layer, copy_quantizers


class ElasticBlock(nn.Module):
    """One block that can be every one of `configs`, sharing weights.

    Parameters
    ----------
    configs : configurations of one block type with one stride
    per_channel : whether weights have one scale an output channel
    """

    def __init__(self, configs: Iterable[BlockConfig], *, per_channel: bool = True) -> None:
        super().__init__()
        self.per_channel = per_channel
        recipes = [recipe_of(c) for c in dict.fromkeys(configs)]
        steps: dict[str, list[Step]] = {}
        for recipe in recipes:
            for step in recipe.steps:
                steps.setdefault(step.name, []).append(step)
        self.layers = nn.ModuleDict(
            {name: build_layer(found, per_channel=per_channel) for name, found in steps.items()}
        )
        if any(r.residual for r in recipes):
            self.join = QuantizedActivation(recipes[0].activation)

    def forward(self, x: Tensor, config: BlockConfig) -> Tensor:
        """Map (n, config.cin, h, w) to (n, config.cout, h', w')."""
        recipe = recipe_of(config)
        y = x
        for step in recipe.main:
            y = self.layers[step.name](y, step)
        if not recipe.residual:
            return y
        if recipe.shortcut is not None:
            x = self.layers[recipe.shortcut.name](x, recipe.shortcut)
        return self.join(y + x)

    def extract(self, config: BlockConfig) -> StaticBlock:
        """A static block with its own copy of the active parameters and ranges."""
        static = StaticBlock(config, per_channel=self.per_channel)
        for step in recipe_of(config).steps:
            self.layers[step.name].copy_to(static.layers[step.name], step)  # type: ignore[operator]
        if hasattr(static, "join"):
            copy_quantizers(self.join, static.join)
        return static.train(self.training)


class StaticBlock(ElasticBlock):
    """One block of one configuration."""

    def __init__(self, config: BlockConfig, *, per_channel: bool = True) -> None:
        super().__init__([config], per_channel=per_channel)
        self.config = config

    def forward(self, x: Tensor, config: BlockConfig | None = None) -> Tensor:
        """Map (n, cin, h, w) to (n, cout, h', w'); another config than its own is refused."""
        if config not in (None, self.config):
            raise CodeError(f"static block {self.config} cannot be {config}")
        return super().forward(x, self.config)


class StageNet(nn.Module):
    """An elastic stage: as many elastic blocks as its largest depth.

    Parameters
    ----------
    elastic : block type, widths and depths
    input_widths : channels that can enter
    per_channel : whether weights have one scale an output channel
    """

    def __init__(
        self, elastic: ElasticStage, input_widths: Iterable[int], *, per_channel: bool = True
    ) -> None:
        super().__init__()
        self.elastic = elastic
        self.input_widths = tuple(input_widths)
        self.blocks = nn.ModuleList(
            ElasticBlock(self._configs(i), per_channel=per_channel)
            for i in range(elastic.stage.depths[-1])
        )

    def _configs(self, i: int) -> list[BlockConfig]:
        option, widths = self.elastic.option, self.elastic.widths
        stride = self.elastic.stage.stride if i == 0 else 1
        choices = product(option.kernel_sizes, widths, option.expand_choices)
        options = [BlockChoice(*choice) for choice in choices]
        cins = self.input_widths if i == 0 else widths
        return [option.config(cin, choice, stride) for cin in cins for choice in options]

    def forward(self, x: Tensor, chain: Chain) -> Tensor:
        """Run the sub-stage `chain` on (n, cin, h, w), cin one of `input_widths`."""
        for block, config in zip(self.blocks, self.elastic.blocks(x.shape[1], chain), strict=False):
            x = block(x, config)
        return x

    def extract(self, cin: int, chain: Chain) -> nn.Sequential:
        """The sub-stage as static blocks with their own parameters."""
        configs = self.elastic.blocks(cin, chain)
        blocks = zip(self.blocks, configs, strict=False)
        return nn.Sequential(*(b.extract(c) for b, c in blocks))  # type: ignore[operator]


class StaticNetwork(nn.Module):
    """A subnet as a static network, weights fresh.

    Parameters
    ----------
    hyperspace, space, subnet : the architecture
    """

    def __init__(self, hyperspace: Hyperspace, space: SpaceCode, subnet: SubnetCode) -> None:
        super().__init__()
        self.image = ActivationQuantizer(unsigned=False)
        stages = hyperspace.subnet_blocks(space, hyperspace.subnet(space, subnet))
        self.stages = nn.ModuleDict(
            {name: nn.Sequential(*map(StaticBlock, blocks)) for name, blocks in stages}
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, channels, resolution, resolution)."""
        x = self.image(images)
        for stage in self.stages.values():
            x = stage(x)
        return x


@torch.no_grad()
def recalibrate_batch_norm(module: nn.Module, *args: object) -> None:
    """Set BatchNorm's statistics to those of one batch; quantizer ranges stay.

    Sub-networks share BatchNorm parameters but not statistics (Yu and Huang, ICCV 2019), so they
    are measured anew before each evaluation.

    Parameters
    ----------
    module : called with `args` once in training mode, then left in evaluation mode
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 1.0
    module.train()
    module(*args)
    module.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
