"""What to measure of a hyperspace: which runtime kernels, and which whole subnets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from ..files import digest
from ..hyperspace import (
    BlockChoice,
    BlockConfig,
    Chain,
    ElasticStage,
    Hyperspace,
    Kernel,
    PlacedBlock,
    SpaceCode,
    Stage,
    SubnetCode,
    chain_kernels,
    mflops,
    place,
)
from .lowering import Lowering, RuntimeKernel

# Random subnets drawn to collect kernels from: enough that rare combinations turn up.
_SUBNETS_DRAWN = 400
# How strongly held-out networks lean to small or large, one after the other.
TILTS = (0, -1, 1, -3, 2, -6)
# Those that calibrate reach somewhat further, so that none of the others lies beyond them.
WIDER_TILTS = (0, -1, 1, -3, 2, -6, 4, -15)
# Kernel types whose costs step with the width, and how many widths beside the sampled are tried.
_STEPPED, _BESIDE = ("conv1x1", "conv", "dwconv"), 24
# Sub-stages of one stage are compared at one size of their input.
_TYPICAL_HW = 14
# A kernel type with fewer configurations than this gets neighbours of other widths, else a base of
# several terms could not be told apart.
_FEWEST = 48
_NEARBY = (0.75, 0.85, 0.95, 1, 1.05, 1.15, 1.25)


@dataclass(frozen=True)
class Network:
    """A subnet to be measured whole."""

    space: SpaceCode
    code: SubnetCode
    blocks: tuple[BlockConfig, ...]

    @property
    def placed(self) -> tuple[PlacedBlock, ...]:
        """Its blocks with the sizes of their inputs."""
        return place(self.blocks, self.code.resolution)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Its abstract kernels."""
        return chain_kernels(self.blocks, self.code.resolution)

    @property
    def key(self) -> str:
        """Text that names its computation in the file of measurements."""
        return f"network/{digest(repr(self.blocks), str(self.code.resolution))}"


def network(hyperspace: Hyperspace, space: SpaceCode, code: SubnetCode) -> Network:
    """A subnet with its blocks, head included."""
    return Network(space, code, hyperspace.all_blocks(space, code))


@dataclass(frozen=True)
class KernelPool:
    """Runtime kernels of a hyperspace on a device, by type, each list sorted.

    Attributes
    ----------
    fixed : those of stem and head at all resolutions, which every network has
    others : those of random subnets of random spaces
    """

    fixed: dict[str, list[RuntimeKernel]]
    others: dict[str, list[RuntimeKernel]]

    @property
    def types(self) -> tuple[str, ...]:
        """Kernel types, sorted."""
        return tuple(sorted(self.fixed.keys() | self.others.keys()))


def kernel_pool(hyperspace: Hyperspace, lowering: Lowering, rng: np.random.Generator) -> KernelPool:
    """Collect the runtime kernels that networks of a hyperspace consist of."""
    fixed = _lowered(_fixed_blocks(hyperspace), lowering)
    others = _lowered(_random_blocks(hyperspace, rng), lowering) - fixed
    return KernelPool(_by_type(fixed), _by_type(others))


def sample_kernels(
    pool: KernelPool, rng: np.random.Generator, per_type: int
) -> list[RuntimeKernel]:
    """About `per_type` runtime kernels of each type, those of stem and head first, sorted."""
    chosen: list[RuntimeKernel] = []
    for kind in pool.types:
        others = pool.others.get(kind, [])
        certain = _some(pool.fixed.get(kind, []), per_type, rng)
        certain = [*certain, *_extremes(others)]
        rest = _some(set(others) - set(certain), per_type - len(certain), rng)
        kernels = {*certain, *rest}
        fewest = min(_FEWEST, per_type)
        if len(kernels) < fewest:
            kernels |= set(_some(_neighbours(kernels), fewest - len(kernels), rng))
        chosen += sorted(kernels)
    return chosen


def kernels_beside(
    kernels: Sequence[RuntimeKernel], rng: np.random.Generator
) -> list[RuntimeKernel]:
    """Convolutions with widths just beside those of sampled ones, sorted.

    A hyperspace whose widths are all multiples of 16 would not show what other widths cost, and
    that is what explains a device.
    """
    known, found = set(kernels), set()
    for kind in _STEPPED:
        for k in _some((k for k in kernels if k.type == kind), _BESIDE, rng):
            cout = max(8, k.cout + int(rng.choice((-8, 8))))
            found.add(replace(k, cout=cout, cin=cout if kind == "dwconv" else k.cin))
    return sorted(found - known)


