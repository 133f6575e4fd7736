"""Settings of LUT building, readable without torch."""

from __future__ import annotations

from ..errors import ConfigError
from ..files import Record


class LUTConfig(Record, frozen=True):
    """How the LUT is sampled.

    Attributes
    ----------
    rows_per_cell : sub-stages per (stage, block type, width window), spread over the resolutions
    calibration_images : training images on which BatchNorm is recalibrated for each sub-stage
    """

    rows_per_cell: int = 1000
    calibration_images: int = 256

    def __post_init__(self) -> None:
        if self.rows_per_cell < 1 or self.calibration_images < 2:
            raise ConfigError(
                "lut: rows_per_cell must be at least 1 and calibration_images at least 2, "
                f"given {self.rows_per_cell} and {self.calibration_images}"
            )
