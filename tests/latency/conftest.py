"""A predictor fitted to made-up latencies, so that few tests need to measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nni_spaceevo.hyperspace import Hyperspace
from nni_spaceevo.latency import Calibration, LatencyPredictor, Lowering, Machine, Provenance
from nni_spaceevo.latency.fit import fit_regressor
from nni_spaceevo.latency.lowering import ACTIVATED, RuntimeKernel
from nni_spaceevo.latency.predictor import FittedKernel
from nni_spaceevo.latency.report import error_statistics
from nni_spaceevo.latency.sampling import kernel_pool, sample_kernels

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
# As ONNX Runtime runs INT8 on x86.
LOWERING = Lowering(
    operators={
        "conv1x1": ("QLinearConv:int8",),
        "conv": ("QLinearConv:int8",),
        "dwconv": ("QLinearConv:int8",),
        "add": ("QLinearAdd:int8",),
        "pool": ("QLinearGlobalAveragePool:int8",),
        "linear": ("QGemm:int8",),
        "se": ("QLinearGlobalAveragePool:int8", "HardSigmoid:float32", "QLinearMul:int8"),
        "swish": ("QLinearSigmoid:int8", "QLinearMul:int8"),
        "hswish": ("DequantizeLinear:convert", "HardSwish:float32", "QuantizeLinear:convert"),
    },
    own_kernel=dict.fromkeys(ACTIVATED, ("swish", "hswish")),
    free=dict.fromkeys(ACTIVATED, ("relu", "relu6")),
)
NONE_HELD_OUT = error_statistics(np.zeros(0), np.zeros(0))


def invented_us(kernels: list[RuntimeKernel]) -> np.ndarray:
    """A smooth cost of every kernel, with a step where channels do not fill vectors."""
    return np.array(
        [1 + k.hw**2 * k.cout * k.kernel_size**2 / 1e4 + (k.cout % 16 != 0) for k in kernels]
    )


def fit_invented(hyperspace: Hyperspace, folder: Path) -> LatencyPredictor:
    """A predictor of `invented_us` for all kernels of a hyperspace."""
    rng = np.random.default_rng(0)
    kernels = sample_kernels(kernel_pool(hyperspace, LOWERING, rng), rng, 40)
    fitted = {}
    for kind in sorted({k.type for k in kernels}):
        mine = [k for k in kernels if k.type == kind]
        # With trees, though a profile measures more before it has some.
        us, boosted = invented_us(mine), len(mine) >= 24
        fitted[kind] = FittedKernel.of(fit_regressor(kind, mine, us, 0, boosted=boosted), mine)
    report = {
        "kernels": dict.fromkeys(fitted, NONE_HELD_OUT),
        "networks": NONE_HELD_OUT,
        "noise": {"slots": 0, "slow_slots": 0.0},
        "kernels_measured": len(kernels),
        "seconds": 0.0,
    }
    calibration = Calibration(scale=1.1, node_us=0.5, weight_us_per_mb=10.0, constant_us=20.0)
    covered = {hyperspace.name: hyperspace.fingerprint}
    provenance = Provenance(folder.name, "invented", "int8", MACHINE, covered)
    return LatencyPredictor(provenance, LOWERING, calibration, fitted, report, folder)


@pytest.fixture(scope="session")
def invented(digits: Hyperspace, tmp_path_factory: pytest.TempPathFactory) -> LatencyPredictor:
    """A predictor with known calibration, saved in its `folder`. Do not write there."""
    folder = tmp_path_factory.mktemp("predictors") / "invented"
    predictor = fit_invented(digits, folder)
    predictor.save(folder)
    return predictor
