"""Where a network's predicted milliseconds go, kernel by kernel, and which widths would be cheaper.

`explain` takes a prediction apart into rows that add up to it again; `format_explanation` prints
them as a table.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import TypeGuard

import numpy as np

from ..hyperspace import (
    BlockConfig,
    ConvStep,
    Kernel,
    LinearStep,
    PlacedBlock,
    Recipe,
    Step,
    recipe_of,
)
from .lowering import BLOCK, FLOAT, Lowering, RuntimeKernel
from .predictor import LatencyPredictor

# What a vector of INT8 accumulators holds on today's CPUs; steps in latency sit at its multiples.
VECTOR = 16
# How many multiples above a width are tried.
_MULTIPLES_TRIED = 2
# A width that fills its vectors already is only worth changing for more than a prediction's noise.
_WORTHWHILE = 0.97
_COLUMNS = 100
_CONSTANT = "of a run, less what caches keep from the last"


@dataclass(frozen=True)
class KernelRow:
    """One runtime kernel of a network.

    Attributes
    ----------
    block : number of its block, from 1
    name : name of its block
    kernel : what the runtime runs
    operators : operators that it starts, "Name:precision"
    in_float : those of them that compute in float although the network is INT8
    ms : its milliseconds inside the network: its calibrated time, its operators, its weights
    """

    block: int
    name: str
    kernel: RuntimeKernel
    operators: tuple[str, ...]
    in_float: tuple[str, ...]
    ms: float


@dataclass(frozen=True)
class CheaperWidth:
    """A width of a network, and a larger one that is predicted to cost less or the same.

    Attributes
    ----------
    where : which width, such as "stage5 block 2: hidden width"
    width, larger : channels
    us, larger_us : microseconds of all kernels that have this width, before and after
    """

    where: str
    width: int
    larger: int
    us: float
    larger_us: float

    def __str__(self) -> str:
        return (
            f"{self.where} {self.width} costs {self.us:.1f} us, "
            f"{self.larger} costs {self.larger_us:.1f} us"
        )


@dataclass(frozen=True)
class Explanation:
    """A network's predicted latency in parts.

    Attributes
    ----------
    predictor : name of the predictor
    precision : "int8" or "float32"
    rows : kernels in the order in which the network's blocks run
    constant_ms : milliseconds of a run that belong to no kernel, less what caches keep of a
        network from one run to the next
    cheaper : widths worth changing, those that save most first
    """

    predictor: str
    precision: str
    rows: tuple[KernelRow, ...]
    constant_ms: float
    cheaper: tuple[CheaperWidth, ...]

    @property
    def total_ms(self) -> float:
        """Milliseconds of the network: all rows and the constant."""
        return fsum((*(row.ms for row in self.rows), self.constant_ms))

    @property
    def float_ms(self) -> float:
        """Milliseconds of the kernels that compute in float, wholly or in part."""
        return fsum(row.ms for row in self.rows if row.in_float)

    @property
    def ms_by_type(self) -> dict[str, float]:
        """Milliseconds by kernel type, the largest first."""
        sums: dict[str, float] = {}
        for row in self.rows:
            sums[row.kernel.type] = sums.get(row.kernel.type, 0.0) + row.ms
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


def explain(
    predictor: LatencyPredictor,
    placed_blocks: Sequence[PlacedBlock],
    names: Sequence[str] | None = None,
) -> Explanation:
    """Take the predicted latency of a network apart.

    Parameters
    ----------
    predictor : of the device
    placed_blocks : all blocks of the network with the sizes of their inputs, n of them
    names : what to call the blocks, n of them; by default "block 1", "block 2", …

    Raises
    ------
    PredictorError
        A kernel that the predictor cannot price.
    ValueError
        Another number of names than of blocks.
    """
    names = names or [f"block {i}" for i in range(1, len(placed_blocks) + 1)]
    cheaper = [] if predictor.lowering.whole_blocks else _cheaper(predictor, placed_blocks, names)
    rows = tuple(_rows(predictor, placed_blocks, names))
    sum_ms = np.array([fsum(row.ms for row in rows)])
    return Explanation(
        predictor=predictor.name,
        precision=predictor.provenance.precision,
        rows=rows,
        constant_ms=float((predictor.network_of_sum(sum_ms) - sum_ms)[0]),
        cheaper=tuple(sorted(cheaper, key=lambda c: c.larger_us - c.us)),
    )


def runs_as(lowering: Lowering, kernel: RuntimeKernel) -> tuple[str, ...]:
    """Operators that the runtime starts for a kernel at its own width, "Name:precision".

    Parameters
    ----------
    lowering : how the runtime runs each kind of kernel
    kernel : one of them
    """
    aligned = kernel.cin % VECTOR == 0 and kernel.cout % VECTOR == 0
    usual = lowering.operators.get(kernel.unit, ())
    return usual if aligned else lowering.unaligned.get(kernel.unit, usual)


def _rows(
    predictor: LatencyPredictor, blocks: Sequence[PlacedBlock], names: Sequence[str]
) -> Iterator[KernelRow]:
    lowering, int8 = predictor.lowering, predictor.provenance.precision == "int8"
    parts = [_weighted_parts(lowering, block) for block in blocks]
    us = _in_network_us(predictor, list(itertools.chain.from_iterable(parts)))
    prices = iter(us)
    for number, (name, block) in enumerate(zip(names, parts, strict=True), start=1):
        for kernel, _ in block:
            operators = runs_as(lowering, kernel)
            in_float = tuple(o for o in operators if o.endswith(f":{FLOAT}")) if int8 else ()
            yield KernelRow(number, name, kernel, operators, in_float, next(prices) / 1e3)


# A runtime kernel and the kernels whose weights it reads.
_Weighted = tuple[RuntimeKernel, Sequence[Kernel]]


def _weighted_parts(lowering: Lowering, block: PlacedBlock) -> list[_Weighted]:
    if lowering.whole_blocks:
        return [(part, block.kernels) for part in lowering.lower_block(block)]
    lowered = zip(block.kernels, lowering.lower_each(block.kernels), strict=True)
    return [part for kernel, parts in lowered for part in _weighted(kernel, parts)]


def _weighted(kernel: Kernel, parts: Sequence[RuntimeKernel]) -> list[_Weighted]:
    # An activation that runs on its own reads no weights; they belong to the kernel before it.
    return [(part, () if i else (kernel,)) for i, part in enumerate(parts)]


def _in_network_us(predictor: LatencyPredictor, parts: Sequence[_Weighted]) -> list[float]:
    """Microseconds of each kernel inside a network, as `Calibration` adds them up."""
    if not parts:
        return []
    c = predictor.calibration
    alone = predictor.kernels_us([kernel for kernel, _ in parts]).tolist()
    return [
        c.scale_of(kernel.type) * us
        + c.node_us * predictor.lowering.nodes(kernel)
        + c.weight_us_per_mb * sum(map(c.fetched_mb, read))
        for us, (kernel, read) in zip(alone, parts, strict=True)
    ]


# ---- cheaper widths ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wired:
    """A kernel with the numbers of the features that it reads and writes."""

    kernel: Kernel
    block: int
    reads: int
    writes: int

    def widened(self, feature: int, width: int) -> Kernel:
        """The kernel once a feature has another width."""
        cin = width if self.reads == feature else self.kernel.cin
        cout = width if self.writes == feature else self.kernel.cout
        return replace(self.kernel, cin=cin, cout=cout)


def _wired(blocks: Sequence[PlacedBlock]) -> list[_Wired]:
    """All kernels of a network with their features; the input is 0.

    Kernels that keep the width, such as a depthwise convolution, read and write one feature, and
    so do blocks whose input is added to their output as it is.
    """
    wired: list[_Wired] = []
    source, numbers = 0, itertools.count(1)
    for index, block in enumerate(blocks):
        recipe = recipe_of(block.config)
        ties = source if recipe.residual and recipe.shortcut is None else next(numbers)
        pairs = list(_pairs(block.config, recipe, source, ties, numbers))
        kernels = zip(block.kernels, pairs, strict=True)
        wired += [_Wired(kernel, index, *pair) for kernel, pair in kernels]
        source = pairs[-1][1] if pairs else source
    return wired


def _pairs(
    config: BlockConfig, recipe: Recipe, source: int, result: int, numbers: Iterator[int]
) -> Iterator[tuple[int, int]]:
    """Features that each kernel of a block reads and writes: main path, shortcut, sum."""
    changing = [i for i, step in enumerate(recipe.main) if _changes_width(step)]
    # Inner features of one width are chosen together, by the expand ratio; blocks without a ratio
    # have inner features as wide as their output.
    inner = {} if config.expand is not None else {config.cout: result}
    feature = source
    for i, step in enumerate(recipe.main):
        before = feature
        if _changes_width(step):
            last = i == changing[-1]
            feature = result if last else inner.setdefault(step.cout, next(numbers))
        yield before, feature
    if recipe.shortcut is not None:
        yield source, result
    if recipe.residual:
        yield result, result


def _changes_width(step: Step) -> TypeGuard[ConvStep | LinearStep]:
    dense = isinstance(step, ConvStep) and not step.depthwise
    return dense or isinstance(step, LinearStep)


def _cheaper(
    predictor: LatencyPredictor, blocks: Sequence[PlacedBlock], names: Sequence[str]
) -> list[CheaperWidth]:
    wired = _wired(blocks)
    users: dict[int, list[_Wired]] = {}
    for w in wired:
        for feature in {w.reads, w.writes}:
            users.setdefault(feature, []).append(w)
    # The image's channels and the number of classes are not for choosing.
    fixed = {0, wired[-1].writes} if wired else set()
    options = {f: _options(predictor, f, mine) for f, mine in users.items() if f not in fixed}
    kernels = itertools.chain.from_iterable(
        itertools.chain.from_iterable(of.values()) for of in options.values()
    )
    price = _prices(predictor, dict.fromkeys(kernels))
    found = []
    for feature, by_width in options.items():
        us = {width: fsum(price[k] for k in kernels) for width, kernels in by_width.items()}
        if (best := _worthwhile(us)) is not None:
            width = next(iter(us))
            where = _where(users[feature], names)
            found.append(CheaperWidth(where, width, best, us[width], us[best]))
    return found


def _options(
    predictor: LatencyPredictor, feature: int, users: Sequence[_Wired]
) -> dict[int, list[Kernel]]:
    """The kernels of a feature at its own width, then at the larger ones that were measured."""
    first = users[0]
    width = first.kernel.cout if first.writes == feature else first.kernel.cin
    multiples = (VECTOR * (width // VECTOR + n) for n in range(1, _MULTIPLES_TRIED + 1))
    options = {w: [user.widened(feature, w) for user in users] for w in (width, *multiples)}
    measured = {w: ks for w, ks in options.items() if _all_measured(predictor, ks)}
    return measured if width in measured else {}


def _all_measured(predictor: LatencyPredictor, kernels: Sequence[Kernel]) -> bool:
    parts = [part for kernel in kernels for part in predictor.lowering.lower(kernel)]
    return all(p.type in predictor.kernels for p in parts) and not any(
        predictor.kernels[part.type].outside(part) for part in parts
    )


def _prices(predictor: LatencyPredictor, kernels: dict[Kernel, None]) -> dict[Kernel, float]:
    parts = {kernel: _weighted(kernel, predictor.lowering.lower(kernel)) for kernel in kernels}
    us = iter(_in_network_us(predictor, list(itertools.chain.from_iterable(parts.values()))))
    return {kernel: fsum(itertools.islice(us, len(mine))) for kernel, mine in parts.items()}


def _worthwhile(us: dict[int, float]) -> int | None:
    """The cheapest of the larger widths, if it beats the first of the widths."""
    if len(us) < 2:
        return None
    width, *larger = us
    best = min(larger, key=lambda w: us[w])
    most = us[width] if width % VECTOR else _WORTHWHILE * us[width]
    return best if us[best] <= most else None


def _where(users: Sequence[_Wired], names: Sequence[str]) -> str:
    first, last = users[0].block, users[-1].block
    if first == last:
        return f"{names[first]}: hidden width"
    return f"{names[first]} to {names[last]}: width between"


# ---- text ----------------------------------------------------------------------------------------


def format_explanation(explanation: Explanation) -> str:
    """An explanation as a plain-text table, at most 100 columns wide."""
    e = explanation
    parts = [
        [f"{e.predictor}: {e.total_ms:.3f} ms predicted, {len(e.rows)} kernels"],
        _kernel_table(e),
        _shares(e),
        _float_lines(e),
        _cheaper_lines(e),
        _operator_lines(e),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _kernel_table(e: Explanation) -> list[str]:
    lines = [
        f"{'block':<21}{'kernel':<16}{'size':>4}{'channels':>12}{'k':>3}{'s':>3}{'inner':>8}"
        f"{'ms':>9}{'%':>6}  operators"
    ]
    before = 0
    for row in e.rows:
        name = row.name if row.block != before else ""
        before = row.block
        lines.append(
            f"{name[:20]:<21}{_kernel_cells(row.kernel)}{_ms_cells(row.ms, e)}  {_ops(row)}"
        )
    lines.append(f"{'constant':<21}{_CONSTANT:<46}{_ms_cells(e.constant_ms, e)}")
    lines.append(f"{'total':<67}{_ms_cells(e.total_ms, e)}")
    return lines


def _kernel_cells(k: RuntimeKernel) -> str:
    channels = f"{k.cin} > {k.cout}" if k.cin != k.cout else str(k.cin)
    window = f"{k.kernel_size:>3}" if k.kernel_size > 1 else f"{'':>3}"
    stride = f"{k.stride:>3}" if k.stride > 1 else f"{'':>3}"
    inner = f"x{k.expand:g}" if k.expand else f"{k.squeezed or ''}"
    return f"{k.unit.removeprefix(BLOCK)[:16]:<16}{k.hw:>4}{channels:>12}{window}{stride}{inner:>8}"


def _ms_cells(ms: float, e: Explanation) -> str:
    return f"{ms:>9.4f}{100 * ms / e.total_ms:>6.1f}"


def _ops(row: KernelRow) -> str:
    started = f"{len(row.operators)}" if row.operators else "?"
    return f"{started}, {len(row.in_float)} in float" if row.in_float else started


def _shares(e: Explanation) -> list[str]:
    counts: dict[str, int] = {}
    for row in e.rows:
        counts[row.kernel.type] = counts.get(row.kernel.type, 0) + 1
    lines = [f"{'by type':<21}{'kernels':<46}{'ms':>9}{'%':>6}"]
    lines += [
        f"{kind:<21}{counts[kind]:<46}{_ms_cells(ms, e)}" for kind, ms in e.ms_by_type.items()
    ]
    return lines


def _float_lines(e: Explanation) -> list[str]:
    if e.precision != "int8":
        return []
    told = [o for row in e.rows for o in row.operators if ":" in o]
    if not told:
        return ["In float: not known; this runtime does not tell which operators it starts."]
    kinds: dict[str, list[KernelRow]] = {}
    for row in e.rows:
        if row.in_float:
            kinds.setdefault(row.kernel.unit, []).append(row)
    if not kinds:
        return ["In float: nothing; every kernel computes in INT8."]
    lines = [
        f"In float: kernels of {e.float_ms:.4f} ms, {100 * e.float_ms / e.total_ms:.1f} % of the "
        "network, fall back wholly or in part"
    ]
    for unit, rows in kinds.items():
        ms = fsum(row.ms for row in rows)
        operators = ", ".join(_names(rows[0].in_float))
        lines.append(f"  {unit}: {ms:.4f} ms in {len(rows)} kernels; in float: {operators}")
    return lines


def _cheaper_lines(e: Explanation) -> list[str]:
    if not e.cheaper:
        return []
    heading = "Cheaper widths (all kernels that share the width, predicted within the network):"
    wrapped = (_wrap(str(c), "    ") for c in e.cheaper)
    return [heading, *(f"  {line}" for lines in wrapped for line in lines)]


def _operator_lines(e: Explanation) -> list[str]:
    operators = {row.kernel.unit: row.operators for row in reversed(e.rows)}
    lines = ["Operators that the runtime starts:"]
    for unit, started in operators.items():
        text = f"{unit}: {', '.join(_names(started)) or 'not known'}"
        lines += [f"  {line}" for line in _wrap(text, "    ")]
    return lines


def _names(operators: Sequence[str]) -> list[str]:
    """Names with how often each is started, in order."""
    names = [o.partition(":")[0] for o in operators]
    return [n if names.count(n) == 1 else f"{names.count(n)} {n}" for n in dict.fromkeys(names)]


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _COLUMNS - 2, subsequent_indent=indent)
