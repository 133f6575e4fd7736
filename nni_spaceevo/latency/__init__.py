"""Latency of INT8 networks on a device: reading predictors and predicting.

Profiling a device is in `nni_spaceevo.latency.profile`, apart because it needs ONNX Runtime and
scikit-learn.
"""

from .lowering import Lowering, RuntimeKernel
from .machine import Machine, local_device_name
from .predictor import (
    Calibration,
    LatencyPredictor,
    Provenance,
    find_predictor,
    load_predictor,
)
from .report import format_report

__all__ = [
    "Calibration",
    "LatencyPredictor",
    "Lowering",
    "Machine",
    "Provenance",
    "RuntimeKernel",
    "find_predictor",
    "format_report",
    "load_predictor",
    "local_device_name",
]
