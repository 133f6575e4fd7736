"""Predictors that price kernels by a formula, so that what follows from prices is known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nni_spaceevo.latency import Calibration, LatencyPredictor, Lowering, Machine, Provenance
from nni_spaceevo.latency.features import FloatArray
from nni_spaceevo.latency.lowering import BLOCK, RuntimeKernel
from nni_spaceevo.latency.predictor import FittedKernel
from nni_spaceevo.latency.regressor import Regressor, Trees
from nni_spaceevo.latency.report import error_statistics, network_statistics
from nni_spaceevo.latency.views import view_of

from .conftest import LOWERING, MACHINE

CALIBRATION = Calibration(scale=1.1, node_us=0.5, weight_us_per_mb=10.0, constant_us=20.0)
FLOAT_LOWERING = Lowering(
    operators={
        **dict.fromkeys(("conv1x1", "conv", "dwconv"), ("Conv:float32",)),
        "conv1x1+hswish": ("Conv:float32",),
        "dwconv+hswish": ("Conv:float32",),
        "add": (),
        "se": ("Conv:float32",),
        "pool": ("GlobalAveragePool:float32",),
        "linear": ("Gemm:float32",),
        "swish": ("QuickGelu:float32",),
    },
    own_kernel=dict.fromkeys(("conv1x1", "conv", "dwconv", "add"), ("swish",)),
    free=dict.fromkeys(("conv1x1", "conv", "dwconv", "add"), ("relu", "relu6")),
)
SIZES, WIDTHS = (7, 14, 28), (16, 24, 32, 40, 64, 72, 96, 128, 184, 192)
FACTORS = {"conv1x1": 3.0, "dwconv": 0.5}


def int8_us(kernel: RuntimeKernel) -> float:
    """A depthwise convolution's work costs twice where channels leave a rest of 16."""
    return _us(kernel, 2 if kernel.type == "dwconv" and kernel.cout % 16 else 1)


def float_us(kernel: RuntimeKernel) -> float:
    """No steps; 1x1 convolutions take thrice as long as in INT8, depthwise ones half."""
    return FACTORS.get(kernel.type, 1.0) * _us(kernel, 1)


def _us(kernel: RuntimeKernel, step: int) -> float:
    return 1 + step * kernel.hw_out**2 * kernel.cout * kernel.kernel_size**2 / 1e3


class FormulaPredictor(LatencyPredictor):
    """Prices kernels by a function, and is as exact as its report says."""

    def kernels_us(self, kernels: Sequence[RuntimeKernel]) -> FloatArray:
        """Microseconds by the formula of the predictor's precision."""
        us = int8_us if self.provenance.precision == "int8" else float_us
        return np.array([us(kernel) for kernel in kernels], float)


def _unfitted(kind: str) -> Regressor:
    return Regressor(kind, np.zeros(len(view_of(kind).base_names)), Trees.none())


def formula_predictor(
    precision: str = "int8",
    lowering: Lowering | None = None,
    machine: Machine = MACHINE,
    widths: Sequence[int] = WIDTHS,
    **provenance: Any,
) -> FormulaPredictor:
    """A predictor with measurements at `SIZES` and `widths` for every unit of its lowering."""
    if lowering is None:
        lowering = LOWERING if precision == "int8" else FLOAT_LOWERING
    measured = [k for unit in lowering.operators for k in _kernels(unit, widths)]
    fitted_to = measured
    if lowering.whole_blocks:
        fitted_to = [RuntimeKernel(f"{BLOCK}{kind}", 14, 16, 16) for kind in ("mbv2_res", "conv")]
    kinds = {k.type: [f for f in fitted_to if f.type == k.type] for k in fitted_to}
    fitted = {kind: FittedKernel.of(_unfitted(kind), mine) for kind, mine in kinds.items()}
    where = Provenance(
        f"toy_{precision}",
        "ort-x86-int8" if precision == "int8" else "ort-x86-fp32",
        precision,
        machine,
        {"toy": "1"},
        **provenance,
    )
    us = int8_us if precision == "int8" else float_us
    report = exact_report({k.key: us(k) for k in measured}, tuple(kinds))
    return FormulaPredictor(where, lowering, CALIBRATION, fitted, report, Path("toy"))


def _kernels(unit: str, widths: Sequence[int]) -> list[RuntimeKernel]:
    kind, _, activation = unit.partition("+")
    windows = {"dwconv": (3, 5), "conv": (3,)}.get(kind, (1,))
    return [
        RuntimeKernel(
            kind,
            hw,
            width,
            width,
            window,
            squeezed=width // 4 if kind == "se" else 0,
            activation=activation or "none",
        )
        for hw in SIZES
        for width in widths
        for window in windows
    ]


def exact_report(measured_us: dict[str, float], kinds: Sequence[str]) -> dict[str, Any]:
    """The report of a predictor that is right about everything but one network in ten."""
    ms = np.geomspace(1.0, 20.0, 40)
    predicted = ms * np.where(np.arange(40) % 10, 1.0, 1.04)
    row = error_statistics(np.ones(20), np.ones(20))
    return {
        "kernels": dict.fromkeys(kinds, row),
        "networks": network_statistics(predicted, ms),
        "noise": {"slots": 100, "slow_slots": 5.0},
        "kernels_measured": len(measured_us),
        "seconds": 60.0,
        "options": {"seed": 0, "rounds": 5},
        "predicted_and_measured_ms": {
            "networks": np.stack([predicted, ms], axis=1).tolist(),
            "calibration_networks": [[2.0, 2.1], [4.0, 4.0]],
        },
        "measured_us": measured_us,
    }
