"""The best subnets of a space: those that no other subnet beats in both loss and latency.

The stages of a subnet are chosen independently and their losses and latencies added, so a subnet
that no other beats is made of rows that no other row of their stage beats. Adding stage after stage
and dropping what is beaten finds them all, without looking at the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..hyperspace import SpaceCode
from ..lut import QuantizedLUT

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class BestSubnet:
    """The subnet that loses least within a constraint, by the rows of a LUT.

    Attributes
    ----------
    constraint_ms : the constraint
    resolution : image size in pixels
    latency_ms, loss : of the whole subnet
    other_ms : of stem and head
    stage_ms, stage_losses : of the searchable stages
    """

    constraint_ms: float
    resolution: int
    latency_ms: float
    loss: float
    other_ms: float
    stage_ms: tuple[float, ...]
    stage_losses: tuple[float, ...]


def unbeaten(latency_ms: FloatArray, loss: FloatArray) -> IntArray:
    """Indices of the points that no other beats in both, by latency; of equal points one."""
    order = np.lexsort((loss, latency_ms))
    least = np.minimum.accumulate(loss[order])
    return order[np.concatenate([[True], least[1:] < least[:-1]])]


class SpaceFront:
    """The subnets of a space that no other beats.

    Parameters
    ----------
    lut : losses and latencies
    code : the space

    Attributes
    ----------
    latency_ms, loss : arrays of shape (n,), ascending and descending
    """

    def __init__(self, lut: QuantizedLUT, code: SpaceCode) -> None:
        self._fronts = [_front(lut, code, r) for r in lut.hyperspace.distill_resolutions]
        latency = np.concatenate([f.latency_ms for f in self._fronts])
        loss = np.concatenate([f.loss for f in self._fronts])
        starts = np.cumsum([0, *(len(f.loss) for f in self._fronts)])
        kept = unbeaten(latency, loss)
        self.latency_ms, self.loss = latency[kept], loss[kept]
        self._owner = np.searchsorted(starts, kept, side="right") - 1
        self._place = kept - starts[self._owner]

    def best(self, constraint_ms: float) -> BestSubnet | None:
        """The subnet that loses least within a constraint; None where none is within it."""
        i = int(np.searchsorted(self.latency_ms, constraint_ms, side="right")) - 1
        if i < 0:
            return None
        front = self._fronts[self._owner[i]]
        stages = front.stages(int(self._place[i]))
        return BestSubnet(
            constraint_ms=constraint_ms,
            resolution=front.resolution,
            latency_ms=float(self.latency_ms[i]),
            loss=float(self.loss[i]),
            other_ms=front.other_ms,
            stage_ms=tuple(ms for ms, _ in stages),
            stage_losses=tuple(loss for _, loss in stages),
        )


@dataclass(frozen=True)
class _Front:
    """Unbeaten subnets of one resolution; `steps` has what each stage added to which part."""

    resolution: int
    other_ms: float
    latency_ms: FloatArray
    loss: FloatArray
    steps: list[tuple[FloatArray, FloatArray, IntArray]]

    def stages(self, i: int) -> list[tuple[float, float]]:
        """Latency and loss of each stage of subnet `i`."""
        found = []
        for latency, loss, before in reversed(self.steps):
            found.append((float(latency[i]), float(loss[i])))
            i = int(before[i])
        return found[::-1]


def _front(lut: QuantizedLUT, code: SpaceCode, resolution: int) -> _Front:
    other_ms = lut.other_ms(resolution)
    latency, loss = np.full(1, other_ms), np.zeros(1)
    steps = []
    for cell in zip(range(len(code.blocks)), code.blocks, code.windows, strict=True):
        rows_loss, rows_ms = (v.astype(np.float64) for v in lut.cell(*cell, resolution))
        rows = unbeaten(rows_ms, rows_loss)
        rows_loss, rows_ms = rows_loss[rows], rows_ms[rows]
        sums_ms = np.add.outer(latency, rows_ms).ravel()
        sums_loss = np.add.outer(loss, rows_loss).ravel()
        kept = unbeaten(sums_ms, sums_loss)
        before, row = np.divmod(kept, len(rows))
        steps.append((rows_ms[row], rows_loss[row], before))
        latency, loss = sums_ms[kept], sums_loss[kept]
    return _Front(resolution, other_ms, latency, loss, steps)
