"""What a search over a LUT found, in figures: how good it is, why, and how sure.

Everything is computed from the LUT and the scored spaces; `space_report` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import msgspec
import numpy as np

from ..errors import ConfigError, ConstraintError
from ..hyperspace import SpaceCode
from ..jobs.results import SearchResults
from ..lut import LUTHeader, QuantizedLUT
from ..search import QTConfig, SpaceScore, make_scorer, qt_score, sample_subnets, score_bound
from .space_front import BestSubnet, SpaceFront, unbeaten
from .space_settings import Setting, compare_settings

SCHEMA = 1
Points = tuple[tuple[float, float], ...]

# Subnets drawn of a space for its distributions, bins of latencies, and points of a curve.
_DRAWN, _BINS, _POINTS = 100_000, 80, 60
# The best subnets are shown up to this multiple of the largest constraint.
_BEYOND = 2.0
# Found spaces that are compared under other settings.
_FOUND = 12
# Scores of one space that differ by a larger share were not made with the same settings.
_SAME = 1e-6


@dataclass(frozen=True)
class SpaceFigures:
    """A space and what its subnets reach.

    Attributes
    ----------
    name : "best found", or the block type of a manually designed space
    space : code
    score : Q-T score
    shares : share of subnets within each constraint
    top_losses : mean loss of the best of them; None where there is none
    min_ms, max_ms : latency of the fastest and slowest subnet
    latencies : ms, and the share of subnets around it
    losses : for each constraint, losses, and the share of all subnets that are within the
        constraint and lose no more
    front : ms, and the loss of the best subnet within them
    """

    name: str
    space: str
    score: float
    shares: tuple[float, ...]
    top_losses: tuple[float | None, ...]
    min_ms: float
    max_ms: float
    latencies: Points
    losses: tuple[Points, ...]
    front: Points


@dataclass(frozen=True)
class BoundFigures:
    """How good a space can be at most.

    Attributes
    ----------
    score : no space has a higher exact score
    scores : of each constraint
    best_score : exact score of the best space found
    gap : how much more the bound is than that, as a share of it
    """

    score: float
    scores: tuple[float, ...]
    best_score: float
    gap: float


@dataclass(frozen=True)
class BlockFigures:
    """A block type in a stage of the best space.

    Attributes
    ----------
    block_type : its name
    window : the best width window for it, the other stages left as they are
    change : of the score with that, as a share of the best space's
    ms : what a loss as good as the reference subnet's takes; None where no row of the LUT reaches
        it
    least_loss : of the stage with this block type
    front : ms and loss of the rows that no other row of this block type beats in both
    """

    block_type: str
    window: tuple[int, ...]
    change: float
    ms: float | None
    least_loss: float
    front: Points


@dataclass(frozen=True)
class StageFigures:
    """A stage of the best space, and what else it could be made of.

    Attributes
    ----------
    stage : its name
    block_type, window : of the best space
    widths : all that the windows choose from
    blocks : all block types, in the hyperspace's order
    """

    stage: str
    block_type: str
    window: tuple[int, ...]
    widths: tuple[int, ...]
    blocks: tuple[BlockFigures, ...]

    @property
    def chosen(self) -> BlockFigures:
        """The block type of the best space."""
        return next(b for b in self.blocks if b.block_type == self.block_type)


@dataclass(frozen=True)
class SpaceStudy:
    """All figures of the report.

    Attributes
    ----------
    schema : version of the JSON file
    lut : provenance of the LUT
    lut_rows, lut_fingerprint : its size and hash
    spaces : how many the hyperspace has
    experiment : id of the NNI experiment, or "local"
    scoring : what makes a space good
    scores : of the scored spaces, in their order
    best : the best space found
    uniform : the best manually designed space of each block type, best first
    uniform_spaces : how many there are
    bound : how good a space can be at most
    stages : of the best space
    subnets : the best subnet within each constraint that the best space meets, tightest first
    compared_spaces : found and manually designed spaces that `settings` are about
    settings : other ways to score, the search's own first
    """

    schema: int
    lut: LUTHeader
    lut_rows: int
    lut_fingerprint: str
    spaces: int
    experiment: str
    scoring: QTConfig
    scores: tuple[float, ...]
    best: SpaceFigures
    uniform: tuple[SpaceFigures, ...]
    uniform_spaces: int
    bound: BoundFigures
    stages: tuple[StageFigures, ...]
    subnets: tuple[BestSubnet, ...]
    compared_spaces: int
    settings: tuple[Setting, ...]

    @property
    def reference(self) -> BestSubnet:
        """Where the block types of a stage are compared: at the tightest constraint."""
        return self.subnets[0]


def study_space(lut: QuantizedLUT, results: SearchResults, scoring: QTConfig) -> SpaceStudy:
    """Compute all figures of the report of a search; takes seconds.

    Parameters
    ----------
    lut : the LUT that was searched
    results : the search
    scoring : how its spaces were scored

    Raises
    ------
    ConfigError
        The results are of another hyperspace or scored in another way, or nothing was scored.
    ConstraintError
        Not even the best space has a subnet within a constraint.
    """
    _check(lut, results, scoring)
    scores = _Scores(lut, results, scoring)
    best = scores.ranked[0]
    _check_score(results, scores.details(best).score)
    front = SpaceFront(lut, best)
    subnets = tuple(s for T in sorted(scoring.constraints_ms) if (s := front.best(T)))
    if not subnets or not scores(best) > 0:
        raise ConstraintError(
            f"no subnet of the best scored space, {best}, is within "
            f"T = {_in_ms(scoring.constraints_ms)}; score more spaces or raise T"
        )
    uniform, uniform_spaces = _best_uniform(lut, scores)
    compared = list(dict.fromkeys([*scores.ranked[:_FOUND], *uniform]))
    figures = _space_figures(lut, scoring, [scores.details(c) for c in (best, *uniform)])
    return SpaceStudy(
        schema=SCHEMA,
        lut=lut.header,
        lut_rows=len(lut),
        lut_fingerprint=lut.fingerprint,
        spaces=lut.hyperspace.num_spaces,
        experiment=results.experiment,
        scoring=scoring,
        scores=tuple(s.score for s in results.spaces),
        best=figures[0],
        uniform=figures[1:],
        uniform_spaces=uniform_spaces,
        bound=_bound_figures(lut, scoring, scores.details(best)),
        stages=tuple(
            _stage_figures(lut, scores, stage, subnets[0])
            for stage in range(len(lut.hyperspace.searchable))
        ),
        subnets=subnets,
        compared_spaces=len(compared),
        settings=compare_settings(lut, scoring, [scores.details(c) for c in compared], uniform),
    )


def _check(lut: QuantizedLUT, results: SearchResults, scoring: QTConfig) -> None:
    hyperspace = lut.hyperspace
    if results.hyperspace_fingerprint != hyperspace.fingerprint or not results.spaces:
        raise ConfigError(f"no scored spaces of hyperspace {hyperspace.name!r}; search first")
    if results.constraints_ms != scoring.constraints_ms:
        raise ConfigError(
            f"the search was for T = {_in_ms(results.constraints_ms)}; "
            f"given {_in_ms(scoring.constraints_ms)}"
        )


def _check_score(results: SearchResults, score: float) -> None:
    if abs(score - results.best.score) > _SAME * abs(score):
        raise ConfigError(
            f"{results.best.space} scored {results.best.score:.6g} in the search, but {score:.6g} "
            "with this LUT and these settings; give those of the search"
        )


def _in_ms(constraints_ms: tuple[float, ...]) -> str:
    return " / ".join(f"{T:g}" for T in constraints_ms) + " ms"


class _Scores:
    """Scores of spaces: those that the search knows are not computed again."""

    def __init__(self, lut: QuantizedLUT, results: SearchResults, scoring: QTConfig) -> None:
        space = lut.hyperspace.space
        self._known = {space(s.space): s.score for s in results.spaces}
        self.ranked = sorted(self._known, key=lambda code: (-self._known[code], str(code)))
        self.details = cache(make_scorer(lut, scoring))

    def __call__(self, code: SpaceCode) -> float:
        known = self._known.get(code)
        return self.details(code).score if known is None else known


def _best_uniform(lut: QuantizedLUT, scores: _Scores) -> tuple[list[SpaceCode], int]:
    """The best uniform space of each block type, best first, and how many there are in all."""
    codes = sorted(set(lut.hyperspace.uniform_spaces()), key=lambda c: (-scores(c), c))
    best: dict[int, SpaceCode] = {}
    for code in codes:
        best.setdefault(code.blocks[0], code)
    return list(best.values()), len(codes)


# ---- spaces --------------------------------------------------------------------------------------


def _space_figures(
    lut: QuantizedLUT, scoring: QTConfig, scores: Sequence[SpaceScore]
) -> tuple[SpaceFigures, ...]:
    """Figures of the best space, then of uniform ones; latencies in the same bins."""
    slowest = max(s.max_ms for s in scores)
    fastest = max(min(s.min_ms for s in scores), slowest * 1e-4)
    # A little more than needed on both sides, for what rounding moves.
    edges = np.geomspace(fastest * 0.999, slowest * 1.001, _BINS + 1)
    types = [lut.hyperspace.block_types[s.code.blocks[0]].type for s in scores[1:]]
    return tuple(
        _figures_of(lut, scoring, name, score, edges)
        for name, score in zip(["best found", *types], scores, strict=True)
    )


def _figures_of(
    lut: QuantizedLUT, scoring: QTConfig, name: str, score: SpaceScore, edges: np.ndarray
) -> SpaceFigures:
    rng = np.random.default_rng([scoring.seed, *score.code.blocks, *score.code.windows])
    loss, latency = sample_subnets(lut, score.code, _DRAWN, rng)
    counts, _ = np.histogram(latency, edges)
    return SpaceFigures(
        name=name,
        space=str(score.code),
        score=score.score,
        shares=score.shares,
        top_losses=tuple(v if np.isfinite(v) else None for v in score.top_losses),
        min_ms=score.min_ms,
        max_ms=score.max_ms,
        latencies=_points(np.sqrt(edges[1:] * edges[:-1]), counts / len(latency)),
        losses=tuple(_losses(loss, latency <= T) for T in scoring.constraints_ms),
        front=_thinned(SpaceFront(lut, score.code), scoring.constraints_ms),
    )


def _points(x: np.ndarray, y: np.ndarray) -> Points:
    return tuple(zip(x.tolist(), y.tolist(), strict=True))


def _losses(loss: np.ndarray, within: np.ndarray) -> Points:
    """Losses and the share of all that are within and lose no more, at steps of equal factors."""
    ordered = np.sort(loss[within])
    if not len(ordered):
        return ()
    steps = np.geomspace(1, len(ordered), _POINTS)
    counts = np.unique(np.rint(steps).astype(np.int64))
    return _points(ordered[counts - 1], counts / len(loss))


def _thinned(front: SpaceFront, constraints_ms: tuple[float, ...]) -> Points:
    """Some of a front's points, those at the constraints among them."""
    most_ms = _BEYOND * max(constraints_ms)
    ends = np.searchsorted(front.latency_ms, (*constraints_ms, most_ms), side="right") - 1
    if ends[-1] < 0:
        return ()
    even = np.rint(np.linspace(0, ends[-1], _POINTS)).astype(np.int64)
    kept = np.unique([*even, *ends[ends >= 0]])
    return _points(front.latency_ms[kept], front.loss[kept])


