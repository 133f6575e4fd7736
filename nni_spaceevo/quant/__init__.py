"""LSQ+ quantizers with integer zero points, and precision as a value."""

from .lsq import ActivationQuantizer, Quantizer, WeightQuantizer, quantized_activation
from .precision import FP32, INT8, Precision, set_precision, uninitialized, until_initialized

__all__ = [
    "FP32",
    "INT8",
    "ActivationQuantizer",
    "Precision",
    "Quantizer",
    "WeightQuantizer",
    "quantized_activation",
    "set_precision",
    "uninitialized",
    "until_initialized",
]
