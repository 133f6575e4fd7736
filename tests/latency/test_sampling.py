from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from nni_spaceevo.hyperspace import Stage, load_hyperspace, mflops
from nni_spaceevo.latency.sampling import (
    TILTS,
    WIDER_TILTS,
    kernel_pool,
    more_kernels,
    network,
    random_network,
    random_networks,
    sample_kernels,
    smallest_networks,
)

from .conftest import LOWERING


@pytest.fixture(scope="module")
def onnxw():
    return load_hyperspace("onnxw")


@pytest.fixture(scope="module")
def pool(digits):
    return kernel_pool(digits, LOWERING, np.random.default_rng(0))


@pytest.fixture(scope="module")
def kernels(pool):
    return sample_kernels(pool, np.random.default_rng(0), 100)


def test_kernels_are_distinct_sorted_and_about_as_many_as_asked(kernels):
    assert kernels == sorted(set(kernels))
    counts = Counter(k.type for k in kernels)
    assert set(counts) == {
        *("conv1x1", "conv", "dwconv", "add", "swish", "hswish", "se", "pool", "linear")
    }
    assert max(counts.values()) <= 100
    assert counts["conv"] == counts["conv1x1"] == 100


def test_a_rare_kernel_type_gets_neighbours(kernels):
    linear = [k for k in kernels if k.type == "linear"]
    assert any((k.cin, k.cout) == (256, 10) for k in linear)
    assert len({k.cin for k in linear}) > 2


def test_sampling_follows_the_generator(pool, kernels):
    assert sample_kernels(pool, np.random.default_rng(0), 100) == kernels
    assert sample_kernels(pool, np.random.default_rng(1), 100) != kernels


def test_more_kernels_are_new_and_mostly_of_the_type_predicted_worst(pool, rng):
    known = sample_kernels(pool, rng, 20)
    errors = np.array([0.2 if k.type == "conv" else 0.01 for k in known])
    found = more_kernels(pool, known, errors, rng, 60)
    counts = Counter(k.type for k in found)
    assert not set(found) & set(known)
    assert len(set(found)) == len(found)
    assert 50 <= sum(counts.values()) <= 62
    assert counts["conv"] > 35


def test_more_kernels_surround_the_worst_prediction(pool, rng):
    known = sample_kernels(pool, rng, 20)
    worst = next(k for k in known if k.type == "conv1x1")
    errors = np.array([1.0 if k == worst else 0.0 for k in known])
    found = more_kernels(pool, known, errors, rng, 2)
    (near, _) = [k for k in found if k.type == "conv1x1"]
    assert any(abs(np.log(k.hw / worst.hw)) < 1 and k.cin <= 2 * worst.cin for k in found), near


def test_stem_and_head_are_covered_at_all_resolutions(digits, kernels, rng):
    for resolution in digits.resolutions:
        for stage in digits.searchable[-1].widths:
            assert any(k.type == "conv1x1" and k.cin == stage and k.cout == 192 for k in kernels)
        stem = [k for k in kernels if k.type == "conv" and k.cin == 1]
        assert resolution in {k.hw for k in stem}


def test_every_kernel_type_of_a_preset_is_sampled(rng):
    hyperspace = load_hyperspace("onnxw")
    sampled = {k.type for k in sample_kernels(kernel_pool(hyperspace, LOWERING, rng), rng, 20)}
    for _ in range(30):
        space = hyperspace.random_space(rng)
        found = network(hyperspace, space, hyperspace.random_subnet(space, rng))
        assert {part.type for k in found.kernels for part in LOWERING.lower(k)} <= sampled


def test_networks_of_all_sizes_are_drawn(digits, rng):
    chosen = random_networks(digits, rng, 24)
    sizes = [mflops(n.kernels) for n in chosen]
    assert len(chosen) == len({n.key for n in chosen}) == len({n.space for n in chosen}) == 24
    drawn = (digits.random_space(rng) for _ in range(200))
    drawn_sizes = [mflops(network(digits, s, digits.random_subnet(s, rng)).kernels) for s in drawn]
    assert min(sizes) <= np.quantile(drawn_sizes, 0.05)
    assert max(sizes) >= np.quantile(drawn_sizes, 0.95)


def test_networks_that_calibrate_reach_beyond_the_others(onnxw):
    held_out, wide = (
        sorted(
            mflops(n.kernels)
            for n in random_networks(onnxw, np.random.default_rng(seed), 60, tilts=tilts)
        )
        for seed, tilts in ((0, TILTS), (1, WIDER_TILTS))
    )
    assert np.mean(wide[:4]) < np.mean(held_out[:4])
    assert np.mean(wide[-4:]) > np.mean(held_out[-4:])


def test_the_smallest_networks_are_smaller_than_drawn_ones_and_of_all_block_types(onnxw):
    smallest = smallest_networks(onnxw, 6)
    assert len({n.space.blocks[0] for n in smallest}) == len(onnxw.block_types) == 6
    sizes = [mflops(n.kernels) for n in smallest]
    assert sizes == sorted(sizes)
    drawn = random_networks(onnxw, np.random.default_rng(0), 200, smallest)
    assert sizes[0] < min(mflops(n.kernels) for n in drawn)
    assert smallest_networks(onnxw, 2) == smallest[:2]


def test_a_tilt_leads_to_small_or_large_subnets(digits, rng):
    small, middle, large = (
        np.median([mflops(random_network(digits, rng, tilt).kernels) for _ in range(30)])
        for tilt in (-4, 0, 4)
    )
    assert small < middle < large


def test_held_out_subnets_come_from_new_spaces(digits, rng):
    known = random_networks(digits, rng, 10)
    fresh = random_networks(digits, rng, 10, known)
    assert len({n.space for n in (*known, *fresh)}) == len({n.space for n in known}) + 10


def test_a_hyperspace_with_one_space_still_gives_new_subnets(digits, rng):
    stages = tuple(
        s
        if not s.searchable
        else Stage(name=s.name, widths=s.widths, depths=s.depths, stride=s.stride)
        for s in digits.stages
    )
    one = type(digits)(
        **{f: getattr(digits, f) for f in digits.__struct_fields__}
        | {"stages": stages, "block_types": digits.block_types[:1]}
    )
    assert one.num_spaces == 1
    known = random_networks(one, rng, 5)
    fresh = random_networks(one, rng, 5, known)
    assert len(fresh) == 5
    assert not {n.key for n in known} & {n.key for n in fresh}


def test_keys_follow_the_computation(digits, rng):
    space = digits.random_space(rng)
    small, large = digits.smallest_subnet(space), digits.largest_subnet(space)
    assert network(digits, space, small).key == network(digits, space, small).key
    assert network(digits, space, small).key != network(digits, space, large).key
