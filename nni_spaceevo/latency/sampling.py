"""What to measure of a hyperspace: which runtime kernels, and which whole subnets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from ..files import digest
from ..hyperspace import (
    BlockChoice,
    BlockConfig,
    Hyperspace,
    Kernel,
    SpaceCode,
    Stage,
    SubnetCode,
    block_kernels,
    chain_kernels,
    mflops,
)
from .lowering import RuntimeKernel, lower

# Random subnets drawn to collect kernels from: enough that rare combinations turn up.
_SUBNETS_DRAWN = 400
# A kernel type with fewer configurations than this gets neighbours of other widths, else a base of
# several terms could not be told apart.
_FEWEST = 24


@dataclass(frozen=True)
class Network:
    """A subnet to be measured whole."""

    space: SpaceCode
    code: SubnetCode
    blocks: tuple[BlockConfig, ...]

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
    stages = hyperspace.subnet_blocks(space, code)
    return Network(space, code, tuple(b for _, blocks in stages for b in blocks))


def sample_kernels(
    hyperspace: Hyperspace, rng: np.random.Generator, per_type: int
) -> list[RuntimeKernel]:
    """Runtime kernels of the hyperspace, sorted: about `per_type` of each type.

    All kernels of fixed stages (stem and head, at all resolutions) come first; those of random
    subnets of random spaces fill up.
    """
    fixed = set(_lowered(_fixed_kernels(hyperspace)))
    found = set(_lowered(_random_kernels(hyperspace, rng)))
    chosen: list[RuntimeKernel] = []
    for kind in sorted({k.type for k in fixed | found}):
        certain = _some([k for k in fixed if k.type == kind], per_type, rng)
        rest = [k for k in found - fixed if k.type == kind]
        kernels = {*certain, *_some(rest, per_type - len(certain), rng)}
        if len(kernels) < min(_FEWEST, per_type):
            kernels |= set(_some(_neighbours(kernels), _FEWEST - len(kernels), rng))
        chosen += sorted(kernels)
    return chosen


def _lowered(kernels: Iterable[Kernel]) -> Iterator[RuntimeKernel]:
    for kernel in set(kernels):
        yield from lower(kernel)


def _some(
    kernels: Iterable[RuntimeKernel], count: int, rng: np.random.Generator
) -> list[RuntimeKernel]:
    ordered = sorted(kernels)
    picked = rng.permutation(len(ordered))[: max(count, 0)]
    return [ordered[i] for i in picked]


def _sizes(hyperspace: Hyperspace) -> tuple[int, ...]:
    return tuple(sorted({*hyperspace.resolutions, *hyperspace.distill_resolutions}))


def _fixed_kernels(hyperspace: Hyperspace) -> Iterator[Kernel]:
    for stage in hyperspace.stages:
        if stage.block is not None:
            for resolution in _sizes(hyperspace):
                yield from _stage_kernels(hyperspace, stage, hyperspace.input_hw(stage, resolution))


def _stage_kernels(hyperspace: Hyperspace, stage: Stage, hw: int) -> Iterator[Kernel]:
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
            yield from block_kernels(option.config(cin, choice, stage.stride), 1 if pooled else hw)
        if stage.depths[-1] > 1:
            for cin in stage.widths:
                yield from block_kernels(option.config(cin, choice, 1), -(-hw // stage.stride))


def _random_kernels(hyperspace: Hyperspace, rng: np.random.Generator) -> Iterator[Kernel]:
    sizes = _sizes(hyperspace)
    for _ in range(_SUBNETS_DRAWN):
        space = hyperspace.random_space(rng)
        code = hyperspace.random_subnet(space, rng)
        blocks = network(hyperspace, space, code).blocks
        yield from chain_kernels(blocks, int(rng.choice(sizes)))


def _neighbours(kernels: Iterable[RuntimeKernel]) -> list[RuntimeKernel]:
    """The kernels with other widths and sizes, without the kernels themselves."""
    factors = (0.5, 1, 1.5, 2)
    result = set()
    for k, factor_in, factor_out, factor_hw in product(kernels, factors, factors, (1, 2)):
        dense = k.type in ("conv", "conv1x1", "linear")
        cin = max(1, int(k.cin * factor_in))
        result.add(
            replace(
                k,
                hw=k.hw if k.type == "linear" else k.hw * factor_hw,
                cin=cin,
                cout=max(1, int(k.cout * factor_out)) if dense else cin,
                squeezed=int(np.ceil(k.squeezed * factor_out)),
            )
        )
    return sorted(result - set(kernels))


def calibration_networks(
    hyperspace: Hyperspace, rng: np.random.Generator, count: int
) -> list[Network]:
    """`count` subnets spread evenly from the smallest to the largest by multiply-accumulates."""
    pool = [_random_network(hyperspace, rng) for _ in range(10 * count)]
    for space in hyperspace.uniform_spaces():
        pool.append(network(hyperspace, space, hyperspace.smallest_subnet(space)))
        pool.append(network(hyperspace, space, hyperspace.largest_subnet(space)))
    pool.sort(key=lambda n: (mflops(n.kernels), n.key))
    places = np.linspace(0, len(pool) - 1, count).round().astype(int)
    return [pool[i] for i in places]


def held_out_networks(
    hyperspace: Hyperspace,
    rng: np.random.Generator,
    count: int,
    known: Sequence[Network],
) -> list[Network]:
    """`count` random subnets, each of its own new space.

    A hyperspace with too few spaces for that gives new subnets of spaces already met.
    """
    spaces, keys = {n.space for n in known}, {n.key for n in known}
    chosen: list[Network] = []
    for attempt in range(100 * count):
        candidate = _random_network(hyperspace, rng)
        new_space = candidate.space not in spaces or attempt >= 50 * count
        if new_space and candidate.key not in keys:
            spaces.add(candidate.space)
            keys.add(candidate.key)
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen


def _random_network(hyperspace: Hyperspace, rng: np.random.Generator) -> Network:
    space = hyperspace.random_space(rng)
    return network(hyperspace, space, hyperspace.random_subnet(space, rng))
