"""The language of block recipes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_spaceevo.hyperspace import BlockConfig, ConvStep, Recipe, make_divisible


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 8),
        (4, 8),
        (8, 8),
        (9, 16),  # 8 would lose over 10 %
        (11, 16),
        (12, 16),
        (16, 16),
        (17.7, 16),
        (17.8, 24),
        (18, 24),
        (19, 24),
        (20, 24),
        (24 * 1.5, 40),
        (16 * 0.5, 8),
        (48 * 0.5, 24),
        (304 * 1.5, 456),
        (36 // 4, 16),
        (100 // 4, 24),
        (1816 // 4, 456),
    ],
)
def test_make_divisible_rounds_as_published(value: float, expected: int) -> None:
    assert make_divisible(value) == expected


def test_make_divisible_takes_another_divisor() -> None:
    assert make_divisible(20, 16) == 32
    assert make_divisible(3, 4) == 4


@given(st.floats(0, 1e5), st.sampled_from([4, 8, 16]))
def test_make_divisible_gives_a_multiple_that_keeps_nine_tenths(value: float, divisor: int) -> None:
    rounded = make_divisible(value, divisor)
    assert rounded % divisor == 0
    assert rounded >= divisor
    assert rounded >= 0.9 * value
    assert rounded <= max(divisor, value + divisor)


def test_steps_end_with_the_shortcut() -> None:
    main = (ConvStep("a", 8, 16), ConvStep("b", 16, 16))
    shortcut = ConvStep("shortcut", 8, 16)
    assert Recipe(main, residual=True, shortcut=shortcut).steps == (*main, shortcut)
    assert Recipe(main, residual=True).steps == main


def test_a_block_config_is_a_frozen_hashable_value() -> None:
    config = BlockConfig("resnet", 16, 32, 3, 0.5, 2)
    same = BlockConfig("resnet", cin=16, cout=32, kernel_size=3, expand=0.5, stride=2)
    assert config == same
    assert len({config, same, dataclasses.replace(config, stride=1)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.cin = 8  # type: ignore[misc]
