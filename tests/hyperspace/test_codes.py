"""Codes as values: parsing, printing, comparing; the authors' codes unchanged."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_spaceevo.errors import CodeError
from nni_spaceevo.hyperspace import (
    BlockChoice,
    SpaceCode,
    SubnetCode,
    format_chain,
    parse_chain,
)

choices = st.builds(
    BlockChoice,
    kernel_size=st.integers(1, 9),
    width=st.integers(1, 4096),
    expand=st.floats(0, 64),
)
chains = st.lists(choices, min_size=1, max_size=8).map(tuple)
subnets = st.builds(
    SubnetCode,
    stages=st.lists(chains, min_size=1, max_size=9).map(tuple),
    resolution=st.integers(1, 1024),
)
indices = st.lists(st.tuples(st.integers(0, 35), st.integers(0, 35)), min_size=1, max_size=12)


@st.composite
def spaces(draw: st.DrawFn) -> SpaceCode:
    """Any space code that could belong to some hyperspace."""
    name = draw(st.from_regex(r"[A-Za-z][A-Za-z0-9_.]{0,12}", fullmatch=True))
    blocks, windows = zip(*draw(indices), strict=True)
    return SpaceCode(name, blocks, windows)


# ---- spaces -----------------------------------------------------------------------------------


def test_a_space_code_reads_block_types_then_windows() -> None:
    code = SpaceCode.parse("onnxw-151122-023231")
    assert code == SpaceCode("onnxw", (1, 5, 1, 1, 2, 2), (0, 2, 3, 2, 3, 1))


def test_a_space_code_goes_past_nine_with_letters() -> None:
    code = SpaceCode("big", (10, 35), (9, 11))
    assert str(code) == "big-az-9b"
    assert SpaceCode.parse("big-az-9b") == code


@given(spaces())
def test_printing_and_parsing_a_space_gives_it_back(code: SpaceCode) -> None:
    again = SpaceCode.parse(str(code))
    assert again == code
    assert hash(again) == hash(code)
    assert str(again) == str(code)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "onnxw",
        "onnxw-15",
        "onnxw-15-",
        "-15-15",
        "onnxw-1 5-15",
        "onnxw-1A-15",
        "9-1-1",
        "onnxw-1-1-1",
        "onnxw_1_1",
        None,
        7,
        b"onnxw-1-1",
    ],
    ids=repr,
)
def test_what_is_no_space_code_is_refused_with_the_form(text: object) -> None:
    form = re.escape("expected <hyperspace>-<block types>-<width windows>")
    with pytest.raises(CodeError, match=re.escape(repr(text)) + f": {form}"):
        SpaceCode.parse(text)  # type: ignore[arg-type]


def test_a_space_code_needs_a_window_for_every_block_type() -> None:
    with pytest.raises(CodeError, match="'onnxw': 2 block types and 1 width windows"):
        SpaceCode.parse("onnxw-15-0")


@pytest.mark.parametrize("index", [-1, 36])
def test_a_space_code_holds_one_digit_a_stage(index: int) -> None:
    with pytest.raises(CodeError, match="'x': indices must be 0 to 35"):
        SpaceCode("x", (index,), (0,))


def test_space_codes_hash_and_order_as_values() -> None:
    texts = ["onnxw-20-00", "mobilew-11-11", "onnxw-11-00", "onnxw-11-00"]
    codes = [SpaceCode.parse(t) for t in texts]
    assert len(set(codes)) == 3
    assert [str(c) for c in sorted(set(codes))] == ["mobilew-11-11", "onnxw-11-00", "onnxw-20-00"]


# ---- subnets ----------------------------------------------------------------------------------


def test_a_subnet_code_reads_stages_of_blocks() -> None:
    code = SubnetCode.parse("d1#2_k3#3#5_w16#16#24_e0#0.5#1.0_r160")
    stem = (BlockChoice(3, 16, 0.0),)
    stage = (BlockChoice(3, 16, 0.5), BlockChoice(5, 24, 1.0))
    assert code == SubnetCode((stem, stage), 160)


@given(subnets)
def test_printing_and_parsing_a_subnet_gives_it_back(code: SubnetCode) -> None:
    again = SubnetCode.parse(str(code))
    assert again == code
    assert hash(again) == hash(code)
    assert str(again) == str(code)


def test_equal_subnets_print_the_same() -> None:
    whole, decimal = (SubnetCode(((BlockChoice(3, 8, e),),), 32) for e in (1, 1.0))
    assert whole == decimal
    assert str(whole) == str(decimal) == "d1_k3_w8_e1.0_r32"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "d1_k3_w16_e0",
        "d1_k3_w16_e0_r",
        "d1_k3_w16_e0_rx",
        "k3_d1_w16_e0_r160",
        "onnxw-1-1",
        "d1_k3_w16_e0_r160 d1",
        "d1_k3_w16_e0_r-1",
        None,
        160,
    ],
    ids=repr,
)
def test_what_is_no_subnet_code_is_refused_with_the_form(text: object) -> None:
    with pytest.raises(CodeError, match=r"subnet code .*: expected d…_k…_w…_e…_r…"):
        SubnetCode.parse(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "d_k_w_e_r1",
        "dx_k3_w16_e0_r1",
        "d1_k3.5_w16_e0_r1",
        "d1_k3_w16_eNone_r1",
        "d1_k3_w16_enan_r1",
        "d1_k3_w16_einf_r1",
        "d1_k3_w16_e0_r" + "9" * 5000,
    ],
    ids=lambda text: text[:24],
)
def test_a_subnet_code_holds_numbers_only(text: str) -> None:
    with pytest.raises(CodeError, match="depths, kernels, widths and expands must be numbers"):
        SubnetCode.parse(text)


@pytest.mark.parametrize(
    "text", ["d-1#2_k3_w16_e0_r1", "d-1#3_k3#3_w16#16_e0#0_r1"], ids=lambda text: text[:5]
)
def test_a_subnet_code_has_no_negative_depth(text: str) -> None:
    with pytest.raises(CodeError, match=r"depths must not be negative, given \[-1, "):
        SubnetCode.parse(text)


def test_a_subnet_code_gives_every_choice_for_every_block() -> None:
    counts = re.escape("{'d': 3, 'k': 3, 'w': 2, 'e': 3}")
    with pytest.raises(CodeError, match=f"block counts differ: {counts}"):
        SubnetCode.parse("d1#2_k3#3#3_w16#16_e0#1#1_r160")


def test_subnet_codes_are_dictionary_keys() -> None:
    text = "d1_k3_w8_e1.0_r32"
    assert {SubnetCode.parse(text): 1}[SubnetCode.parse(text)] == 1
    assert SubnetCode.parse(text) < SubnetCode.parse(text.replace("r32", "r64"))


# ---- sub-stages -------------------------------------------------------------------------------


def test_a_sub_stage_is_written_as_in_the_published_files() -> None:
    text = "3#48#None_5#32#None"
    assert parse_chain(text) == (BlockChoice(3, 48, 0.0), BlockChoice(5, 32, 0.0))
    assert format_chain(parse_chain(text)) == text
    assert parse_chain("3#48#0") == parse_chain("3#48#None")


@pytest.mark.parametrize("text", ["3#96#1.5_7#80#0.5", "3#64#4_3#64#2.0", "7#288#8"])
def test_a_published_sub_stage_with_ratios_keeps_its_values(text: str) -> None:
    chain = parse_chain(text)
    assert [b.expand for b in chain] == [float(p.split("#")[2]) for p in text.split("_")]
    assert parse_chain(format_chain(chain)) == chain


@given(chains)
def test_formatting_and_parsing_a_sub_stage_gives_it_back(chain: tuple[BlockChoice, ...]) -> None:
    assert parse_chain(format_chain(chain)) == chain


@pytest.mark.parametrize(
    "text", ["", "3#4", "a#b#c", "3#4#5#6", "3#4#1_", "3#4#nan", "3#4#x", None], ids=repr
)
def test_what_is_no_sub_stage_is_refused_with_the_form(text: object) -> None:
    with pytest.raises(CodeError, match=r"sub-stage .*: expected k#w#e_k#w#e…"):
        parse_chain(text)  # type: ignore[arg-type]


def test_a_block_without_a_ratio_has_none() -> None:
    assert BlockChoice(3, 16, 0.0).expand_or_none is None
    assert BlockChoice(3, 16, 0.5).expand_or_none == 0.5
