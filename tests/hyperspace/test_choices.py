"""Subnet codes and samples are the same subnets, written twice."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from supernet.tiny import tiny_hyperspace, uniform

from nni_spaceevo.errors import CodeError
from nni_spaceevo.hyperspace import SubnetChoices, load_hyperspace

TINY = tiny_hyperspace()
CHOICES = SubnetChoices(TINY, uniform(TINY))
PRESETS = [load_hyperspace(name) for name in ("onnxw", "mobilew")]


@st.composite
def spaces(draw):
    """A space of the tiny hyperspace or of a preset, and a generator."""
    hyperspace = draw(st.sampled_from([TINY, *PRESETS]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return hyperspace, hyperspace.random_space(rng), rng


def random_sample(choices, rng):
    return {name: values[rng.integers(len(values))] for name, values in choices.values.items()}


@given(spaces())
def test_a_subnet_is_its_sample_and_the_sample_the_subnet(case):
    hyperspace, space, rng = case
    choices = SubnetChoices(hyperspace, space)
    code = hyperspace.random_subnet(space, rng)
    sample = choices.sample(code)
    assert sample.keys() == choices.values.keys()
    assert choices.subnet(sample) == code
    assert choices.subnet(json.loads(json.dumps(sample))) == code


@given(spaces())
def test_every_combination_is_a_subnet_of_the_space(case):
    hyperspace, space, rng = case
    choices = SubnetChoices(hyperspace, space)
    sample = random_sample(choices, rng)
    code = choices.subnet(sample)
    assert hyperspace.subnet(space, str(code)) == code
    again = choices.sample(code)
    assert choices.subnet(again) == code
    # Whatever differs belongs to a block that is not there.
    for name in (name for name in sample if again[name] != sample[name]):
        stage, block, _ = name.split("/")
        assert int(block.removeprefix("block")) > again.get(f"{stage}/depth", 1)
        assert again[name] == choices.values[name][0]


def test_the_samples_of_a_small_space_are_all_its_subnets():
    choices = SubnetChoices(TINY, uniform(TINY, block=1))
    codes = {
        choices.subnet(dict(zip(choices.values, values, strict=True)))
        for values in product(*choices.values.values())
    }
    first, block = 2, 2 * 2
    assert len(codes) == first * (block + block**2) * (block + block**3) * len(TINY.resolutions)
    assert all(choices.subnet(choices.sample(code)) == code for code in codes)


def test_what_has_one_value_is_no_choice():
    choices = SubnetChoices(TINY, uniform(TINY, block=1))
    assert "stage1/block1/kernel_size" not in choices.values
    assert choices.values["stage1/block1/expand"] == (0.5, 1.0)
    assert "first_conv/depth" not in choices.values
    assert CHOICES.values["stage2/depth"] == (1, 3)
    assert CHOICES.values["stage2/block3/width"] == (16, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage1/block1/width": 32}, r"stage1/block1/width: 32; allowed \[8, 16\]"),
        ({"stage1/depth": "deep"}, r"stage1/depth: 'deep'; allowed \[1, 2\]"),
        ({"resolution": 9}, r"resolution: 9; allowed \[8, 12\]"),
    ],
)
def test_a_wrong_value_is_refused_by_name(change, message):
    sample = CHOICES.sample(TINY.smallest_subnet(uniform(TINY)))
    with pytest.raises(CodeError, match=message):
        CHOICES.subnet({**sample, **change})


def test_a_missing_choice_is_refused_by_name():
    sample = CHOICES.sample(TINY.smallest_subnet(uniform(TINY)))
    del sample["stage2/depth"]
    with pytest.raises(CodeError, match="stage2/depth: missing"):
        CHOICES.subnet(sample)


def test_a_subnet_of_another_space_is_refused():
    other = TINY.largest_subnet(uniform(TINY, window=1))
    with pytest.raises(CodeError, match="width 24; allowed"):
        CHOICES.sample(other)
