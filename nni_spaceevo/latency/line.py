"""Network latencies as a straight line over the sums of their blocks, for what can only add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..hyperspace import Hyperspace, PlacedBlock
from .features import FloatArray
from .sampling import random_networks

_NETWORKS = 60


class PricesNetworks(Protocol):
    """What prices blocks, and networks by the sums of their blocks."""

    def chain_ms(self, chains: Sequence[Sequence[PlacedBlock]]) -> FloatArray:
        """Sum over each list of blocks, milliseconds, shape (n,)."""
        ...

    def network_of_sum(self, sum_ms: FloatArray) -> FloatArray:
        """Latency of n whole networks from the sums of their blocks, milliseconds, shape (n,)."""
        ...


def network_line(hyperspace: Hyperspace, device: PricesNetworks) -> tuple[float, float]:
    """Slope, and constant in milliseconds, that make sums of blocks latencies of networks.

    A device keeps small networks in its caches, so latencies are not quite sums. The line is the
    one of least relative error for random networks of all sizes of the hyperspace; it is exact
    where a device adds nothing but a constant.
    """
    networks = random_networks(hyperspace, np.random.default_rng(0), _NETWORKS)
    sums = device.chain_ms([n.placed for n in networks])
    latencies = device.network_of_sum(sums)
    added = latencies - sums
    if np.allclose(added, added[0], rtol=0, atol=1e-9 * float(latencies.max())):
        return 1.0, float(device.network_of_sum(np.zeros(1))[0])
    terms = np.column_stack([sums, np.ones(len(sums))]) / latencies[:, None]
    slope, constant = np.linalg.lstsq(terms, np.ones(len(sums)), rcond=None)[0].tolist()
    return slope, constant
