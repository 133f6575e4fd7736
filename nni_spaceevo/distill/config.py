"""Settings of teacher and distillation, readable without torch."""

from __future__ import annotations

from ..errors import ConfigError
from ..files import Record


class TeacherConfig(Record, frozen=True):
    """How the teacher is trained.

    Attributes
    ----------
    widths : channels after the stem and after each searchable stage
    epochs, learning_rate, batch_size : AdamW with a one-cycle schedule
    min_accuracy : least accuracy on the held-out images; below it the job stops
    """

    widths: tuple[int, ...]
    epochs: int
    learning_rate: float = 3e-3
    batch_size: int = 64
    min_accuracy: float = 0.97

    def __post_init__(self) -> None:
        _positive("teacher", epochs=self.epochs, learning_rate=self.learning_rate)
        _positive("teacher", batch_size=self.batch_size, widths=min(self.widths, default=0))


class DistillConfig(Record, frozen=True):
    """Block-wise distillation of every (stage, block type); defaults as published.

    Attributes
    ----------
    epochs_fp32, epochs_int8 : epochs in FP32, then with LSQ+
    learning_rate_fp32, learning_rate_int8 : peak rates of the two phases (Adam, cosine)
    batch_size : images per step
    random_substages : sub-stages per step besides the largest and the smallest
    """

    epochs_fp32: int = 5
    epochs_int8: int = 1
    learning_rate_fp32: float = 5e-3
    learning_rate_int8: float = 1.25e-3
    batch_size: int = 64
    random_substages: int = 2

    def __post_init__(self) -> None:
        _positive("distill", epochs_fp32=self.epochs_fp32, epochs_int8=self.epochs_int8)
        _positive("distill", learning_rate_fp32=self.learning_rate_fp32)
        _positive("distill", learning_rate_int8=self.learning_rate_int8)
        if self.batch_size < 2 or self.random_substages < 0:
            raise ConfigError(
                "distill: batch_size must be at least 2 and random_substages at least 0, "
                f"given {self.batch_size} and {self.random_substages}"
            )


def _positive(section: str, **values: float) -> None:
    for key, value in values.items():
        if not value > 0:
            raise ConfigError(f"{section}: {key} must be above 0, given {value}")
