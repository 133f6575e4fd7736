"""The public synthetic problems have the answers that they promise."""

import numpy as np
import pytest

from nni_spaceevo.hyperspace import BlockConfig, PlacedBlock
from nni_spaceevo.search import QTConfig, qt_score
from nni_spaceevo.testing import MACsLatency, synthetic_hyperspace, synthetic_lut


@pytest.mark.parametrize("code", ["synthetic-00-00", "synthetic-21-20", "synthetic-12-12"])
@pytest.mark.parametrize("T", [0.9, 1.6])
def test_the_best_space_of_a_synthetic_lut_is_the_one_asked_for(code, T):
    hyperspace = synthetic_hyperspace(stages=2)
    best = hyperspace.space(code)
    lut = synthetic_lut(hyperspace, best)
    config = QTConfig(constraints_ms=(T,), samples=2000)
    spaces = [
        hyperspace.space(f"synthetic-{a}{b}-{c}{d}")
        for a in range(3) for b in range(3) for c in range(3) for d in range(3)
    ]  # fmt: skip
    assert max(spaces, key=lambda s: qt_score(lut, s, config).score) == best


def test_a_synthetic_lut_repeats_with_its_seed():
    hyperspace = synthetic_hyperspace()
    best = hyperspace.space("synthetic-000-000")
    first, again, other = (synthetic_lut(hyperspace, best, seed=s) for s in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_macs_latency_counts_macs():
    block = PlacedBlock(BlockConfig("conv", 8, 8), 4)
    latencies = MACsLatency(macs_per_ms=1024).chain_ms([[block], [block, block], []])
    np.testing.assert_allclose(latencies, [1, 2, 0])
