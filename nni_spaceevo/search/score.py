"""What a space is scored by: the Q-T score of SpaceEvo, section 4.2, equations 2 and 3.

For a latency constraint T the score rewards a space whose best subnets within T lose little
against the teacher, and of which at least a share t lies within T:

    score = 1 / (max(1, (t / p) ** a) * top_loss)

p is the share of subnets with latency <= T, top_loss the mean loss of the best of them. For several
constraints the scores are added. `sampled` estimates the two as published, `exact` computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import ConfigError
from ..files import Record
from ..hyperspace import SpaceCode

# Subnets that share a drawn resolution, as in the published code.
BATCH = 500
# As in the published code: p never becomes zero.
_SHARE_EPSILON = 1e-5


class QTConfig(Record, frozen=True):
    """How a space is scored.

    Attributes
    ----------
    constraints_ms : latency constraints T in milliseconds
    estimator : "exact" looks at all subnets of a space, "sampled" draws some, as published
    samples : subnets drawn per space
    top : how many of the best subnets within T are averaged; "exact" averages the best share
        `top / samples` of all subnets instead
    t, a : share of subnets that should lie within T, and how strongly less is punished
    seed : of the sampling; a space's score depends on seed and code alone
    """

    constraints_ms: tuple[float, ...]
    estimator: Literal["exact", "sampled"] = "exact"
    samples: int = 100_000
    top: int = 50
    t: float = 0.08
    a: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.constraints_ms or not all(0 < T < np.inf for T in self.constraints_ms):
            raise ConfigError(
                f"constraints_ms must be at least one latency above 0 ms, given "
                f"{list(self.constraints_ms)}"
            )
        if len(set(self.constraints_ms)) < len(self.constraints_ms):
            raise ConfigError(f"constraints_ms must differ, given {self.constraints_ms}")
        if self.estimator not in ("exact", "sampled"):
            raise ConfigError(f"estimator must be exact or sampled, given {self.estimator!r}")
        if self.samples < BATCH or not 1 <= self.top <= self.samples:
            raise ConfigError(
                f"samples must be at least {BATCH} and top within 1 to samples, "
                f"given samples={self.samples}, top={self.top}"
            )
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, given {self.seed}")
        if not 0 < self.t <= 1 or not 0 <= self.a < np.inf:
            raise ConfigError(f"t must be in (0, 1] and a at least 0, given t={self.t}, a={self.a}")


@dataclass(frozen=True)
class SpaceScore:
    """A scored space.

    Attributes
    ----------
    code : the space
    scores : Q-T score of each constraint
    shares : share of subnets within each constraint
    top_losses : mean loss of the best subnets within each constraint; inf where there is none
    min_ms, max_ms : latency of the fastest and slowest subnet in milliseconds
    """

    code: SpaceCode
    scores: tuple[float, ...]
    shares: tuple[float, ...]
    top_losses: tuple[float, ...]
    min_ms: float
    max_ms: float

    @property
    def score(self) -> float:
        """Q-T score, summed over the constraints."""
        return float(sum(self.scores))


def penalized(share: float, top_loss: float, config: QTConfig) -> float:
    """Score of a space with a share of subnets within a constraint whose best lose `top_loss`."""
    penalty = max(1.0, (config.t / (share + _SHARE_EPSILON)) ** config.a)
    return 1 / (penalty * top_loss)
