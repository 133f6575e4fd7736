"""Settings of LUT building, readable without torch."""

from __future__ import annotations

from ..errors import ConfigError
from ..files import Record

# Images whose features are in memory at a time, and the unit in which the paper counts.
BATCH_SIZE = 64


class LUTConfig(Record, frozen=True):
    """How the LUT is sampled and measured; defaults as published.

    Attributes
    ----------
    rows_per_cell : sub-stages per (stage, block type, width window), spread over the resolutions
    calibration_images : training images on which BatchNorm is recalibrated for each sub-stage
    held_out_images : images on which the loss is measured, at most as many as are held out; the
        paper took 10 batches of 64
    """

    rows_per_cell: int = 1000
    calibration_images: int = 256
    held_out_images: int = 10 * BATCH_SIZE

    def __post_init__(self) -> None:
        for key, least in {
            "rows_per_cell": 1,
            "calibration_images": 2,
            "held_out_images": 1,
        }.items():
            if getattr(self, key) < least:
                raise ConfigError(
                    f"lut: {key} must be at least {least}, given {getattr(self, key)}"
                )
