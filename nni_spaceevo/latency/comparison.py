"""What predictors of one device say about its kernels: the data of a device report.

Everything here is computed from predictors and from the measurements that they keep; nothing
presumes which kernels a device likes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import PredictorError
from ..hyperspace import Kernel, make_divisible
from .features import FloatArray
from .lowering import ACTIVATED, ACTIVATIONS, FLOAT, PLAIN, RuntimeKernel, kernel_of_key
from .predictor import LatencyPredictor

_ORDER = (*ACTIVATED, *PLAIN, *ACTIVATIONS)
_DENSE = ("conv", "conv1x1", "linear")
# A prediction is shown where a kernel of the same kind was measured within this factor in size
# and in either width; between far-apart measurements it would be a guess.
_NEAR = 1.6
_MOST_SIZES = 6
# Steps of a width, and the multiples at which latencies may drop.
STEP, VECTOR = 8, 16
_CURVES_OF_A_TYPE = 3
_FEWEST_POINTS = 3
# Kernels of a type that must have been measured at multiples of `VECTOR`, and beside them.
_FEWEST_OF_A_SIDE = 5
_FREE = "free"


def measured_us(predictor: LatencyPredictor) -> dict[RuntimeKernel, float]:
    """Kernels that were measured, with their microseconds; empty if the predictor kept none."""
    return {kernel_of_key(k): us for k, us in predictor.report.get("measured_us", {}).items()}


def in_order(kinds: Iterable[str]) -> list[str]:
    """Units by what they are: convolutions, sums, pools, activations, then others."""

    def place(unit: str) -> tuple[int, str]:
        kind = unit.partition("+")[0]
        return (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), unit)

    return sorted(kinds, key=place)


class Measured:
    """What a predictor was fitted to, to ask whether a kernel lies near it.

    Parameters
    ----------
    predictor : whose measurements
    """

    def __init__(self, predictor: LatencyPredictor) -> None:
        self.predictor = predictor
        self.us = measured_us(predictor)
        self._places: dict[tuple[str, int], FloatArray] = {}
        groups: dict[tuple[str, int], list[RuntimeKernel]] = {}
        for kernel in self.us:
            groups.setdefault((kernel.unit, kernel.kernel_size), []).append(kernel)
        self.groups = groups
        for group, kernels in groups.items():
            self._places[group] = np.log([(k.hw, k.cin, k.cout) for k in kernels])

    def near(self, kernel: RuntimeKernel) -> bool:
        """Whether it is inside the fitted range and something like it was measured."""
        fitted = self.predictor.kernels.get(kernel.type)
        places = self._places.get((kernel.unit, kernel.kernel_size))
        if fitted is None or places is None or fitted.outside(kernel):
            return False
        far = np.abs(places - np.log((kernel.hw, kernel.cin, kernel.cout))).max(axis=1)
        return bool(far.min() <= np.log(_NEAR))

    def parts(self, kernel: Kernel) -> tuple[RuntimeKernel, ...]:
        """What the runtime runs for a kernel; empty unless all of it lies near measurements."""
        try:
            parts = self.predictor.lowering.lower(kernel)
        except PredictorError:
            return ()
        return parts if all(map(self.near, parts)) else ()

    def sums_us(self, chains: Sequence[Sequence[RuntimeKernel]]) -> FloatArray:
        """Microseconds of each list of kernels, shape (n,)."""
        us = self.predictor.kernels_us(list(itertools.chain.from_iterable(chains)))
        owner = np.repeat(np.arange(len(chains)), [len(chain) for chain in chains])
        return np.bincount(owner, us, len(chains)).astype(np.float64)


# ---- INT8 beside FP32 ----------------------------------------------------------------------------


@dataclass(frozen=True)
class SpeedGrid:
    """FP32 time over INT8 time of one kind of kernel; above 1, INT8 is faster.

    Attributes
    ----------
    title : kind of kernel, such as "dwconv 5×5"
    sizes : input heights, largest first, n of them
    widths : channels, m of them
    ratio : shape (n, m), nan where one of the two was not measured nearby
    """

    title: str
    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    ratio: FloatArray

    @property
    def known(self) -> FloatArray:
        """All ratios that are known, flat."""
        return self.ratio[np.isfinite(self.ratio)]


def speed_grids(int8: LatencyPredictor, float32: LatencyPredictor) -> list[SpeedGrid]:
    """One grid for every kind of kernel that both predictors measured.

    Activations are compared together with the 1x1 convolution before them, for one runtime may
    compute within the convolution what the other starts operators for.

    Parameters
    ----------
    int8, float32 : predictors of one device
    """
    first, second = Measured(int8), Measured(float32)
    sizes = _spread([k.hw for k in first.us], _MOST_SIZES)
    grids = (_speed_grid(first, second, kind, sizes) for kind in _kinds(first))
    return [grid for grid in grids if grid.widths]


# A kernel type, its kernel size, and the activation that follows.
_Kind = tuple[str, int, str]


def _kinds(measured: Measured) -> list[_Kind]:
    plain = [(unit, k) for unit, k in measured.groups if unit in (*ACTIVATED, *PLAIN)]
    units = in_order(unit for unit, _ in plain)
    ordered = sorted(set(plain), key=lambda group: (units.index(group[0]), group[1]))
    lowering = measured.predictor.lowering
    free = lowering.free.get("conv1x1", ()) if ("conv1x1", 1) in plain else ACTIVATIONS
    costly = [a for a in ACTIVATIONS if a not in free]
    return [(*group, "none") for group in ordered] + [("conv1x1", 1, a) for a in costly]


def _square(kind: _Kind, hw: int, width: int) -> Kernel:
    """The kernel that keeps its width; an "se" squeezes to a quarter."""
    op = "conv" if kind[0] == "conv1x1" else kind[0]
    squeezed = make_divisible(width // 4) if op == "se" else 0
    return Kernel(op, hw, width, width, kind[1], 1, kind[2], squeezed)


def _title(kind: str, kernel_size: int, activation: str = "none") -> str:
    window = f" {kernel_size}×{kernel_size}" if kernel_size > 1 else ""
    return f"{kind}{window}" if activation == "none" else f"{kind}{window} + {activation}"


def _speed_grid(first: Measured, second: Measured, kind: _Kind, sizes: Sequence[int]) -> SpeedGrid:
    widths = _ladder(k.cin for k in first.us if k.type == kind[0])
    found = {}
    for place in itertools.product(range(len(sizes)), range(len(widths))):
        kernel = _square(kind, sizes[place[0]], widths[place[1]])
        fast, slow = first.parts(kernel), second.parts(kernel)
        if fast and slow:
            found[place] = (fast, slow)
    fast_us = first.sums_us([fast for fast, _ in found.values()])
    slow_us = second.sums_us([slow for _, slow in found.values()])
    ratio = np.full((len(sizes), len(widths)), np.nan)
    for place, value in zip(found, slow_us / fast_us, strict=True):
        ratio[place] = value
    rows, columns = (np.isfinite(ratio).any(axis=axis) for axis in (1, 0))
    return SpeedGrid(
        _title(*kind),
        tuple(itertools.compress(sizes, rows)),
        tuple(itertools.compress(widths, columns)),
        ratio[np.ix_(rows, columns)],
    )


def _spread(values: Sequence[int], most: int) -> list[int]:
    """The most frequent values that lie well apart, largest first."""
    counts = {v: values.count(v) for v in sorted(set(values), reverse=True)}
    kept: list[int] = []
    for value in sorted(counts, key=lambda v: -counts[v]):
        if len(kept) < most and all(max(value / k, k / value) >= _NEAR for k in kept):
            kept.append(value)
    return sorted(kept, reverse=True)


def _ladder(values: Iterable[int]) -> list[int]:
    """Widths 16, 32, 48, 64, 96, 128, 192, … within the values."""
    known = list(values)
    steps = sorted({VECTOR * f << n for n in range(9) for f in (1, 2, 3)})
    return [w for w in steps if min(known) <= w <= max(known)]


# ---- steps at channel multiples ------------------------------------------------------------------


@dataclass(frozen=True)
class StepCurve:
    """Microseconds of one kind of kernel over its output channels.

    Attributes
    ----------
    title : what is held fixed
    widths, predicted_us : multiples of `STEP` between the least and largest measured, shape (n,)
    measured : widths that were measured and their microseconds, shape (m, 2)
    """

    title: str
    widths: FloatArray
    predicted_us: FloatArray
    measured: FloatArray


def step_curves(predictor: LatencyPredictor, kind: str) -> list[StepCurve]:
    """Curves at the sizes of a kernel type at which most widths were measured, largest first.

    Parameters
    ----------
    predictor : whose kernels
    kind : a kernel type whose output width varies, such as "conv1x1" or "dwconv"
    """
    groups: dict[RuntimeKernel, dict[int, float]] = {}
    for kernel, us in measured_us(predictor).items():
        if kernel.type == kind:
            fixed = replace(kernel, cout=0, cin=kernel.cin if kind in _DENSE else 0)
            groups.setdefault(fixed, {})[kernel.cout] = us
    curves: dict[int, tuple[RuntimeKernel, StepCurve]] = {}
    for fixed in sorted(groups, key=lambda g: (-_shows_steps(groups[g]), -len(groups[g]), g)):
        enough = len(groups[fixed]) >= _FEWEST_POINTS and len(curves) < _CURVES_OF_A_TYPE
        # One curve a size: three inputs of one size would say the same thing three times.
        if enough and fixed.hw not in curves:
            curves[fixed.hw] = (fixed, _step_curve(predictor, fixed, groups[fixed]))
    return [curve for _, (_, curve) in sorted(curves.items(), reverse=True)]


def _shows_steps(widths: Iterable[int]) -> bool:
    """Whether there are widths on both sides of a step."""
    return len({width % VECTOR == 0 for width in widths}) > 1


def _step_curve(
    predictor: LatencyPredictor, fixed: RuntimeKernel, measured: dict[int, float]
) -> StepCurve:
    least, most = min(measured), max(measured)
    widths = list(range(-(-least // STEP) * STEP, most + 1, STEP))
    kernels = [replace(fixed, cin=fixed.cin or width, cout=width) for width in widths]
    place = f"{fixed.hw}×{fixed.hw}"
    shape = f", stride {fixed.stride}" if fixed.stride > 1 else ""
    inputs = f", {fixed.cin} input channels" if fixed.cin else ""
    signs = ", never negative" if fixed.positive else ""
    return StepCurve(
        f"{_title(fixed.unit, fixed.kernel_size)} at {place}{shape}{inputs}{signs}",
        np.array(widths, float),
        predictor.kernels_us(kernels),
        np.array(sorted(measured.items()), float),
    )


def tail_penalty(predictor: LatencyPredictor, kind: str) -> float | None:
    """How much a width that is no multiple of 16 costs, relative to between its neighbours.

    The median over measured kernels whose widths can be rounded to 8 modulo 16; 1 means no step,
    None that too few kernels on one of the sides of a step were measured to say.

    Parameters
    ----------
    predictor : whose kernels
    kind : kernel type
    """
    mine = [k for k in measured_us(predictor) if k.type == kind]
    aligned = sum(k.cout % VECTOR == 0 for k in mine)
    if kind == "linear" or min(aligned, len(mine) - aligned) < _FEWEST_OF_A_SIDE:
        return None
    trios = []
    for kernel in mine:
        middle = kernel.cout // VECTOR * VECTOR + STEP
        widths = (middle - STEP, middle, middle + STEP)
        trio = [replace(kernel, cin=kernel.cin if kind in _DENSE else w, cout=w) for w in widths]
        if not any(predictor.kernels[kind].outside(k) for k in trio):
            trios += trio
    below, at, above = predictor.kernels_us(trios).reshape(-1, 3).T
    return float(np.median(2 * at / (below + above))) if trios else None


# ---- activations and composite kernels -----------------------------------------------------------


@dataclass(frozen=True)
class UnitCost:
    """How an activation or kernel is run, and what it costs beside a 1x1 convolution.

    Attributes
    ----------
    unit : an activation or kernel type
    how : what the runtime makes of it, in words; empty for kernel types
    operators : operators that it starts, in order, "Name:precision"
    at : the measured kernel at whose shape the costs below are predicted; None if there is none
    us : microseconds; of an activation that is computed within a kernel, what it adds
    relative : `us` over the time of a 1x1 convolution that keeps this width; None if not known
    """

    unit: str
    how: str
    operators: tuple[str, ...]
    at: RuntimeKernel | None = None
    us: float = 0.0
    relative: float | None = None

    @property
    def is_free(self) -> bool:
        """Whether it starts no operator and is part of no kernel's price."""
        return self.how.startswith(_FREE)

    @property
    def in_float(self) -> tuple[str, ...]:
        """Names of its operators that compute in float."""
        return self._names(FLOAT)

    @property
    def conversions(self) -> tuple[str, ...]:
        """Names of its operators that only convert between precisions."""
        return self._names("convert")

    def _names(self, precision: str) -> tuple[str, ...]:
        parts = (operator.partition(":") for operator in self.operators)
        return tuple(name for name, _, what in parts if what == precision)


