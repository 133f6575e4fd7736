"""The quantized LUT: the table and its file. Building it (`.build`) needs torch."""

from .pricing import LatencyModel, OtherStages
from .table import LUTHeader, QuantizedLUT, Row

__all__ = ["LUTHeader", "LatencyModel", "OtherStages", "QuantizedLUT", "Row"]
