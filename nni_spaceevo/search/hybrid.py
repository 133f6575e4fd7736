"""Aging evolution that ends in a local search: beyond the paper's section 4.2.

Aging forgets good spaces and looks at a neighbour of them only by chance. The second part of a
search therefore looks at all neighbours of the best space found, then of the next best, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..hyperspace import Hyperspace, SpaceCode
from .aging import AgingEvolution, EvolutionConfig


class HybridSearch(AgingEvolution):
    """Ask-and-tell search: given spaces, aging evolution, then the neighbours of the best.

    Parameters
    ----------
    hyperspace : what to search
    config : of the evolution; after `evolve` spaces the local search begins
    first : spaces to ask for before all others, such as those that a bound is made of
    """

    def __init__(
        self,
        hyperspace: Hyperspace,
        config: EvolutionConfig,
        first: Sequence[SpaceCode] = (),
    ) -> None:
        super().__init__(hyperspace, config)
        self._expanded: set[SpaceCode] = set()
        given = dict.fromkeys(map(hyperspace.space, first))
        self._evolve = max(config.evolve or 0, len(given))
        uniform = [code for code in self._queue if code not in given]
        self._queue.clear()
        self._queue.extend([*given, *uniform])

    def ask(self) -> SpaceCode:
        """The next space to score."""
        begun = bool(self._expanded)
        if self.scores and len(self._asked) >= self._evolve and not (self._queue and begun):
            # What is left of evolution's queue is worth less than a neighbour of the best.
            self._queue.clear()
            self._queue.extend(self._next_neighbours())
        return super().ask()

    def _next_neighbours(self) -> list[SpaceCode]:
        """New neighbours of the best space that still has some, in random order."""
        for code in sorted(self.scores.keys() - self._expanded, key=self._rank):
            self._expanded.add(code)
            found = [c for c in neighbours(self.hyperspace, code) if c not in self._asked]
            if found:
                self._rng.shuffle(found)
                return found
        return []

    def _rank(self, code: SpaceCode) -> tuple[float, SpaceCode]:
        return -self.scores[code], code

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which `load_state_dict` continues to the same result."""
        return super().state_dict() | {"expanded": sorted(map(str, self._expanded))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; raises `CodeError` where it belongs to another hyperspace."""
        super().load_state_dict(state)
        self._expanded = {self.hyperspace.space(code) for code in state["expanded"]}


def make_search(
    hyperspace: Hyperspace, config: EvolutionConfig, first: Sequence[SpaceCode] = ()
) -> AgingEvolution:
    """The search that `config` describes.

    Parameters
    ----------
    hyperspace : what to search
    config : evolution alone, as published, or followed by a local search
    first : spaces that the latter asks for before all others
    """
    if config.evolve is None:
        return AgingEvolution(hyperspace, config)
    return HybridSearch(hyperspace, config, first)


def neighbours(hyperspace: Hyperspace, code: SpaceCode) -> Iterator[SpaceCode]:
    """Spaces that differ in one stage, in its block type, its width window or both."""
    for i, stage in enumerate(hyperspace.searchable):
        for block in range(len(hyperspace.block_types)):
            for window in range(len(stage.windows)):
                if (block, window) != (code.blocks[i], code.windows[i]):
                    yield SpaceCode(
                        code.hyperspace,
                        (*code.blocks[:i], block, *code.blocks[i + 1 :]),
                        (*code.windows[:i], window, *code.windows[i + 1 :]),
                    )
