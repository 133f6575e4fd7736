"""Aging evolution over search spaces (SpaceEvo, section 4.2; Real et al., AAAI 2019).

The loop is the caller's: `ask` for a space, score it anywhere, `tell` its score.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..files import Record
from ..hyperspace import Hyperspace, SpaceCode

_TRIES = 100


class EvolutionConfig(Record, frozen=True):
    """Numbers of a search; defaults as published.

    Attributes
    ----------
    population_size : living spaces; the first are the uniform spaces, then random ones
    sample_size : spaces drawn from the population, of which the best becomes a parent
    evolve : spaces after which a local search takes over from evolution; None for evolution alone,
        as published
    seed : of every choice
    """

    population_size: int = 500
    sample_size: int = 125
    evolve: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.population_size < 2:
            raise ConfigError(f"population_size must be at least 2, given {self.population_size}")
        if not 1 <= self.sample_size <= self.population_size:
            raise ConfigError(
                f"sample_size must be 1 to population_size ({self.population_size}), "
                f"given {self.sample_size}"
            )
        if self.evolve is not None and self.evolve < 0:
            raise ConfigError(f"evolve must not be negative, given {self.evolve}")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, given {self.seed}")


class AgingEvolution:
    """Ask-and-tell aging evolution; no space is asked for twice while others are left.

    Unlike the authors' release, the random initial population stays random and duplicates are not
    evaluated again.

    Parameters
    ----------
    hyperspace : what to search
    config : population, sample, seed
    """

    def __init__(self, hyperspace: Hyperspace, config: EvolutionConfig) -> None:
        self.hyperspace = hyperspace
        self.config = config
        self.scores: dict[SpaceCode, float] = {}
        self._rng = np.random.default_rng(config.seed)
        self._asked: set[SpaceCode] = set()
        self._population: deque[SpaceCode] = deque(maxlen=config.population_size)
        self._queue: deque[SpaceCode] = deque(self._uniform())

    def _uniform(self) -> list[SpaceCode]:
        unique = list(dict.fromkeys(self.hyperspace.uniform_spaces()))
        self._rng.shuffle(unique)
        # Half of a small population stays random: evolution must not start from uniform alone.
        return unique[: max(1, self.config.population_size // 2)]

    @property
    def best(self) -> tuple[SpaceCode, float]:
        """The best space so far and its score; the smaller code wins a tie."""
        if not self.scores:
            raise ValueError("no space has been scored yet")
        return min(self.scores.items(), key=lambda item: (-item[1], item[0]))

    def ask(self) -> SpaceCode:
        """The next space to score."""
        if not self._queue:
            initial = len(self._asked) < self.config.population_size or not self._population
            self._queue.extend([self._random()] if initial else self._children())
        code = self._queue.popleft()
        self._asked.add(code)
        return code

    def _random(self) -> SpaceCode:
        return self._fresh(lambda: self.hyperspace.random_space(self._rng))

    def _children(self) -> list[SpaceCode]:
        """Two children of one parent: another block type somewhere, another width window."""
        size = min(self.config.sample_size, len(self._population))
        drawn = self._rng.choice(len(self._population), size, replace=False)
        parent = max((self._population[int(i)] for i in drawn), key=lambda c: (self.scores[c], c))
        mutations = (self.hyperspace.mutate_block, self.hyperspace.mutate_window)
        return list(dict.fromkeys(self._descend(parent, m) for m in mutations))

    def _descend(self, code: SpaceCode, mutate: Any) -> SpaceCode:
        """Mutate until the child is new, walking on from known children."""

        def step() -> SpaceCode:
            nonlocal code
            code = mutate(code, self._rng)
            return code

        return self._fresh(step)

    def _fresh(self, draw: Any) -> SpaceCode:
        for _ in range(_TRIES):
            code = draw()
            if code not in self._asked and code not in self._queue:
                return code
        if len(self._asked) < self.hyperspace.num_spaces:
            return self._random_unseen()
        return code

    def _random_unseen(self) -> SpaceCode:
        while True:
            code = self.hyperspace.random_space(self._rng)
            if code not in self._asked:
                return code

    def tell(self, code: SpaceCode, score: float) -> None:
        """Record a score; a space that is told twice keeps its first score and its age."""
        if code in self.scores:
            return
        self._asked.add(code)
        self.scores[code] = float(score)
        self._population.append(code)

    @property
    def pending(self) -> list[SpaceCode]:
        """Spaces asked for and not yet told."""
        return sorted(self._asked - self.scores.keys())

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which `load_state_dict` continues to the same result."""
        return {
            "rng": self._rng.bit_generator.state,
            "scores": [[str(c), s] for c, s in self.scores.items()],
            "asked": sorted(map(str, self._asked)),
            "population": [str(c) for c in self._population],
            "queue": [str(c) for c in self._queue],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; raises `CodeError` where it belongs to another hyperspace."""
        space = self.hyperspace.space
        self._rng.bit_generator.state = state["rng"]
        self.scores = {space(c): float(s) for c, s in state["scores"]}
        self._asked = {space(c) for c in state["asked"]}
        self._population = deque(map(space, state["population"]), self.config.population_size)
        self._queue = deque(map(space, state["queue"]))
