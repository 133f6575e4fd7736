"""LSQ+ quantizers with integer zero points, and precision as a value."""

from .lsq import ActivationQuantizer, Quantizer, WeightQuantizer
from .precision import FP32, INT8, Precision, set_precision, uninitialized, until_initialized

__all__ = [
    "FP32",
    "INT8",
    "ActivationQuantizer",
    "Precision",
    "Quantizer",
    "WeightQuantizer",
    "set_precision",
    "uninitialized",
    "until_initialized",
]
