"""The quantized LUT: the table and its file. Building it (`.build`) needs torch."""

from .table import LatencyModel, LUTHeader, QuantizedLUT, Row

__all__ = ["LUTHeader", "LatencyModel", "QuantizedLUT", "Row"]