def more_kernels(
    pool: KernelPool,
    known: Sequence[RuntimeKernel],
    errors: NDArray[np.float64],
    rng: np.random.Generator,
    count: int,
) -> list[RuntimeKernel]:
    """Up to `count` further kernels, sorted: more of the types with large held-out errors.

    Parameters
    ----------
    pool : where to draw from
    known : kernels measured so far
    errors : their held-out errors, as absolute logarithms, shape (n,)
    rng : source of the choice
    count : how many in all; half of each type's share are the nearest to its worst predictions
    """
    chosen: list[RuntimeKernel] = []
    typical = {
        kind: float(np.mean([e for k, e in zip(known, errors, strict=True) if k.type == kind]))
        for kind in pool.types
    }
    left = {k: v for k in pool.types if (v := set(pool.others.get(k, [])) - set(known))}
    total = sum(typical[kind] for kind in left)
    for kind in left:
        share = round(count * typical[kind] / max(total, 1e-9))
        worst = sorted(
            (k for k in zip(errors, known, strict=True) if k[1].type == kind), reverse=True
        )
        near = _nearest([k for _, k in worst], left[kind], share // 2)
        rest = _some(left[kind] - set(near), share - len(near), rng)
        chosen += [*near, *rest]
    return sorted(chosen)


def _nearest(
    targets: Sequence[RuntimeKernel], candidates: Iterable[RuntimeKernel], count: int
) -> list[RuntimeKernel]:
    """For one target after the other the candidate that is most alike; all distinct."""
    left, found = sorted(candidates), []
    places = np.array([_place(k) for k in left]).reshape(len(left), -1)
    for target in targets[: min(count, len(left))]:
        distance = np.abs(places - _place(target)).sum(axis=1)
        nearest = int(np.argmin(distance))
        found.append(left[nearest])
        places[nearest] = np.inf
    return found


def _place(kernel: RuntimeKernel) -> NDArray[np.float64]:
    sizes = (kernel.hw, kernel.cin, kernel.cout, kernel.kernel_size, kernel.stride)
    return np.log([*sizes, kernel.squeezed + 1])


def _by_type(kernels: Iterable[RuntimeKernel]) -> dict[str, list[RuntimeKernel]]:
    found: dict[str, list[RuntimeKernel]] = {}
    for kernel in sorted(kernels):
        found.setdefault(kernel.type, []).append(kernel)
    return found


def _lowered(blocks: Iterable[PlacedBlock], lowering: Lowering) -> set[RuntimeKernel]:
    return {part for block in set(blocks) for part in lowering.lower_block(block)}


def _extremes(kernels: Sequence[RuntimeKernel]) -> list[RuntimeKernel]:
    """The first and last kernel by each size, so that few networks need extrapolation."""
    sizes = ("hw", "cin", "cout", "squeezed")
    ends = (end(kernels, key=attrgetter(s, *sizes)) for s in sizes for end in (min, max) if kernels)
    return list(dict.fromkeys(ends))


def _some(
    kernels: Iterable[RuntimeKernel], count: int, rng: np.random.Generator
) -> list[RuntimeKernel]:
    ordered = sorted(kernels)
    picked = rng.permutation(len(ordered))[: max(count, 0)]
    return [ordered[i] for i in picked]


def _sizes(hyperspace: Hyperspace) -> tuple[int, ...]:
    return tuple(sorted({*hyperspace.resolutions, *hyperspace.distill_resolutions}))


def _fixed_blocks(hyperspace: Hyperspace) -> Iterator[PlacedBlock]:
    for stage in hyperspace.stages:
        if stage.block is not None:
            for resolution in _sizes(hyperspace):
                yield from _stage_blocks(hyperspace, stage, hyperspace.input_hw(stage, resolution))


def _stage_blocks(hyperspace: Hyperspace, stage: Stage, hw: int) -> Iterator[PlacedBlock]:
    option = stage.block
    assert option is not None
    choices = product(option.kernel_sizes, stage.widths, option.expand_choices)
    before = hyperspace.input_widths(stage)
    pooled = stage in hyperspace.head and any(
        s.block is not None and s.block.type == "pool_conv"
        for s in hyperspace.stages[: hyperspace.stages.index(stage)]
    )
    for choice in (BlockChoice(*c) for c in choices):
        for cin in before:
            yield PlacedBlock(option.config(cin, choice, stage.stride), 1 if pooled else hw)
        if stage.depths[-1] > 1:
            for cin in stage.widths:
                yield PlacedBlock(option.config(cin, choice, 1), -(-hw // stage.stride))


def _random_blocks(hyperspace: Hyperspace, rng: np.random.Generator) -> Iterator[PlacedBlock]:
    sizes = _sizes(hyperspace)
    for space in hyperspace.uniform_spaces():
        for code in (hyperspace.smallest_subnet(space), hyperspace.largest_subnet(space)):
            blocks = network(hyperspace, space, code).blocks
            for resolution in (sizes[0], sizes[-1]):
                yield from place(blocks, resolution)
    for _ in range(_SUBNETS_DRAWN):
        space = hyperspace.random_space(rng)
        code = hyperspace.random_subnet(space, rng)
        blocks = network(hyperspace, space, code).blocks
        yield from place(blocks, int(rng.choice(sizes)))


def _neighbours(kernels: Iterable[RuntimeKernel]) -> list[RuntimeKernel]:
    """The kernels with somewhat other widths and sizes, without the kernels themselves."""
    result = set()
    for k, factor_in, factor_out, more_hw in product(kernels, _NEARBY, _NEARBY, (0, 1)):
        dense = k.type in ("conv", "conv1x1", "linear")
        cin = max(1, int(k.cin * factor_in))
        result.add(
            replace(
                k,
                hw=k.hw if k.type == "linear" else k.hw + more_hw,
                cin=cin,
                cout=max(1, int(k.cout * factor_out)) if dense else cin,
                squeezed=int(np.ceil(k.squeezed * factor_out)),
            )
        )
    return sorted(result - set(kernels))


def smallest_networks(hyperspace: Hyperspace, count: int) -> list[Network]:
    """Up to `count` of the hyperspace's smallest subnets, each of another block type.

    Random subnets hardly ever come near them, and what a runtime gains where all of a network
    stays in the caches shows at this end alone.
    """
    smallest = [
        network(hyperspace, s, hyperspace.smallest_subnet(s)) for s in hyperspace.uniform_spaces()
    ]
    found: dict[int, Network] = {}
    for subnet in sorted(smallest, key=lambda subnet: mflops(subnet.kernels)):
        found.setdefault(subnet.space.blocks[0], subnet)
    return list(found.values())[:count]


def random_networks(
    hyperspace: Hyperspace,
    rng: np.random.Generator,
    count: int,
    known: Sequence[Network] = (),
    tilts: Sequence[int] = TILTS,
) -> list[Network]:
    """`count` random subnets of all sizes, each of its own new space, tilted by turns.

    A hyperspace with too few spaces for that gives new subnets of spaces already met.
    """
    spaces, keys = {n.space for n in known}, {n.key for n in known}
    chosen: list[Network] = []
    for attempt in range(100 * count):
        candidate = random_network(hyperspace, rng, tilts[len(chosen) % len(tilts)])
        new_space = candidate.space not in spaces or attempt >= 50 * count
        if new_space and candidate.key not in keys:
            spaces.add(candidate.space)
            keys.add(candidate.key)
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen


def random_network(hyperspace: Hyperspace, rng: np.random.Generator, tilt: int = 0) -> Network:
    """A random subnet of a random space.

    Parameters
    ----------
    hyperspace, rng : where to draw from, and with what
    tilt : 0 draws each sub-stage once. Uniform subnets crowd in the middle of the sizes, so
        -n takes the smallest of n + 1 draws in every stage, and n the largest
    """
    space = hyperspace.random_space(rng)
    draws = [hyperspace.random_subnet(space, rng) for _ in range(abs(tilt) + 1)]
    pick = min if tilt < 0 else max
    stages = hyperspace.elastic_stages(space)
    chains = tuple(
        pick((draw.stages[i] for draw in draws), key=partial(_size, stage))
        for i, stage in enumerate(stages)
    )
    resolution = pick(draw.resolution for draw in draws)
    return network(hyperspace, space, SubnetCode(chains, resolution))


def _size(stage: ElasticStage, chain: Chain) -> float:
    return mflops(chain_kernels(stage.blocks(chain[0].width, chain), _TYPICAL_HW))
