"""How a found space fares when good spaces are scored in another way than they were searched in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from ..hyperspace import SpaceCode
from ..lut import QuantizedLUT
from ..search import QTConfig, SpaceScore, make_scorer
from ..search.score import penalized

# The other settings: the search's own times these.
_SHARES, _EXPONENTS, _TOPS = (0.25, 4), (0, 7), (0.2, 4)
# In place of an exponent of 0, which leaves nothing to multiply.
_EXPONENT = 0.01


@dataclass(frozen=True)
class Setting:
    """The best space among other good ones when all are scored in another way.

    Attributes
    ----------
    changed : what differs, empty for the search's own way
    rank : of the best space, 1 the best
    ratio : its score over that of the then best; None where all score 0
    first : code of the then best
    over_uniform : its score over that of the best manually designed space; None where that is 0
    """

    changed: str
    rank: int
    ratio: float | None
    first: str
    over_uniform: float | None


def compare_settings(
    lut: QuantizedLUT,
    scoring: QTConfig,
    scores: Sequence[SpaceScore],
    uniform: Sequence[SpaceCode],
) -> tuple[Setting, ...]:
    """Score spaces in other ways, the search's own first.

    Parameters
    ----------
    lut : losses and latencies
    scoring : the search's own way
    scores : the best space, then others, scored in that way
    uniform : which of them are manually designed
    """
    settings = []
    for changed, other in _others(scoring):
        if other.top == scoring.top:
            totals = {s.code: _rescored(s, scoring, other) for s in scores}
        else:
            score = make_scorer(lut, other)
            totals = {s.code: score(s.code).score for s in scores}
        settings.append(_setting(changed, totals, scores[0].code, uniform))
    return tuple(settings)


def _others(scoring: QTConfig) -> Iterator[tuple[str, QTConfig]]:
    """Settings, each with what is changed in words; one number differs at a time."""
    yield "", scoring
    values: dict[str, list[float]] = {
        "t": [min(scoring.t * factor, 1.0) for factor in _SHARES],
        "a": [(scoring.a or _EXPONENT) * factor for factor in _EXPONENTS],
        "top": [min(max(round(scoring.top * f), 1), scoring.samples) for f in _TOPS],
    }
    for key, others in values.items():
        for value in others:
            if value != getattr(scoring, key):
                changed = msgspec.structs.replace(scoring, **{key: value})
                yield f"{key} = {value:g}", changed


def _rescored(score: SpaceScore, own: QTConfig, other: QTConfig) -> float:
    """The score with other penalties: shares and losses are as they were."""

    # Each constraint's score has a factor of its own besides the penalty.
    rows = zip(score.scores, score.shares, score.top_losses, strict=True)
    return sum(
        part * penalized(share, loss, other) / penalized(share, loss, own)
        for part, share, loss in rows
        if part
    )


def _setting(
    changed: str, scores: dict[SpaceCode, float], best: SpaceCode, uniform: Sequence[SpaceCode]
) -> Setting:
    # Of equal scores the best space's comes first.
    first = min(scores, key=lambda code: (-scores[code], code != best, code))
    most_uniform = max(scores[code] for code in uniform)
    return Setting(
        changed=changed,
        rank=1 + sum(score > scores[best] for score in scores.values()),
        ratio=scores[best] / scores[first] if scores[first] else None,
        first=str(first),
        over_uniform=scores[best] / most_uniform if most_uniform else None,
    )
