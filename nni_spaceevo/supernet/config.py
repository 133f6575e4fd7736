"""How a supernet is trained, readable without torch; defaults as published."""

from __future__ import annotations

from typing import Any, Literal

from ..errors import ConfigError
from ..files import Record, plain

# Settings that came later: as they are here they change nothing, so that supernets from before
# there were any are still of the same settings.
_LATER = {"label_share": 0.0}


class PhaseConfig(Record, frozen=True):
    """One phase of training: SGD with Nesterov momentum, cosine schedule after a linear warm-up.

    Attributes
    ----------
    epochs : of the phase; 0 leaves it out
    learning_rate : peak rate for 256 images a step; it grows with the batch size
    warmup_epochs : epochs until the peak
    """

    epochs: int
    learning_rate: float
    warmup_epochs: float = 0

    def __post_init__(self) -> None:
        if self.epochs < 0 or not self.learning_rate > 0:
            raise ConfigError(
                "supernet: epochs must be at least 0 and learning_rate above 0, "
                f"given {self.epochs} and {self.learning_rate}"
            )
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ConfigError(
                f"supernet: warmup_epochs must be 0 to {self.epochs}, the epochs of the phase, "
                f"given {self.warmup_epochs}"
            )


class SupernetConfig(Record, frozen=True):
    """Training of a quantized-for-all supernet (SpaceEvo, section 4.4), FP32 and then LSQ+.

    Attributes
    ----------
    fp32, int8 : the two phases
    batch_size : images a step
    random_subnets : subnets a step besides the largest and the smallest
    distillation : what the others learn from the largest: `alpha`, the adaptive alpha-divergence of
        AlphaNet, or `kl`, the Kullback-Leibler divergence
    alphas : the two alphas of the adaptive divergence, below 0 and above 0
    ratio_limit : largest weight that the divergence gives a class, beta in AlphaNet
    label_share : how much of what the others learn is from the labels too; as published, nothing
    label_smoothing : of the labels that a subnet learns from
    dropout : before the last layer, on the largest alone
    range_learning_rate : peak rate of the quantizers' ranges (Adam), in the second phase
    weight_decay : of convolutions and the last layer; not of BatchNorm, biases and quantizers
    momentum : of SGD
    gradient_limit : largest absolute value of a gradient's element
    recalibration_batches : batches of training images that BatchNorm's statistics are taken from
        before each evaluation; all of them, where there are fewer
    evaluate_every : epochs between evaluations; the last epoch of a phase is always evaluated
    evaluated_subnets : random subnets, always the same, that are evaluated besides the largest and
        the smallest
    device : `auto` is a GPU (CUDA) if there is one
    mixed_precision : convolutions in bfloat16 while training, which GPUs compute faster
    seed : of everything random
    """

    fp32: PhaseConfig = PhaseConfig(epochs=360, learning_rate=0.1, warmup_epochs=5)
    int8: PhaseConfig = PhaseConfig(epochs=50, learning_rate=0.01, warmup_epochs=3)
    batch_size: int = 64
    random_subnets: int = 2
    distillation: Literal["alpha", "kl"] = "alpha"
    alphas: tuple[float, float] = (-1.0, 1.0)
    ratio_limit: float = 5.0
    label_share: float = 0.0
    label_smoothing: float = 0.1
    dropout: float = 0.2
    range_learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    momentum: float = 0.9
    gradient_limit: float = 1.0
    recalibration_batches: int = 20
    evaluate_every: int = 5
    evaluated_subnets: int = 3
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mixed_precision: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.alphas[0] < 0 < self.alphas[1]:
            raise ConfigError(
                f"supernet: alphas must be one below 0 and one above 0, given {list(self.alphas)}"
            )
        for key, least in (
            ("batch_size", 2),
            ("random_subnets", 0),
            ("recalibration_batches", 1),
            ("evaluate_every", 1),
            ("evaluated_subnets", 1),
            ("weight_decay", 0),
            ("seed", 0),
        ):
            if not getattr(self, key) >= least:
                raise ConfigError(
                    f"supernet: {key} must be at least {least}, given {getattr(self, key)}"
                )
        for key in ("label_smoothing", "dropout", "momentum"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(
                    f"supernet: {key} must be from 0 to below 1, given {getattr(self, key)}"
                )
        for key, above in (("ratio_limit", 1), ("gradient_limit", 0), ("range_learning_rate", 0)):
            if not getattr(self, key) > above:
                raise ConfigError(
                    f"supernet: {key} must be above {above}, given {getattr(self, key)}"
                )
        if not 0 <= self.label_share <= 1:
            raise ConfigError(
                f"supernet: label_share must be from 0 to 1, given {self.label_share}"
            )
        if not self.epochs:
            raise ConfigError("supernet: no epochs in either phase")

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings that results depend on, as plain data; not where they come from."""
        made = (item for item in plain(self).items() if item not in _LATER.items())
        return {key: value for key, value in made if key != "device"}

    @property
    def epochs(self) -> int:
        """Epochs of both phases."""
        return self.fp32.epochs + self.int8.epochs

    def phase(self, epoch: int) -> tuple[PhaseConfig, int]:
        """The phase that an epoch, counted from 0, belongs to, and its number within it."""
        if epoch < self.fp32.epochs:
            return self.fp32, epoch
        return self.int8, epoch - self.fp32.epochs

    def is_quantized(self, epoch: int) -> bool:
        """Whether an epoch is of the LSQ+ phase."""
        return epoch >= self.fp32.epochs

    def is_evaluated(self, epoch: int) -> bool:
        """Whether an evaluation follows an epoch."""
        phase, number = self.phase(epoch)
        return (number + 1) % self.evaluate_every == 0 or number + 1 == phase.epochs
