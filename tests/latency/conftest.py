"""A predictor fitted to made-up latencies, so that few tests need to measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nni_spaceevo.hyperspace import Hyperspace
from nni_spaceevo.latency import Calibration, LatencyPredictor, Machine
from nni_spaceevo.latency.fit import fit_regressor
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.latency.report import error_statistics
from nni_spaceevo.latency.sampling import sample_kernels

MACHINE = Machine(
    cpu="made up",
    cores=2,
    flags=("avx2",),
    vnni=False,
    governor=None,
    runtime="none",
    threads=1,
    kernel_options={},
    network_options={},
    protocol="invented",
)
NONE_HELD_OUT = error_statistics(np.zeros(0), np.zeros(0))


def invented_us(kernels: list[RuntimeKernel]) -> np.ndarray:
    """A smooth cost of every kernel, with a step where channels do not fill vectors."""
    return np.array(
        [1 + k.hw**2 * k.cout * k.kernel_size**2 / 1e4 + (k.cout % 16 != 0) for k in kernels]
    )


def fit_invented(hyperspace: Hyperspace, folder: Path) -> LatencyPredictor:
    """A predictor of `invented_us` for all kernels of a hyperspace."""
    kernels = sample_kernels(hyperspace, np.random.default_rng(0), 40)
    regressors = {}
    for kind in sorted({k.type for k in kernels}):
        mine = [k for k in kernels if k.type == kind]
        regressors[kind] = fit_regressor(kind, mine, invented_us(mine), seed=0)
    report = {
        "kernels": dict.fromkeys(regressors, NONE_HELD_OUT),
        "networks": NONE_HELD_OUT,
        "noise": {"slots": 0, "slow_slots": 0.0},
        "kernels_measured": len(kernels),
        "seconds": 0.0,
    }
    calibration = Calibration(scale=1.1, node_us=0.5, weight_us_per_mb=10.0, constant_us=20.0)
    covered = {hyperspace.name: hyperspace.fingerprint}
    return LatencyPredictor(folder.name, folder, MACHINE, covered, calibration, regressors, report)


@pytest.fixture(scope="session")
def invented(digits: Hyperspace, tmp_path_factory: pytest.TempPathFactory) -> LatencyPredictor:
    """A predictor with known calibration, saved in its `folder`. Do not write there."""
    folder = tmp_path_factory.mktemp("predictors") / "invented"
    predictor = fit_invented(digits, folder)
    predictor.save(folder)
    return predictor
