"""Every subnet is itself: in the supernet, extracted, and read from a file, bit for bit."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_spaceevo.device import channels_last
from nni_spaceevo.errors import CodeError, ConfigError
from nni_spaceevo.hyperspace import load_hyperspace
from nni_spaceevo.network import StaticNetwork
from nni_spaceevo.quant import FP32, INT8, Precision, set_precision
from nni_spaceevo.supernet.model import Subnet, Supernet, resized
from nni_spaceevo.supernet.recalibration import recalibrate

from .tiny import OPTIONS, tiny_hyperspace, uniform, used_supernet

each_precision = pytest.mark.parametrize("precision", [FP32, INT8], ids=lambda p: p.name)
each_option = pytest.mark.parametrize("name", OPTIONS)
IMAGES = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@cache
def of_option(name: str, precision: Precision) -> Supernet:
    """A supernet all of one block type; tests may change its statistics."""
    hyperspace = tiny_hyperspace(OPTIONS[name])
    return used_supernet(hyperspace, uniform(hyperspace), precision)


@each_precision
@each_option
def test_a_subnet_computes_in_the_supernet_what_it_computes_extracted(name, precision):
    supernet, rng = of_option(name, precision), np.random.default_rng(0)
    for _ in range(6):
        code = supernet.hyperspace.random_subnet(supernet.space, rng)
        static = supernet.extract(code)
        assert torch.equal(static(IMAGES), supernet(IMAGES, code))


@each_precision
@each_option
def test_recalibrated_statistics_travel_with_the_extracted_subnet(name, precision):
    supernet, rng = of_option(name, precision), np.random.default_rng(1)
    code = supernet.hyperspace.random_subnet(supernet.space, rng)
    before = supernet(IMAGES, code)
    batches = [torch.randn(8, 1, 12, 12) * 3 + 1 for _ in range(2)]
    static = supernet.extract(code)
    recalibrate(static, batches, static)
    recalibrate(supernet, batches, lambda images: supernet(images, code))
    assert not torch.equal(supernet(IMAGES, code), before)
    assert torch.equal(static(IMAGES), supernet(IMAGES, code))
    assert torch.equal(supernet.extract(code)(IMAGES), static(IMAGES))


@each_precision
@each_option
def test_the_extracted_state_loads_strictly_into_a_static_network(name, precision):
    supernet, rng = of_option(name, precision), np.random.default_rng(2)
    hyperspace, space = supernet.hyperspace, supernet.space
    code = hyperspace.random_subnet(space, rng)
    static = supernet.extract(code)
    images = resized(IMAGES, code.resolution)
    for network in (StaticNetwork(hyperspace, space, code), Subnet(hyperspace, space, code)):
        network.load_state_dict(static.state_dict(), strict=True)
        set_precision(network, precision)
        # In one order in memory, for sums depend on it.
        network.to(memory_format=torch.channels_last)
        assert torch.equal(network.eval()(channels_last(images)), static(images))


@settings(max_examples=6)
@given(st.integers(0, 2**32))
def test_random_subnets_of_mixed_spaces_are_themselves_in_int8(seed):
    rng = np.random.default_rng(seed)
    hyperspace = tiny_hyperspace(*(OPTIONS[n] for n in OPTIONS if n.startswith("onnxw")))
    space = hyperspace.random_space(rng)
    supernet = used_supernet(hyperspace, space, INT8)
    code = hyperspace.random_subnet(space, rng)
    assert torch.equal(supernet.extract(code)(IMAGES), supernet(IMAGES, code))


@pytest.mark.slow
@each_precision
@pytest.mark.parametrize("preset", ["onnxw", "mobilew"])
def test_subnets_of_a_published_hyperspace_are_themselves(preset, precision):
    hyperspace = load_hyperspace(preset)
    rng = np.random.default_rng(5)
    space = hyperspace.random_space(rng)
    supernet = Supernet(hyperspace, space)
    set_precision(supernet, precision)
    codes = [hyperspace.smallest_subnet(space), hyperspace.random_subnet(space, rng)]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for code in codes:
            supernet.train()(images, code)
            assert torch.equal(supernet.eval().extract(code)(images), supernet(images, code))


def test_an_extracted_subnet_owns_its_weights():
    hyperspace = tiny_hyperspace()
    supernet = used_supernet(hyperspace, uniform(hyperspace))
    static = supernet.extract(supernet.largest)
    before = supernet(IMAGES, supernet.largest)
    with torch.no_grad():
        for parameter in static.parameters():
            parameter.zero_()
    assert torch.equal(supernet(IMAGES, supernet.largest), before)


def test_the_largest_subnet_uses_every_weight():
    hyperspace = tiny_hyperspace(OPTIONS["onnxw-mbv3_res"])
    supernet = Supernet(hyperspace, uniform(hyperspace))
    assert supernet(IMAGES, supernet.largest).shape == (3, 4)
    supernet(IMAGES, supernet.largest).sum().backward()
    unused = [n for n, p in supernet.named_parameters() if p.grad is None and p.ndim > 1]
    assert [n for n in unused if "shortcut" not in n] == []


def test_only_the_widths_of_the_spaces_windows_have_weights():
    hyperspace = tiny_hyperspace()
    narrow, wide = (Supernet(hyperspace, uniform(hyperspace, window=w)) for w in (0, 1))
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in wide.parameters())
    assert narrow.stages["stage2"].input_widths == (8, 16)


def test_images_of_any_size_are_resized_to_the_subnets_resolution():
    hyperspace = tiny_hyperspace()
    supernet = used_supernet(hyperspace, uniform(hyperspace))
    code = supernet.smallest
    assert code.resolution == 8
    assert torch.equal(supernet(IMAGES, code), supernet(resized(IMAGES, 8), code))
    assert resized(IMAGES, 12) is IMAGES


def test_a_subnet_of_another_space_is_refused():
    hyperspace = tiny_hyperspace()
    supernet = Supernet(hyperspace, uniform(hyperspace))
    with pytest.raises(CodeError, match="width 24; allowed"):
        supernet.extract(hyperspace.largest_subnet(uniform(hyperspace, window=1)))
    with pytest.raises(CodeError, match="belongs to hyperspace 'other'"):
        Supernet(hyperspace, uniform(tiny_hyperspace(name="other")))


def test_a_resolution_that_the_strides_do_not_fit_is_refused():
    for preset in ("onnxw", "mobilew"):
        load_hyperspace(preset).check_resolutions()
    hyperspace = tiny_hyperspace()
    odd = type(hyperspace)(
        **{f: getattr(hyperspace, f) for f in hyperspace.__struct_fields__}
        | {"resolutions": (8, 11)}
    )
    with pytest.raises(ConfigError, match=r"resolution 11 .* total stride 4 .* multiple of 2"):
        Supernet(odd, uniform(odd))
