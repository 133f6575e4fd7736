"""Latency of INT8 networks on a device: reading predictors and predicting.

Profiling a device is in `nni_spaceevo.latency.profile`, apart because it needs ONNX Runtime and
scikit-learn.
"""

from .lowering import RuntimeKernel, lower, runtime_ops
from .machine import Machine, local_device_name
from .predictor import Calibration, LatencyPredictor, load_predictor
from .report import format_report

__all__ = [
    "Calibration",
    "LatencyPredictor",
    "Machine",
    "RuntimeKernel",
    "format_report",
    "load_predictor",
    "local_device_name",
    "lower",
    "runtime_ops",
]
