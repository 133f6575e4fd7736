"""Finding the best subnets within latency constraints (SpaceEvo, section 4.4).

The published search evaluates every subnet of its evolution, for one constraint after the other.
By default the evolution asks a surrogate of the accuracy instead, for all constraints at once, and
only what promises most is evaluated, from which the surrogate learns.

The loop is the caller's: `ask` for subnets, evaluate them anywhere, `tell` their accuracies.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError, ConstraintError
from ..files import Record
from ..hyperspace import SubnetCode
from .priced import Genes, PricedSubnets, Values
from .subnet_evolution import EvolutionNumbers, evolution
from .surrogate import AccuracySurrogate

# Subnets that tell what a space's latencies are.
_LOOK = 512
# A latency that no network reaches.
_FAR_MS = 1e9


class SurrogateNumbers(Record, frozen=True):
    """How many subnets are evaluated if a surrogate proposes them.

    Attributes
    ----------
    first : random ones within the constraints, shared out among them
    rounds : fits of the surrogate
    candidates : proposed by each fit for each constraint
    """

    first: int = 48
    rounds: int = 6
    candidates: int = 8

    def __post_init__(self) -> None:
        if self.first < 2 or self.rounds < 1 or self.candidates < 1:
            raise ConfigError(
                "surrogate: first must be at least 2, rounds and candidates at least 1, given "
                f"{self.first}, {self.rounds} and {self.candidates}"
            )


class SubnetSearchConfig(Record, frozen=True):
    """How subnets are searched for.

    Attributes
    ----------
    evolution : of subnets, by evaluated accuracy or by the surrogate's
    surrogate : which subnets are evaluated; None evaluates all of the evolution, as published
    """

    evolution: EvolutionNumbers = EvolutionNumbers()
    surrogate: SurrogateNumbers | None = SurrogateNumbers()

    def most_evaluations(self, constraints: int) -> int:
        """Subnets that a search for so many constraints evaluates at most."""
        if (s := self.surrogate) is not None:
            return s.first + constraints * (1 + s.rounds * s.candidates)
        e = self.evolution
        return constraints * (e.population + e.generations * (e.mutations + e.crossovers))


@dataclass(frozen=True)
class EvaluatedSubnet:
    """A subnet, its predicted latency in milliseconds, and its accuracy."""

    code: SubnetCode
    ms: float
    accuracy: float


class SubnetSearch:
    """Ask-and-tell search; the same seed and accuracies give the same subnets, told in any order.

    So a search that was killed is continued by a new one that is told again what was known.

    Parameters
    ----------
    subnets : the space and its latencies
    constraints_ms : latency constraints T in milliseconds
    config : how to search
    seed : of everything random

    Raises
    ------
    ConfigError
        No constraint, or one that is no latency.
    ConstraintError
        A constraint below the space's fastest subnet, or so near to it that none is found.
    """

    def __init__(
        self,
        subnets: PricedSubnets,
        constraints_ms: Iterable[float],
        config: SubnetSearchConfig,
        seed: int,
    ) -> None:
        self.subnets, self.config = subnets, config
        fastest, slowest = latency_span(subnets, seed)
        self.constraints_ms = _checked(subnets, constraints_ms, fastest, slowest)
        self._limits = []
        for T in self.constraints_ms:
            low, high = config.evolution.limits(T, slowest)
            # A space with few subnets may have none in the window, but faster ones.
            if not len(subnets.within(low, high, 1, np.random.default_rng([seed, 2]))):
                low = fastest
            self._limits.append((low, high))
        self._accuracies: dict[SubnetCode, float] = {}
        self._rng = np.random.default_rng([seed, 1])
        self._search = self._by_surrogate() if config.surrogate else self._as_published()
        self.is_finished = False
        self._next(None)
        if not self._batch:
            raise ConstraintError(
                f"no subnet of {subnets.space} has been found within {self.constraints_ms} ms, "
                f"though there are some of {fastest:.4g} ms; try a somewhat larger constraint"
            )

    def ask(self) -> list[SubnetCode]:
        """The subnets to evaluate now; more follow once all of them are told. None at the end."""
        return [code for code in self._batch if code not in self._accuracies]

    def tell(self, code: SubnetCode, accuracy: float) -> None:
        """Record an accuracy, of a subnet that was asked for or of any other of the space.

        Those of others are used if they are asked for later.
        """
        self._accuracies.setdefault(code, accuracy)
        while not self.is_finished and not self.ask():
            self._next(np.array([self._accuracies[code] for code in self._batch]))

    @property
    def evaluated(self) -> tuple[EvaluatedSubnet, ...]:
        """All subnets that were told, in that order."""
        codes = list(self._accuracies)
        ms = self.subnets.ms(self.subnets.genes(codes)).tolist() if codes else []
        rows = zip(codes, ms, self._accuracies.values(), strict=True)
        return tuple(EvaluatedSubnet(*row) for row in rows)

    # ---- how the next subnets are chosen ------------------------------------------------------

    def _next(self, accuracies: Values | None) -> None:
        try:
            # A generator's first value is asked for with None.
            genes = self._search.send(accuracies)  # type: ignore[arg-type]
            self._batch = self.subnets.codes(genes)
        except StopIteration:
            self.is_finished, self._batch = True, []

    def _as_published(self) -> Generator[Genes, Values, None]:
        for limits in self._limits:
            yield from evolution(self.subnets, limits, self.config.evolution, self._rng)

    def _by_surrogate(self) -> Generator[Genes, Values, None]:
        numbers, e = self.config.surrogate, self.config.evolution
        assert numbers is not None
        share = -(-numbers.first // len(self._limits))
        drawn = [self.subnets.within(*limits, share, self._rng) for limits in self._limits]
        genes = np.unique(np.concatenate(drawn), axis=0)
        accuracies = yield genes
        for _ in range(numbers.rounds):
            surrogate = AccuracySurrogate(self.subnets, genes, accuracies)
            known = {row.tobytes() for row in genes}
            chosen: list[np.ndarray] = []
            for limits in self._limits:
                pool = _evolved(self.subnets, limits, e, surrogate, self._rng)
                fresh = pool[[row.tobytes() not in known for row in pool]]
                for row in _most_promising(surrogate, fresh, numbers.candidates, self._rng):
                    known.add(row.tobytes())
                    chosen.append(row)
            if not chosen:
                return  # All that is left within the constraints has been evaluated.
            proposed = np.array(chosen)
            found = yield proposed
            genes, accuracies = (
                np.concatenate([genes, proposed]),
                np.concatenate([accuracies, found]),
            )


def _evolved(
    subnets: PricedSubnets,
    limits: tuple[float, float],
    numbers: EvolutionNumbers,
    surrogate: AccuracySurrogate,
    rng: np.random.Generator,
) -> Genes:
    """The last population of an evolution in which the surrogate stands for evaluation."""
    search = evolution(subnets, limits, numbers, rng)
    scores: Any = None
    while True:
        try:
            scores = surrogate.mean(search.send(scores))
        except StopIteration as end:
            population: Genes = end.value[0]
            return population


def _most_promising(
    surrogate: AccuracySurrogate, rows: Genes, most: int, rng: np.random.Generator
) -> Genes:
    """The best rows by the surrogate, each by weights of its own (Thompson, 1933).

    So subnets that are good if a doubtful choice is good are tried as well.
    """
    chosen: list[int] = []
    for accuracies in surrogate.draws(rows, min(most, len(rows)), rng):
        accuracies[chosen] = -np.inf
        chosen.append(int(np.argmax(accuracies)))
    return rows[chosen]


# ---- what was found -----------------------------------------------------------------------------


def best_within(
    evaluated: Iterable[EvaluatedSubnet], constraint_ms: float
) -> EvaluatedSubnet | None:
    """The most accurate subnet within a constraint, the faster of two that are equally accurate."""
    within = [s for s in evaluated if s.ms <= constraint_ms]
    return min(within, key=lambda s: (-s.accuracy, s.ms, s.code), default=None)


def pareto_front(evaluated: Iterable[EvaluatedSubnet]) -> tuple[EvaluatedSubnet, ...]:
    """The subnets than which no other is as fast and more accurate, from the fastest on."""
    front: list[EvaluatedSubnet] = []
    for subnet in sorted(evaluated, key=lambda s: (s.ms, -s.accuracy, s.code)):
        if not front or subnet.accuracy > front[-1].accuracy:
            front.append(subnet)
    return tuple(front)


# ---- constraints --------------------------------------------------------------------------------


def _checked(
    subnets: PricedSubnets, constraints_ms: Iterable[float], fastest: float, slowest: float
) -> tuple[float, ...]:
    """Constraints in ascending order, each of which some subnet meets."""
    found = tuple(sorted({float(T) for T in constraints_ms}))
    if not found or not all(0 < T < np.inf for T in found):
        raise ConfigError(f"constraints_ms: expected latencies above 0 ms, given {list(found)}")
    if found[0] < fastest:
        raise ConstraintError(
            f"latency constraint T = {found[0]:g} ms is below the fastest subnet of "
            f"{subnets.space} ({fastest:.4g} ms); its subnets are predicted to take "
            f"{fastest:.4g} to {slowest:.4g} ms"
        )
    return found


def latency_span(subnets: PricedSubnets, seed: int) -> tuple[float, float]:
    """The latencies in milliseconds of the fastest and the slowest subnet that are found."""
    rng = np.random.default_rng([seed, 3])
    fast, slow = (subnets.ms(subnets.nearest(T, T, _LOOK, rng)) for T in (0.0, _FAR_MS))
    return float(fast.min()), float(slow.max())


def constraint_at(spaces: Sequence[PricedSubnets], quantile: float, seed: int) -> float:
    """The latency in milliseconds that a share `quantile` of random subnets stays within.

    Of several spaces, each has as many.
    """
    ms = [space.ms(space.random(_LOOK, np.random.default_rng([seed, 4]))) for space in spaces]
    # Four digits are what a user can type; the search and its repetition use the same.
    return float(f"{np.quantile(np.concatenate(ms), quantile):.4g}")
