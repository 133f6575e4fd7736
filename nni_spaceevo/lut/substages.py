"""Which sub-stages of a cell become rows of the LUT."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from ..hyperspace import BlockChoice, ElasticStage

if TYPE_CHECKING:
    from ..distill.stage import SubStage


def count_substages(elastic: ElasticStage, input_widths: tuple[int, ...]) -> int:
    """Number of distinct sub-stages, channels entering included."""
    blocks = len(_blocks(elastic))
    return len(input_widths) * sum(blocks**depth for depth in elastic.stage.depths)


def all_substages(elastic: ElasticStage, input_widths: tuple[int, ...]) -> list[SubStage]:
    """Every sub-stage, the shallow ones first."""
    blocks = _blocks(elastic)
    chains = (chain for depth in elastic.stage.depths for chain in product(blocks, repeat=depth))
    return [(cin, chain) for chain in chains for cin in input_widths]


def sample_substages(
    elastic: ElasticStage, input_widths: tuple[int, ...], count: int, rng: np.random.Generator
) -> list[SubStage]:
    """`count` distinct sub-stages, or all of them where there are not so many.

    They are drawn one by one as `ElasticStage.random` draws, and what was drawn before is passed
    over.
    """
    if count_substages(elastic, input_widths) <= 2 * count:
        return _sample_of_few(elastic, input_widths, count, rng)
    found: dict[SubStage, None] = {}
    while len(found) < count:
        found.setdefault((int(rng.choice(input_widths)), elastic.random(rng)))
    return list(found)


def _sample_of_few(
    elastic: ElasticStage, input_widths: tuple[int, ...], count: int, rng: np.random.Generator
) -> list[SubStage]:
    """The same where drawing would mostly meet again what it has."""
    every = all_substages(elastic, input_widths)
    if len(every) <= count:
        return every
    # The depth is drawn first, so a shallow sub-stage is likelier than a deep one.
    blocks = len(_blocks(elastic))
    weights = np.array([float(blocks) ** -len(chain) for _, chain in every])
    chosen = rng.choice(len(every), count, replace=False, p=weights / weights.sum())
    return [every[i] for i in chosen.tolist()]


def _blocks(elastic: ElasticStage) -> list[BlockChoice]:
    """All choices for one block."""
    o = elastic.option
    choices = product(o.kernel_sizes, elastic.widths, o.expand_choices)
    return [BlockChoice(kernel, width, float(expand)) for kernel, width, expand in choices]
