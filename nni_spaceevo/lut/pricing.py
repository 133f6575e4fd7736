"""What a LUT's latencies are of: the blocks of its rows, and the stages that have no rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from ..errors import LUTError
from ..hyperspace import BlockChoice, Hyperspace, PlacedBlock, SpaceCode, place
from ..latency.line import network_line


class LatencyModel(Protocol):
    """What the LUT asks of a latency predictor."""

    @property
    def name(self) -> str:
        """Name of the device, kept with the LUT."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that latencies depend on."""

    @property
    def network_overhead_ms(self) -> float:
        """Milliseconds that a whole network costs beyond its blocks."""

    def chain_ms(self, chains: Sequence[Sequence[PlacedBlock]]) -> np.ndarray:
        """Latency of each list of blocks, without the per-network constant."""
        ...

    def network_of_sum(self, sum_ms: np.ndarray) -> np.ndarray:
        """Latency of whole networks from the sums of their blocks, shape (n,)."""
        return sum_ms + self.network_overhead_ms

    def network_ms(self, chains: Sequence[Sequence[PlacedBlock]]) -> np.ndarray:
        """Latency of each list of blocks that is a whole network."""
        return self.network_of_sum(self.chain_ms(chains))


@dataclass(frozen=True)
class OtherStages:
    """Latency of what a LUT has no rows for: stem, head and a constant of all networks.

    Attributes
    ----------
    ms : milliseconds by distill resolution, as text
    source : where they come from, in words
    """

    ms: dict[str, float]
    source: str

    @classmethod
    def predicted(
        cls,
        hyperspace: Hyperspace,
        device: LatencyModel,
        line: tuple[float, float] | None = None,
    ) -> OtherStages:
        """By a latency predictor; stem and head of the smallest subnet, as the paper's code does.

        Parameters
        ----------
        hyperspace, device : whose stem and head, and where
        line : `network_line` of the two, where it is known already

        Raises
        ------
        PredictorError
            The predictor lacks a kernel of stem or head.
        """
        resolutions = hyperspace.distill_resolutions
        chains = [_other_blocks(hyperspace, resolution) for resolution in resolutions]
        slope, constant_ms = line or network_line(hyperspace, device)
        latencies = slope * device.chain_ms(chains) + constant_ms
        return cls(
            {str(r): float(ms) for r, ms in zip(resolutions, latencies, strict=True)},
            f"latency predictor {device.name} ({device.fingerprint})",
        )

    @classmethod
    def given(cls, hyperspace: Hyperspace, ms: Mapping[int, float]) -> OtherStages:
        """By the user.

        Raises
        ------
        LUTError
            A distill resolution is missing or unknown, or a latency is not finite and at least 0.
        """
        expected = list(hyperspace.distill_resolutions)
        if sorted(ms) != expected:
            raise LUTError(
                f"latency of stem and head: given for resolutions {sorted(ms)}; "
                f"{hyperspace.name} needs {expected}"
            )
        for resolution, value in ms.items():
            if not 0 <= value < math.inf:
                raise LUTError(
                    f"latency of stem and head at resolution {resolution}: {value} ms; "
                    "expected a finite value >= 0"
                )
        return cls({str(r): float(ms[r]) for r in expected}, "given by the user")


def _other_blocks(hyperspace: Hyperspace, resolution: int) -> list[PlacedBlock]:
    """Blocks of stem and head in the smallest subnet of the first space."""
    zeros = (0,) * len(hyperspace.searchable)
    space = SpaceCode(hyperspace.name, zeros, zeros)
    searched = {s.name for s in hyperspace.searchable}
    stages = hyperspace.subnet_blocks(space, hyperspace.smallest_subnet(space))
    owners = [name for name, blocks in stages for _ in blocks]
    placed = place((block for _, blocks in stages for block in blocks), resolution)
    return [block for name, block in zip(owners, placed, strict=True) if name not in searched]


@dataclass(frozen=True)
class RowBlocks:
    """The blocks of n rows; rows share most of them, so each is made once.

    Attributes
    ----------
    distinct : the m different blocks
    depth : blocks of each row, shape (n,)
    places : where in `distinct` each block is, row after row, shape (depth.sum(),)
    """

    distinct: list[PlacedBlock]
    depth: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, hyperspace: Hyperspace, columns: Mapping[str, np.ndarray]) -> RowBlocks:
        """The blocks of a LUT's columns; `mflops`, `mparams` and `latency_ms` are not read."""
        c = columns
        stages = hyperspace.searchable
        used = np.arange(c["widths"].shape[1]) < c["depth"][:, None]
        strides = np.ones(used.shape, np.int64)
        strides[:, 0] = np.array([s.stride for s in stages])[c["stage"]]
        resolutions, number = np.unique(c["resolution"], return_inverse=True)
        sizes = [[hyperspace.input_hw(s, int(r)) for r in resolutions] for s in stages]
        first_hw = np.array(sizes, np.int64).reshape(len(stages), -1)[c["stage"], number]
        hw = np.tile(-(-first_hw // strides[:, 0])[:, None], used.shape[1])
        hw[:, 0] = first_hw
        cin = np.column_stack([c["cin"], c["widths"][:, :-1]])
        option = np.broadcast_to(c["block"][:, None], used.shape)
        parts = (option, strides, hw, cin, c["kernel_sizes"], c["widths"], c["expands"])
        numbers: dict[tuple[Any, ...], int] = {}
        places = [
            numbers.setdefault(key, len(numbers))
            for key in zip(*(part[used].tolist() for part in parts), strict=True)
        ]
        distinct = [
            PlacedBlock(
                hyperspace.block_types[option].config(cin, BlockChoice(k, width, expand), stride),
                hw,
            )
            for option, stride, hw, cin, k, width, expand in numbers
        ]
        return cls(distinct, c["depth"].astype(np.int64), np.array(places, np.int64))

    def chains(self) -> list[list[PlacedBlock]]:
        """The blocks of each row, in order."""
        flat = (self.distinct[i] for i in self.places.tolist())
        return [list(islice(flat, depth)) for depth in self.depth.tolist()]

    def sums(self, of_blocks: ArrayLike) -> np.ndarray:
        """Sums over the blocks of each row, shape (n,), of values of shape (m,)."""
        owner = np.repeat(np.arange(len(self.depth)), self.depth)
        values = np.asarray(of_blocks, np.float64)[self.places]
        return np.bincount(owner, values, len(self.depth))
