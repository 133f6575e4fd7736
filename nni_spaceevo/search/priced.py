"""The subnets of one space as a search handles them: drawn, changed, crossed, and priced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..hyperspace import (
    RESOLUTION,
    BlockChoice,
    BlockConfig,
    ElasticStage,
    Hyperspace,
    PlacedBlock,
    SpaceCode,
    SubnetChoices,
    SubnetCode,
    place,
)
from ..lut import LatencyModel

# A row a subnet, a column a choice: the number of the value that it takes.
Genes = NDArray[np.int64]
Values = NDArray[np.float64]

# Attempts at finding subnets within narrow limits, each from the nearest ones so far.
_ATTEMPTS = 30
_SMALL_STEP = 0.1
_FEWEST = 128
# Five numbers of a row make one of 64 bits: all below this, but for the width that comes last.
_RADIX = 1 << 12


class PricedSubnets:
    """All subnets of a space, with the latency that a device's predictor gives them.

    What a subnet does not use, such as the width of a block that is not there, is 0 in its row, so
    that equal rows are equal subnets.

    Parameters
    ----------
    hyperspace, space : the space
    device : predictor of latencies

    Attributes
    ----------
    num_choices : columns of the rows

    Raises
    ------
    CodeError
        The space is none of the hyperspace.
    """

    def __init__(self, hyperspace: Hyperspace, space: SpaceCode, device: LatencyModel) -> None:
        self._choices = SubnetChoices(hyperspace, space)
        self.hyperspace, self.space, self._device = hyperspace, self._choices.space, device
        self._columns = {name: i for i, name in enumerate(self._choices.values)}
        self._sizes = np.array([len(values) for values in self._choices.values.values()])
        self.num_choices = len(self._columns)
        self._stages = hyperspace.elastic_stages(self.space)
        self._is_resolution = np.array([name == RESOLUTION for name in self._columns], bool)
        # A choice of a block is used from this value of its stage's depth on.
        self._depth = np.full(self.num_choices, -1)
        self._least = np.zeros(self.num_choices, np.int64)
        for name, i in self._columns.items():
            stage, _, rest = name.partition("/")
            if rest.startswith("block") and f"{stage}/depth" in self._columns:
                number = int(rest.partition("/")[0].removeprefix("block"))
                depths = self._choices.values[f"{stage}/depth"]
                self._depth[i] = self._columns[f"{stage}/depth"]
                self._least[i] = next(j for j, depth in enumerate(depths) if depth >= number)
        # Few blocks make many subnets: milliseconds by the place and the numbers of a row's key.
        self._known_ms: dict[str, dict[int, float]] = {}

    # ---- rows ---------------------------------------------------------------------------------

    def random(self, n: int, rng: np.random.Generator) -> Genes:
        """Rows (n, num_choices) in which each choice is drawn uniformly."""
        return self._plain(rng.integers(self._sizes, size=(n, self.num_choices)))

    def mutated(
        self,
        parents: Genes,
        probability: float,
        resolution_probability: float,
        rng: np.random.Generator,
    ) -> Genes:
        """The rows with each choice drawn anew with a probability, the resolution with its own."""
        odds = np.where(self._is_resolution, resolution_probability, probability)
        is_new = rng.random(parents.shape) < odds
        drawn = rng.integers(self._sizes, size=parents.shape)
        return self._plain(np.where(is_new, drawn, parents))

    def crossed(self, mothers: Genes, fathers: Genes, rng: np.random.Generator) -> Genes:
        """Rows that take each choice from one of two, of the same place in both arguments."""
        return self._plain(np.where(rng.random(mothers.shape) < 0.5, mothers, fathers))

    def within(self, low_ms: float, high_ms: float, most: int, rng: np.random.Generator) -> Genes:
        """Up to `most` different subnets within two latencies, in random order; maybe none.

        They are drawn uniformly where that finds enough of them.

        Returns
        -------
        rows (n, num_choices), n <= most
        """
        # Of few, none may lead to narrow limits.
        pool = self.nearest(low_ms, high_ms, max(most, _FEWEST), rng)
        ms = self.ms(pool)
        found = pool[(low_ms <= ms) & (ms <= high_ms)]
        return rng.permutation(found)[:most]

    def nearest(self, low_ms: float, high_ms: float, n: int, rng: np.random.Generator) -> Genes:
        """At least `n` different subnets, if there are so many, within two latencies or near them.

        Random ones, unless fewer than `n` of them are within. Then those nearest to the limits are
        changed again and again.
        """
        pool = _different(self.random(4 * n, rng))
        for _ in range(_ATTEMPTS):
            ms = self.ms(pool)
            beyond = np.maximum(np.maximum(low_ms - ms, ms - high_ms), 0)
            if np.count_nonzero(beyond == 0) >= n:
                break
            best = pool[np.argsort(beyond, kind="stable")[: 2 * n]]
            changed = self.mutated(best, _SMALL_STEP, _SMALL_STEP, rng)
            pool = _different(np.concatenate([best, changed]))
        return pool

    def one_hot(self, genes: Genes) -> Values:
        """A column for each value of each choice, 1 where a subnet uses it, shape (n, values)."""
        ends = np.cumsum(self._sizes)
        columns = np.zeros((len(genes), int(self._sizes.sum())))
        rows, used = np.nonzero(self._is_used(genes))
        columns[rows, (ends - self._sizes)[used] + genes[rows, used]] = 1
        return columns

    def _plain(self, genes: Genes) -> Genes:
        return np.where(self._is_used(genes), genes, 0)

    def _is_used(self, genes: Genes) -> NDArray[np.bool_]:
        return (self._depth < 0) | (genes[:, self._depth] >= self._least)

    # ---- subnets ------------------------------------------------------------------------------

    def codes(self, genes: Genes) -> list[SubnetCode]:
        """The subnets of rows."""
        values = list(self._choices.values.items())
        return [
            self._choices.subnet({name: of[i] for (name, of), i in zip(values, row, strict=True)})
            for row in genes.tolist()
        ]

    def genes(self, codes: Sequence[SubnetCode]) -> Genes:
        """The rows of subnets; raises `CodeError` where one is none of the space."""
        values = self._choices.values
        rows = [
            [values[name].index(chosen) for name, chosen in self._choices.sample(code).items()]
            for code in codes
        ]
        return np.array(rows, np.int64).reshape(len(codes), self.num_choices)

    # ---- latency ------------------------------------------------------------------------------

    def ms(self, genes: Genes) -> Values:
        """Predicted latency of each row in milliseconds, shape (n,), from a sum over its blocks.

        Many subnets share few blocks, and each block is priced once.
        """
        h = self.hyperspace
        resolution = np.array(h.resolutions)[self._chosen(genes, RESOLUTION)]
        cin = np.full(len(genes), h.in_channels)
        total = np.zeros(len(genes))
        for elastic in self._stages:
            depths = np.array(elastic.stage.depths)
            depth = depths[self._chosen(genes, f"{elastic.stage.name}/depth")]
            for i in range(int(depths[-1])):
                kinds = ("kernel_size", "width", "expand")
                where = f"{elastic.stage.name}/block{i + 1}"
                chosen = [self._chosen(genes, f"{where}/{kind}") for kind in kinds]
                there = depth > i
                rows = np.column_stack([*chosen, resolution, cin])[there]
                total[there] += self._chain_ms(where, rows, partial(_placed, h, elastic, i))
                cin = np.where(there, np.array(elastic.widths)[chosen[1]], cin)
        rows = np.column_stack([resolution, cin])
        total += self._chain_ms("head", rows, partial(_placed_head, h))
        return self._device.network_of_sum(total)

    def _chosen(self, genes: Genes, name: str) -> NDArray[np.int64]:
        """The numbers of the values of a choice, 0 where it has one value only."""
        if name not in self._columns:
            return np.zeros(len(genes), np.int64)
        return genes[:, self._columns[name]]

    def _chain_ms(
        self, where: str, rows: NDArray[np.int64], placed: Callable[..., tuple[PlacedBlock, ...]]
    ) -> Values:
        """Milliseconds of the blocks that `placed` makes of each row, shape (n,)."""
        known = self._known_ms.setdefault(where, {})
        # One whole number a row, for numpy sorts rows much more slowly.
        keys = rows @ _RADIX ** np.arange(rows.shape[1])
        different, first, which = np.unique(keys, return_index=True, return_inverse=True)
        names = different.tolist()
        if unknown := [(key, i) for key, i in zip(names, first, strict=True) if key not in known]:
            priced = self._device.chain_ms([placed(*rows[i].tolist()) for _, i in unknown])
            known.update((key, float(ms)) for (key, _), ms in zip(unknown, priced, strict=True))
        return np.array([known[key] for key in names])[which]


def _placed(
    hyperspace: Hyperspace,
    elastic: ElasticStage,
    i: int,
    kernel_size: int,
    width: int,
    expand: int,
    resolution: int,
    cin: int,
) -> tuple[PlacedBlock, ...]:
    """Block number `i` of a stage; the first three after it are numbers of values."""
    option, stage = elastic.option, elastic.stage
    hw = hyperspace.input_hw(stage, resolution)
    choice = BlockChoice(
        option.kernel_sizes[kernel_size], elastic.widths[width], option.expand_choices[expand]
    )
    return (PlacedBlock(elastic.block(i, cin, choice), -(-hw // stage.stride) if i else hw),)


def _placed_head(hyperspace: Hyperspace, resolution: int, cin: int) -> tuple[PlacedBlock, ...]:
    """All blocks after the elastic stages."""
    blocks: list[BlockConfig] = []
    for fixed in hyperspace.head_stages:
        blocks += fixed.blocks(cin, fixed.largest())
        cin = fixed.widths[-1]
    return place(blocks, hyperspace.input_hw(hyperspace.head[0], resolution))


def _different(genes: Genes) -> Genes:
    return np.unique(genes, axis=0)