def _bound_figures(lut: QuantizedLUT, scoring: QTConfig, best: SpaceScore) -> BoundFigures:
    exact = best.score
    if scoring.estimator != "exact":
        # The bound is on the exact score; drawn ones scatter.
        own = msgspec.structs.replace(scoring, estimator="exact")
        exact = qt_score(lut, best.code, own).score
    bound = score_bound(lut, scoring)
    # Not below zero: scores are exact but for the grid that they are computed on.
    gap = max(0.0, bound.score / exact - 1)
    return BoundFigures(bound.score, bound.scores, exact, gap)


# ---- stages --------------------------------------------------------------------------------------


def _stage_figures(
    lut: QuantizedLUT, scores: _Scores, stage: int, reference: BestSubnet
) -> StageFigures:
    best, described = scores.ranked[0], lut.hyperspace.searchable[stage]
    types = range(len(lut.hyperspace.block_types))
    return StageFigures(
        stage=described.name,
        block_type=lut.hyperspace.block_types[best.blocks[stage]].type,
        window=described.windows[best.windows[stage]],
        widths=described.widths,
        blocks=tuple(_block_figures(lut, scores, stage, block, reference) for block in types),
    )


def _block_figures(
    lut: QuantizedLUT, scores: _Scores, stage: int, block: int, reference: BestSubnet
) -> BlockFigures:
    best, windows = scores.ranked[0], lut.hyperspace.searchable[stage].windows
    found = [scores(_with_stage(best, stage, block, w)) for w in range(len(windows))]
    window = int(np.argmax(found))
    cells = [lut.cell(stage, block, w, reference.resolution) for w in range(len(windows))]
    loss, latency = (np.concatenate(v).astype(np.float64) for v in zip(*cells, strict=True))
    enough = latency[loss <= reference.stage_losses[stage]]
    front = unbeaten(latency, loss)
    return BlockFigures(
        block_type=lut.hyperspace.block_types[block].type,
        window=windows[window],
        change=found[window] / scores(best) - 1,
        ms=float(enough.min()) if len(enough) else None,
        least_loss=float(loss.min()),
        front=_points(latency[front], loss[front]),
    )


def _with_stage(code: SpaceCode, stage: int, block: int, window: int) -> SpaceCode:
    """The space with one stage replaced."""
    blocks, windows = list(code.blocks), list(code.windows)
    blocks[stage], windows[stage] = block, window
    return SpaceCode(code.hyperspace, tuple(blocks), tuple(windows))
