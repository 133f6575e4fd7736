"""Evolution over the subnets of a space, within two latencies; numbers as published.

The better half of a population stays; mutations and crossovers of it replace the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np

from ..errors import ConfigError
from ..files import Record
from .priced import Genes, PricedSubnets, Values

# Attempts at children within the limits, each of as many as are wanted.
_ATTEMPTS = 20


class EvolutionNumbers(Record, frozen=True):
    """Numbers of an evolution over subnets; defaults as published.

    Attributes
    ----------
    population : subnets at first, of which half stay in every generation
    mutations, crossovers : children a generation
    generations : after the first population
    mutate, mutate_resolution : probability with which a mutation draws a choice anew
    window : share of a latency constraint T; subnets within (1 - window) T and T take part, or
        within as much of the slowest subnet's latency where T is above it
    """

    population: int = 512
    mutations: int = 128
    crossovers: int = 128
    generations: int = 20
    mutate: float = 0.3
    mutate_resolution: float = 0.5
    window: float = 0.2

    def __post_init__(self) -> None:
        least = {"population": 2, "mutations": 1, "crossovers": 0, "generations": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name} must be at least {value}, given {getattr(self, name)}")
        for name in ("mutate", "mutate_resolution", "window"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be above 0, up to 1, given {getattr(self, name)}")

    def limits(self, constraint_ms: float, slowest_ms: float) -> tuple[float, float]:
        """The two latencies that belong to a constraint."""
        return (1 - self.window) * min(constraint_ms, slowest_ms), constraint_ms


def evolution(
    subnets: PricedSubnets,
    limits: tuple[float, float],
    numbers: EvolutionNumbers,
    rng: np.random.Generator,
) -> Generator[Genes, Values, tuple[Genes, Values]]:
    """Evolve subnets within two latencies in milliseconds; no subnet is asked for twice.

    Yields
    ------
    rows of subnets (n, choices); the scores (n,) of the same are to be sent

    Returns
    -------
    the last population, rows and scores, the best first
    """
    population = subnets.within(*limits, numbers.population, rng)
    if not len(population):
        return population, np.zeros(0)
    scores = yield population
    seen = {row.tobytes() for row in population}
    for _ in range(numbers.generations):
        best = np.argsort(-scores, kind="stable")[: -(-len(scores) // 2)]
        parents, kept = population[best], scores[best]

        def mutants(n: int, parents: Genes = parents) -> Genes:
            chosen = parents[rng.integers(len(parents), size=n)]
            return subnets.mutated(chosen, numbers.mutate, numbers.mutate_resolution, rng)

        def crossings(n: int, parents: Genes = parents) -> Genes:
            chosen = rng.integers(len(parents), size=(2, n))
            return subnets.crossed(parents[chosen[0]], parents[chosen[1]], rng)

        wanted = ((mutants, numbers.mutations), (crossings, numbers.crossovers))
        children = [_new(subnets, limits, make, n, seen) for make, n in wanted]
        found = np.concatenate(children)
        if not len(found):
            population, scores = parents, kept
            continue
        population = np.concatenate([parents, found])
        scores = np.concatenate([kept, (yield found)])
    order = np.argsort(-scores, kind="stable")
    return population[order], scores[order]


def _new(
    subnets: PricedSubnets,
    limits: tuple[float, float],
    make: Callable[[int], Genes],
    most: int,
    seen: set[bytes],
) -> Genes:
    """Up to `most` children within the limits that were not seen before; they are from now on."""
    found: list[np.ndarray] = []
    for _ in range(_ATTEMPTS):
        if len(found) >= most:
            break
        fresh = {row.tobytes(): row for row in make(most)}
        rows = [row for key, row in fresh.items() if key not in seen]
        if not rows:
            continue
        ms = subnets.ms(np.array(rows))
        within = [r for r, t in zip(rows, ms, strict=True) if limits[0] <= t <= limits[1]]
        taken = within[: most - len(found)]
        seen.update(row.tobytes() for row in taken)
        found += taken
    return np.array(found, np.int64).reshape(len(found), subnets.num_choices)