def unit_costs(predictor: LatencyPredictor, beside: Sequence[UnitCost] = ()) -> list[UnitCost]:
    """Every activation and kernel type that the device knows, activations first.

    Parameters
    ----------
    predictor : of the device
    beside : costs to compare with: shapes are then those that lie nearest to theirs
    """
    known = predictor.lowering
    plain = [u for u in in_order(known.operators) if u not in ACTIVATIONS and "+" not in u]
    wanted = {cost.unit: cost.at for cost in beside if cost.at is not None}
    coster = _Coster(Measured(predictor), wanted)
    costs = [coster.activation(a) for a in ACTIVATIONS]
    return [c for c in costs if c is not None] + [coster.priced(u, "") for u in plain]


@dataclass(frozen=True)
class _Coster:
    measured: Measured
    wanted: dict[str, RuntimeKernel]

    def activation(self, name: str) -> UnitCost | None:
        """None for an activation that no kernel of the device can be followed by."""
        lowering = self.measured.predictor.lowering
        free = [kind for kind, names in lowering.free.items() if name in names]
        own = [kind for kind, names in lowering.own_kernel.items() if name in names]
        within = in_order(u for u in lowering.operators if u.endswith(f"+{name}"))
        if own:
            return self.priced(name, _after("operators of its own", own, free))
        if within:
            kinds = [unit.partition("+")[0] for unit in within]
            return self._within(within[0], name, f"computed within {', '.join(kinds)}")
        return UnitCost(name, _after(_FREE, free, ()), ()) if free else None

    def priced(self, unit: str, how: str) -> UnitCost:
        """Cost of a unit that runs on its own."""
        predictor = self.measured.predictor
        operators = predictor.lowering.operators[unit]
        at = self._typical(unit, self.wanted.get(unit))
        if at is None:
            return UnitCost(unit, how, operators)
        us = float(predictor.kernels_us([at])[0])
        return UnitCost(unit, how, operators, at, us, self._relative(at, us))

    def _within(self, unit: str, activation: str, how: str) -> UnitCost:
        """An activation that is part of a kernel's price costs what it adds to it."""
        predictor = self.measured.predictor
        operators = predictor.lowering.operators[unit]
        at = self._typical(unit, self.wanted.get(activation))
        if at is None:
            return UnitCost(activation, how, operators)
        with_it, without = predictor.kernels_us([at, replace(at, activation="none")]).tolist()
        added = with_it - without
        return UnitCost(activation, how, operators, at, added, self._relative(at, added))

    def _relative(self, at: RuntimeKernel, us: float) -> float | None:
        """Over the 1x1 convolution that keeps the width, where one was measured nearby."""
        beside = _pointwise(at)
        if not self.measured.near(beside):
            return None
        return us / float(self.measured.predictor.kernels_us([beside])[0])

    def _typical(self, unit: str, wanted: RuntimeKernel | None) -> RuntimeKernel | None:
        """The measured kernel nearest to the wanted one, or to the middle of its kind.

        Kernels that keep width and size come first, and of these the ones that a 1x1 convolution
        was measured beside.
        """
        groups = self.measured.groups.items()
        mine = sorted(k for (name, _), kernels in groups if name == unit for k in kernels)
        mine = [k for k in mine if k.cin == k.cout and k.stride == 1] or mine
        mine = [k for k in mine if self.measured.near(_pointwise(k))] or mine
        if not mine:
            return None
        places = np.log([_shape(k) for k in mine])
        target = np.median(places, axis=0) if wanted is None else np.log(_shape(wanted))
        return mine[int(np.argmin(np.abs(places - target).sum(axis=1)))]


def _after(what: str, kinds: Sequence[str], free: Sequence[str]) -> str:
    text = f"{what} after {', '.join(in_order(kinds))}"
    return f"{text}; {_FREE} after {', '.join(in_order(free))}" if free else text


def _pointwise(kernel: RuntimeKernel) -> RuntimeKernel:
    return RuntimeKernel("conv1x1", kernel.hw, kernel.cout, kernel.cout)


def _shape(kernel: RuntimeKernel) -> tuple[int, int, int]:
    return kernel.hw, kernel.cout, kernel.kernel_size
