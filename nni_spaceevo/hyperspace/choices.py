"""What the subnets of a space choose, as named choices: the form in which NNI writes a subnet.

A subnet code has the blocks that are there; a sample has a value for every choice, those of blocks
beyond the sampled depth included, so that each choice can be drawn and changed by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import CodeError
from .codes import BlockChoice, Chain, SpaceCode, SubnetCode
from .hyperspace import ElasticStage, Hyperspace

RESOLUTION = "resolution"


class SubnetChoices:
    """The choices of a space's subnets, and the way from samples to subnet codes and back.

    `stage2/depth`, `stage2/block1/kernel_size`, `…/width`, `…/expand` and `resolution`. What has
    one value is no choice and has no name. Every combination of values is a subnet.

    Parameters
    ----------
    hyperspace, space : the space

    Attributes
    ----------
    values : the values of each choice, by its name

    Raises
    ------
    CodeError
        The space is none of the hyperspace.
    """

    def __init__(self, hyperspace: Hyperspace, space: SpaceCode) -> None:
        self.hyperspace = hyperspace
        self.space = hyperspace.space(space)
        self._stages = hyperspace.elastic_stages(self.space)
        self._fixed: dict[str, Any] = {}
        self.values: dict[str, tuple[Any, ...]] = {}
        for name, values in self._all_values():
            if len(values) > 1:
                self.values[name] = values
            else:
                self._fixed[name] = values[0]

    def _all_values(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        for elastic in self._stages:
            stage, option = elastic.stage, elastic.option
            yield f"{stage.name}/depth", stage.depths
            for i in range(stage.depths[-1]):
                kernel_size, width, expand = _block(stage.name, i)
                yield kernel_size, option.kernel_sizes
                yield width, elastic.widths
                yield expand, option.expand_choices
        yield RESOLUTION, self.hyperspace.resolutions

    def subnet(self, sample: Mapping[str, Any]) -> SubnetCode:
        """The subnet that a sample stands for; choices of blocks that are not there are ignored.

        Raises
        ------
        CodeError
            A choice is missing or has a value that it does not offer; names it and what it offers.
        """
        chosen = dict(self._fixed)
        for name, values in self.values.items():
            if name not in sample:
                raise CodeError(f"{name}: missing; allowed {list(values)}")
            if sample[name] not in values:
                raise CodeError(f"{name}: {sample[name]!r}; allowed {list(values)}")
            # The choice's own value, not one that equals it: JSON may have made 4.0 of a 4.
            chosen[name] = values[values.index(sample[name])]
        chains = tuple(_chain(elastic, chosen) for elastic in self._stages)
        return SubnetCode(chains, chosen[RESOLUTION])

    def sample(self, subnet: SubnetCode) -> dict[str, Any]:
        """The sample of a subnet; what is not there has the first of its values.

        Raises
        ------
        CodeError
            The subnet is none of the space.
        """
        self.hyperspace.subnet(self.space, subnet)
        chosen: dict[str, Any] = {RESOLUTION: subnet.resolution}
        for elastic, chain in zip(self._stages, subnet.stages, strict=True):
            chosen[f"{elastic.stage.name}/depth"] = len(chain)
            for i, block in enumerate(chain):
                values = (block.kernel_size, block.width, block.expand)
                chosen.update(zip(_block(elastic.stage.name, i), values, strict=True))
        return {name: chosen.get(name, values[0]) for name, values in self.values.items()}


def _block(stage: str, i: int) -> tuple[str, str, str]:
    """Names of the choices of block number `i`."""
    return (
        f"{stage}/block{i + 1}/kernel_size",
        f"{stage}/block{i + 1}/width",
        f"{stage}/block{i + 1}/expand",
    )


def _chain(elastic: ElasticStage, chosen: Mapping[str, Any]) -> Chain:
    name = elastic.stage.name
    depth = chosen[f"{name}/depth"]
    return tuple(BlockChoice(*(chosen[key] for key in _block(name, i))) for i in range(depth))
