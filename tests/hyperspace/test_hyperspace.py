"""Hyperspaces: presets, spaces, subnets, and one clear error for everything they cannot be."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from published import published_file

from nni_spaceevo.errors import CodeError, ConfigError
from nni_spaceevo.files import convert, packed_folder, plain, to_json, to_yaml
from nni_spaceevo.hyperspace import (
    BlockChoice,
    BlockOption,
    Hyperspace,
    SpaceCode,
    Stage,
    SubnetCode,
    load_hyperspace,
    presets,
)
from nni_spaceevo.hyperspace.blocks import BLOCK_TYPES

DIGITS_FILE = packed_folder("examples") / "digits" / "hyperspace.yaml"
HYPERSPACES = {name: load_hyperspace(name) for name in presets()} | {
    "digits": load_hyperspace(DIGITS_FILE)
}
ONNXW = HYPERSPACES["onnxw"]

# The five found spaces and ten SEQnets as released by microsoft/Moonlit, SpaceEvo (MIT licence,
# Copyright (c) Microsoft Corporation).
PUBLISHED_SPACES = {
    "pixel4": "mobilew-122222-155400",
    "pixel4-tiny": "mobilew-332160-134200",
    "pixel4-medium": "mobilew-112220-154410",
    "vnni": "onnxw-151122-023231",
    "vnni-large": "onnxw-121122-133333",
}
PUBLISHED_SUBNETS = {
    "pixel4-A0": "d1#1#2#2#2#2#2#1_k3#3#3#3#3#3#3#3#3#3#3#3#3"
    "_w16#16#32#32#64#64#96#96#144#144#192#192#216"
    "_e0#1.0#3.0#3.0#3.0#3.0#3.0#3.0#3.0#3.0#3.0#3.0#3.0_r160",
    "pixel4-A1": "d1#1#2#2#2#2#4#1_k3#3#3#3#3#3#7#3#3#3#3#3#5#3#3"
    "_w16#16#32#32#64#64#96#96#144#144#224#192#208#192#232"
    "_e0#1.0#3.0#3.0#3.0#3.0#3.0#3.0#3.0#3.0#6.0#6.0#6.0#3.0#3.0_r208",
    "pixel4-A2": "d1#1#2#2#2#3#4#1_k3#3#3#3#3#3#3#3#5#3#3#7#5#7#5#5"
    "_w16#16#40#32#64#72#96#96#152#160#152#200#224#200#200#248"
    "_e0#1.0#3.0#3.0#3.0#3.0#3.0#6.0#3.0#6.0#3.0#6.0#3.0#3.0#6.0#3.0_r224",
    "pixel4-A3": "d1#1#2#3#3#4#4#1_k3#3#3#3#3#3#5#7#3#3#3#3#3#5#3#3#3#5#3"
    "_w16#16#32#32#64#72#64#112#96#104#152#144#152#152#200#192#208#192#280"
    "_e0#1.0#8.0#3.0#3.0#6.0#3.0#8.0#3.0#6.0#6.0#6.0#3.0#3.0#6.0#8.0#6.0#6.0#6.0_r224",
    "pixel4-A4": "d1#2#2#3#4#4#5#1_k3#3#3#3#3#3#3#5#3#5#5#3#3#3#3#5#7#5#3#5#3#3"
    "_w24#16#24#32#32#72#64#64#112#96#104#104#152#144#144#152#224#216#208#224#208#296"
    "_e0#1.0#1.0#6.0#8.0#6.0#3.0#3.0#6.0#6.0#3.0#3.0#8.0#8.0#6.0#3.0#8.0#6.0#6.0#3.0#3.0#6.0"
    "_r224",
    "vnni-A0": "d1#1#2#2#2#2#2#1_k3#3#3#3#3#3#3#3#3#3#3#3#3"
    "_w16#16#32#32#64#64#112#112#144#144#240#240#320"
    "_e0#0.5#4.0#4.0#1.0#1.0#4.0#4.0#4.0#4.0#4.0#4.0#4.0_r160",
    "vnni-A1": "d1#1#2#2#3#2#3#1_k3#3#3#3#3#3#3#5#3#3#3#3#3#3#5"
    "_w16#16#32#32#64#80#128#112#112#144#176#304#304#256#368"
    "_e0#0.5#4.0#4.0#2.0#1.0#4.0#6.0#4.0#4.0#4.0#4.0#6.0#4.0#4.0_r192",
    "vnni-A2": "d1#1#2#2#4#4#4#1_k3#3#3#3#3#3#3#3#5#5#3#5#5#3#3#3#3#3#5"
    "_w16#16#32#32#64#64#112#112#112#128#144#144#160#160#288#272#288#256#320"
    "_e0#0.5#4.0#6.0#3.0#2.0#4.0#4.0#6.0#8.0#8.0#4.0#4.0#4.0#4.0#6.0#6.0#4.0#4.0_r208",
    "vnni-A3": "d1#1#2#2#3#4#4#1_k3#3#3#3#3#3#5#5#5#3#3#5#3#3#5#3#3#3"
    "_w16#32#32#48#80#80#144#128#112#144#176#144#144#272#288#272#240#320"
    "_e0#0.5#4.0#8.0#4.0#2.0#6.0#6.0#6.0#6.0#8.0#4.0#4.0#8.0#6.0#4.0#6.0#6.0_r224",
    "vnni-A4": "d1#1#3#3#4#5#4#2_k3#3#3#5#3#3#3#3#5#5#5#5#5#3#3#3#5#3#5#5#3#3#3"
    "_w16#32#32#48#32#64#80#80#128#128#144#128#160#144#144#144#176#256#272#272#272#336#320"
    "_e0#0.5#4.0#8.0#6.0#4.0#2.0#2.0#6.0#8.0#6.0#6.0#8.0#8.0#6.0#4.0#6.0#8.0#8.0#6.0#4.0#8.0#6.0"
    "_r224",
}
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
hyperspaces = st.sampled_from(list(HYPERSPACES.values()))


def space_of(subnet: str) -> SpaceCode:
    """The published space that a published subnet comes from."""
    code = PUBLISHED_SPACES[subnet.partition("-")[0]]
    return HYPERSPACES[code.partition("-")[0]].space(code)


# ---- presets and published codes --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"), [("onnxw", 95_551_488), ("mobilew", 1_185_901_920), ("digits", 20_736)]
)
def test_a_hyperspace_has_the_published_number_of_spaces(name: str, count: int) -> None:
    assert HYPERSPACES[name].num_spaces == count


def test_the_presets_are_the_published_hyperspaces() -> None:
    assert presets() == ["mobilew", "onnxw"]
    for name in presets():
        assert load_hyperspace(name).name == name
        assert [s.stride for s in HYPERSPACES[name].searchable] == [2, 2, 2, 1, 2, 1]
        assert [s.window_size for s in HYPERSPACES[name].searchable] == [2, 2, 3, 3, 5, 7]
        assert [s.name for s in HYPERSPACES[name].head] == ["final_expand", "feature_mix", "logits"]


@pytest.mark.parametrize("name", PUBLISHED_SPACES)
def test_a_published_space_round_trips(name: str) -> None:
    text = PUBLISHED_SPACES[name]
    space = HYPERSPACES[text.partition("-")[0]].space(text)
    assert str(space) == text


@pytest.mark.parametrize("name", PUBLISHED_SUBNETS)
def test_a_published_subnet_round_trips_and_fits_its_space(name: str) -> None:
    space, text = space_of(name), PUBLISHED_SUBNETS[name]
    subnet = HYPERSPACES[space.hyperspace].subnet(space, text)
    assert str(subnet) == text
    assert SubnetCode.parse(text) == subnet


@pytest.mark.published
def test_the_published_codes_above_are_the_released_ones() -> None:
    released = yaml.safe_load(published_file("published_spaces.yaml").read_text())
    spaces = released["specific_supernet_encoding_dict"]
    subnets = released["specific_subnet_encoding_dict"]
    assert {k.removeprefix("spaceevo@"): v for k, v in spaces.items()} == PUBLISHED_SPACES
    assert {k.removeprefix("SEQnet@"): v for k, (_, v) in subnets.items()} == PUBLISHED_SUBNETS


def test_the_digits_hyperspace_is_small_but_real(digits: Hyperspace) -> None:
    assert len(digits.searchable) >= 4
    assert len(digits.block_types) >= 4
    assert min(len(s.windows) for s in digits.searchable) >= 3
    assert len(digits.resolutions) == 2
    assert digits.num_spaces > 10_000


# ---- codes that do not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("onnxw-651122-023231", "stage1 block type 6; allowed 0 to 5"),
        ("onnxw-15112z-023231", "stage6 block type 35; allowed 0 to 5"),
        ("onnxw-151122-223231", "stage1 width window 2; allowed 0 to 1"),
        ("onnxw-151122-023234", "stage6 width window 4; allowed 0 to 3"),
        ("onnxw-15112-02323", "5 stages; onnxw has 6"),
        ("onnxw-1511222-0232311", "7 stages; onnxw has 6"),
        ("mobilew-122222-155400", "belongs to hyperspace 'mobilew', expected 'onnxw'"),
    ],
    ids=["block", "letter", "window", "last-window", "too-few", "too-many", "hyperspace"],
)
def test_a_space_that_does_not_fit_is_refused_by_stage(code: str, message: str) -> None:
    with pytest.raises(CodeError, match=f"^space {code}: {re.escape(message)}$"):
        ONNXW.space(code)
    with pytest.raises(CodeError, match=re.escape(message)):
        ONNXW.space(SpaceCode.parse(code))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("d1#1#2", "d1#3#2", "stage0: depth 3; allowed [1, 2]"),
        ("d1#1#2#2", "d1#1#1#3", "stage1: depth 1; allowed [2, 3, 4]"),
        ("_k3#3#3", "_k3#3#7", "stage1 (mbv2_res): kernel size 7; allowed [3, 5]"),
        ("_w16#16#32", "_w16#16#64", "stage1 (mbv2_res): width 64; allowed [32, 48]"),
        ("#240#320_e", "#256#304_e", "stage6 (mbv3_res): width 304; allowed [320, 336, 352, "),
        ("_e0#0.5#4.0", "_e0#0.5#3.0", "stage1 (mbv2_res): expand ratio 3.0; allowed [4.0, "),
        ("_e0#0.5", "_e1#0.5", "first_conv (conv): expand ratio 1.0; allowed [0.0]"),
        ("_r160", "_r161", "resolution 161; allowed [160, 176, 192, 208, 224]"),
        ("d1#1#2#2#2#2#2#1", "d1#1#2#2#2#2#3", "7 stages; onnxw has 8"),
    ],
    ids=[
        "stem-depth",
        "depth",
        "kernel",
        "width",
        "window",
        "expand",
        "no-expand",
        "resolution",
        "stages",
    ],
)
def test_a_subnet_that_does_not_fit_is_refused_by_stage(old: str, new: str, message: str) -> None:
    good = PUBLISHED_SUBNETS["vnni-A0"]
    bad = good.replace(old, new, 1)
    if "depth 3" in message:  # Two blocks more, which the other letters need as well.
        bad = re.sub(r"_([kwe])(\d+)", r"_\1\2#\2#\2", bad)
    assert bad != good
    with pytest.raises(CodeError, match=re.escape(message)):
        ONNXW.subnet(space_of("vnni-A0"), bad)


def test_a_subnet_of_another_space_is_refused() -> None:
    large = ONNXW.space(PUBLISHED_SPACES["vnni-large"])
    with pytest.raises(CodeError, match=r"stage1 \(mbv2_res\): width 32; allowed \[48, 64\]"):
        ONNXW.subnet(large, PUBLISHED_SUBNETS["vnni-A0"])


def test_an_unknown_stage_or_block_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CodeError, match="onnxw: no stage 'stage9'; stages: first_conv, stage0"):
        ONNXW.stage("stage9")
    with pytest.raises(CodeError, match="onnxw: unknown block type 'linear'; allowed: mbv1_dual"):
        ONNXW.option("linear")
    assert ONNXW.option("resnet_se") is ONNXW.block_types[4]
    assert ONNXW.stage("stage3") is ONNXW.searchable[2]


# ---- spaces -----------------------------------------------------------------------------------


@given(hyperspaces, seeds)
def test_a_random_space_prints_and_parses_to_itself(
    hyperspace: Hyperspace, rng: np.random.Generator
) -> None:
    space = hyperspace.random_space(rng)
    again = hyperspace.space(str(space))
    assert again == space
    assert hash(again) == hash(space)


@given(hyperspaces, seeds)
def test_parameters_lead_back_to_the_space(
    hyperspace: Hyperspace, rng: np.random.Generator
) -> None:
    space = hyperspace.random_space(rng)
    parameters = hyperspace.parameters(space)
    assert hyperspace.from_parameters(parameters) == space
    domain = hyperspace.search_space()
    assert list(domain) == list(parameters)
    assert all(value in domain[key]["_value"] for key, value in parameters.items())


@pytest.mark.parametrize("what", ["block", "window"])
@given(hyperspace=hyperspaces, rng=seeds)
def test_a_mutation_changes_exactly_one_stage_and_stays_valid(
    what: str, hyperspace: Hyperspace, rng: np.random.Generator
) -> None:
    space = hyperspace.random_space(rng)
    mutate = hyperspace.mutate_block if what == "block" else hyperspace.mutate_window
    mutant = hyperspace.space(mutate(space, rng))
    changed = {
        "block": sum(a != b for a, b in zip(space.blocks, mutant.blocks, strict=True)),
        "window": sum(a != b for a, b in zip(space.windows, mutant.windows, strict=True)),
    }
    assert changed.pop(what) == 1
    assert list(changed.values()) == [0]


def test_mutations_reach_every_other_value_of_every_stage(
    digits: Hyperspace, rng: np.random.Generator
) -> None:
    start = digits.random_space(rng)
    blocks = {digits.mutate_block(start, rng).blocks for _ in range(400)}
    windows = {digits.mutate_window(start, rng).windows for _ in range(400)}
    assert len(blocks) == 4 * (4 - 1)
    assert len(windows) == 4 * (3 - 1)


def test_a_space_with_nothing_else_to_choose_mutates_to_itself(
    digits: Hyperspace, rng: np.random.Generator
) -> None:
    data = plain(digits)
    data["block_types"] = data["block_types"][:1]
    for stage in data["stages"]:
        stage["window_size"] = None
    single = convert(data, Hyperspace, "single")
    (space,) = single.uniform_spaces()
    assert single.num_spaces == 1
    assert single.mutate_block(space, rng) == space
    assert single.mutate_window(space, rng) == space


@pytest.mark.parametrize(
    ("name", "count"), [("onnxw", 6 * 4), ("mobilew", 7 * 7), ("digits", 4 * 3)]
)
def test_uniform_spaces_have_one_block_type_and_one_window_throughout(
    name: str, count: int
) -> None:
    hyperspace = HYPERSPACES[name]
    spaces = list(hyperspace.uniform_spaces())
    assert len(spaces) == len(set(spaces)) == count
    for space in map(hyperspace.space, spaces):
        assert len(set(space.blocks)) == 1
        last = [len(s.windows) - 1 for s in hyperspace.searchable]
        most = max(space.windows)
        assert space.windows == tuple(min(most, n) for n in last)


def test_random_spaces_are_drawn_from_every_choice(
    digits: Hyperspace, rng: np.random.Generator
) -> None:
    drawn = [digits.random_space(rng) for _ in range(300)]
    for i in range(len(digits.searchable)):
        assert {s.blocks[i] for s in drawn} == set(range(4))
        assert {s.windows[i] for s in drawn} == set(range(3))


def test_width_windows_slide_by_one_width() -> None:
    stage = Stage(name="s", widths=(8, 16, 24, 32), window_size=2)
    assert stage.windows == ((8, 16), (16, 24), (24, 32))
    assert Stage(name="s", widths=(8, 16)).windows == ((8, 16),)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stage2/block_type", "mbv9", "stage2/block_type: 'mbv9'; allowed ['mbv1_dual', "),
        ("stage2/width_window", [32, 64], "stage2/width_window: [32, 64]; allowed [[32, 48], "),
        ("stage6/block_type", None, "stage6/block_type: None; allowed ['mbv1_dual', "),
    ],
    ids=["block-type", "window", "missing"],
)
def test_wrong_parameters_are_refused_by_key(key: str, value: object, message: str) -> None:
    parameters = ONNXW.parameters(ONNXW.space(PUBLISHED_SPACES["vnni"]))
    parameters[key] = value
    with pytest.raises(CodeError, match=re.escape(message)):
        ONNXW.from_parameters(parameters)


def test_parameters_are_readable() -> None:
    parameters = ONNXW.parameters(ONNXW.space("onnxw-151122-023231"))
    assert parameters["stage2/block_type"] == "fused_mb_res"
    assert parameters["stage2/width_window"] == [64, 80]
    assert len(parameters) == 12


# ---- subnets ----------------------------------------------------------------------------------


@given(hyperspaces, seeds)
def test_a_random_subnet_prints_and_parses_to_itself(
    hyperspace: Hyperspace, rng: np.random.Generator
) -> None:
    space = hyperspace.random_space(rng)
    subnet = hyperspace.random_subnet(space, rng)
    again = hyperspace.subnet(space, str(subnet))
    assert again == subnet
    assert hash(again) == hash(subnet)


@given(hyperspaces, seeds)
def test_every_subnet_lies_between_the_smallest_and_the_largest(
    hyperspace: Hyperspace, rng: np.random.Generator
) -> None:
    space = hyperspace.random_space(rng)
    small = hyperspace.subnet(space, hyperspace.smallest_subnet(space))
    large = hyperspace.subnet(space, hyperspace.largest_subnet(space))
    subnet = hyperspace.random_subnet(space, rng)
    assert small.resolution <= subnet.resolution <= large.resolution
    for least, chain, most in zip(small.stages, subnet.stages, large.stages, strict=True):
        assert len(least) <= len(chain) <= len(most)
        for block in chain:
            for field in ("kernel_size", "width", "expand"):
                low, value, high = (getattr(b, field) for b in (least[0], block, most[0]))
                assert low <= value <= high


@given(hyperspaces, seeds)
def test_the_blocks_of_a_subnet_join_from_image_to_classes(
    hyperspace: Hyperspace, rng: np.random.Generator
) -> None:
    space = hyperspace.random_space(rng)
    subnet = hyperspace.random_subnet(space, rng)
    stages = hyperspace.subnet_blocks(space, subnet)
    assert [name for name, _ in stages] == [s.name for s in hyperspace.stages]
    blocks = [b for _, chain in stages for b in chain]
    assert blocks[0].cin == hyperspace.in_channels
    assert all(a.cout == b.cin for a, b in itertools.pairwise(blocks))
    assert blocks[-1].type == "linear"
    for (_, chain), stage in zip(stages, hyperspace.stages, strict=True):
        assert [b.stride for b in chain] == [stage.stride] + [1] * (len(chain) - 1)


def test_draws_depend_on_the_generator_alone() -> None:
    draws = []
    for _ in range(2):
        rng = np.random.default_rng(7)
        space = ONNXW.random_space(rng)
        draws.append((space, ONNXW.random_subnet(space, rng), ONNXW.mutate_block(space, rng)))
    assert draws[0] == draws[1]


def test_stages_know_their_inputs() -> None:
    sizes = [ONNXW.input_hw(s, 224) for s in ONNXW.stages]
    assert sizes == [224, 112, 112, 56, 28, 14, 14, 7, 7, 7, 1]
    assert ONNXW.input_hw(ONNXW.stage("stage6"), 160) == 5
    assert ONNXW.input_widths(ONNXW.stage("first_conv")) == (3,)
    assert ONNXW.input_widths(ONNXW.stage("stage1")) == (16, 32)
    assert [s.name for s in ONNXW.elastic] == ["first_conv", *(f"stage{i}" for i in range(7))]


# ---- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HYPERSPACES)
def test_a_hyperspace_survives_yaml_and_keeps_its_fingerprint(name: str, tmp_path: Path) -> None:
    hyperspace = HYPERSPACES[name]
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(hyperspace))
    again = load_hyperspace(path)
    assert again == hyperspace
    assert hash(again) == hash(hyperspace)
    assert again.fingerprint == hyperspace.fingerprint


def test_fingerprints_tell_hyperspaces_apart(digits: Hyperspace) -> None:
    data = plain(digits)
    data["resolutions"] = [24, 40]
    assert convert(data, Hyperspace, "other").fingerprint != digits.fingerprint
    assert len({h.fingerprint for h in HYPERSPACES.values()}) == len(HYPERSPACES)
    assert to_json(digits).endswith("}\n")


@pytest.mark.parametrize("source", ["onnx", "missing.yaml", "/nowhere/h.yml"])
def test_what_is_neither_file_nor_preset_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match=f"'{source}': expected a YAML file or one of mobilew"):
        load_hyperspace(source)


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """An edit of the digits hyperspace: keys and indices, then the new value."""
    *parents, key, value = path

    def edit(data: Any) -> None:
        for parent in parents:
            data = data[parent]
        data[key] = value

    return edit


BAD = {
    "unknown-key": (put("nmae", "x"), "unknown field `nmae`; allowed keys: schema, name, "),
    "unknown-stage-key": (
        put("stages", 2, "widhts", [8]),
        "unknown field `widhts` - at `$.stages[2]`; allowed keys: name, widths, depths, ",
    ),
    "unknown-block-key": (
        put("block_types", 1, "kernels", [3]),
        "`kernels` - at `$.block_types[1]`; allowed keys: type, kernel_sizes, expands, activation",
    ),
    "unknown-key-of-a-fixed-block": (
        put("stages", 0, "block", "size", 3),
        "`size` - at `$.stages[0].block`; allowed keys: type, kernel_sizes, ",
    ),
    "wrong-schema": (put("schema", 2), "schema 2; this version reads 1"),
    "wrong-type-of-value": (
        put("resolutions", "x"),
        "Expected `array`, got `str` - at `$.resolutions`",
    ),
    "fraction-for-a-width": (
        put("stages", 2, "widths", [8.5]),
        "Expected `int`, got `float` - at `$.stages[2].widths[0]`",
    ),
    "unknown-block-type": (
        put("block_types", 0, "type", "mbv9"),
        "unknown block type 'mbv9'; known: conv, ",
    ),
    "unknown-fixed-block-type": (
        put("stages", 1, "block", "type", "mbv9"),
        "at `$.stages[1].block`",
    ),
    "window-too-large": (
        put("stages", 2, "window_size", 9),
        "stage 'stage1': window_size 9 out of range; allowed 1 to 4",
    ),
    "window-zero": (
        put("stages", 2, "window_size", 0),
        "stage 'stage1': window_size 0 out of range; allowed 1 to 4",
    ),
    "too-many-windows": (
        put("stages", 2, "widths", list(range(8, 60))),
        "51 width windows in stage 'stage1'; allowed 1 to 36",
    ),
    "widths-descend": (
        put("stages", 2, "widths", [16, 8]),
        "stage 'stage1': widths must be ascending and positive, given [16, 8]",
    ),
    "width-zero": (
        put("stages", 2, "widths", [0, 8]),
        "stage 'stage1': widths must be ascending and positive, given [0, 8]",
    ),
    "depth-zero": (
        put("stages", 2, "depths", [0, 1]),
        "stage 'stage1': depths must be ascending and positive, given [0, 1]",
    ),
    "no-depths": (put("stages", 2, "depths", []), "stage 'stage1': depths must be ascending"),
    "stride-three": (
        put("stages", 2, "stride", 3),
        "stage 'stage1': stride must be 1 or 2, given 3",
    ),
    "even-kernel": (
        put("block_types", 0, "kernel_sizes", [3, 4]),
        "block type 'mbv2_res': kernel_sizes must be odd, given [3, 4]",
    ),
    "no-kernels": (
        put("block_types", 0, "kernel_sizes", []),
        "block type 'mbv2_res': kernel_sizes must be odd, given []",
    ),
    "kernel-twice": (
        put("block_types", 0, "kernel_sizes", [3, 3]),
        "block type 'mbv2_res': kernel_sizes must differ, given [3, 3]",
    ),
    "k3-of-one": (
        put("block_types", 1, {"type": "mbv2_k3_res", "kernel_sizes": [1], "expands": [2]}),
        "block type 'mbv2_k3_res': kernel_sizes must be at least 3",
    ),
    "expands-missing": (
        put("block_types", 0, "expands", []),
        "block type 'mbv2_res' needs expands; given []",
    ),
    "expands-too-many": (
        put("block_types", 0, {"type": "mbv1_dual", "expands": [2]}),
        "block type 'mbv1_dual' takes no expands; given [2.0]",
    ),
    "expand-negative": (
        put("block_types", 0, "expands", [-1]),
        "block type 'mbv2_res': expands must be positive, given [-1.0]",
    ),
    "expand-nan": (
        put("block_types", 0, "expands", [float("nan")]),
        "block type 'mbv2_res': expands must be positive, given [nan]",
    ),
    "unknown-activation": (
        put("block_types", 0, "activation", "gelu"),
        "block type 'mbv2_res': unknown activation 'gelu'; known: none, relu, ",
    ),
    "block-type-twice": (
        put("block_types", 1, {"type": "mbv2_res", "expands": [2]}),
        "hyperspace 'digits': block type 'mbv2_res' given twice",
    ),
    "stage-twice": (
        put("stages", 3, "name", "stage1"),
        "hyperspace 'digits': stage name 'stage1' given twice",
    ),
    "no-stages": (put("stages", []), "at least one searchable stage and one block type needed"),
    "no-block-types": (put("block_types", []), "one block type needed"),
    "name-with-dash": (put("name", "my-own"), "hyperspace name 'my-own': expected a letter, "),
    "name-with-blank": (put("name", " digits"), "hyperspace name ' digits': expected a letter, "),
    "no-channels": (put("in_channels", 0), "in_channels must be positive, given 0"),
    "no-resolutions": (put("resolutions", []), "resolutions must be ascending, given []"),
    "resolutions-descend": (
        put("distill_resolutions", [32, 24]),
        "distill_resolutions must be ascending, given [32, 24]",
    ),
    "headless": (
        put("stages", -1, {"name": "last", "widths": [10], "block": {"type": "conv"}}),
        "the last stage must be a fixed 'linear'",
    ),
    "nothing-pooled": (
        put("stages", -2, "block", {"type": "conv"}),
        "no 'pool_conv' before the last stage",
    ),
    "head-block-in-the-middle": (
        put("stages", 1, "block", {"type": "pool_conv"}),
        "block type 'pool_conv' belongs in the head",
    ),
    "head-block-to-choose": (
        put("block_types", 0, {"type": "linear"}),
        "block type 'linear' belongs in the head",
    ),
    "head-with-a-choice": (
        put("stages", -1, "widths", [10, 20]),
        "stage 'logits' of the head must have one width, depth, kernel size and expand ratio",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_file_gives_one_error_with_file_and_key(case: str, tmp_path: Path) -> None:
    edit, message = BAD[case]
    data = copy.deepcopy(yaml.safe_load(DIGITS_FILE.read_text()))
    edit(data)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError) as caught:
        load_hyperspace(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_file_without_a_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(re.sub(r"(?m)^name: digits$", "", DIGITS_FILE.read_text()))
    with pytest.raises(ConfigError, match=r"mine\.yaml: .*missing required field `name`"):
        load_hyperspace(path)


def test_records_made_in_python_are_checked_alike() -> None:
    with pytest.raises(ConfigError, match="kernel_sizes must be odd, given \\[2\\]"):
        BlockOption(type="mbv1_dual", kernel_sizes=(2,))
    option = BlockOption(type="mbv1_dual", kernel_sizes=(3, 5))
    assert option.expand_choices == (0.0,)
    config = option.config(16, BlockChoice(5, 24, 0.0), 2)
    assert (config.cin, config.cout, config.expand, config.stride) == (16, 24, None, 2)


def test_the_hyperspace_of_the_docs_reads(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "hyperspace.md").read_text(encoding="utf-8")
    path = tmp_path / "pets.yaml"
    path.write_text(re.findall(r"```yaml\n(.*?)```", text, re.S)[0])
    hyperspace = load_hyperspace(path)
    assert hyperspace.num_spaces == 16
    assert str(hyperspace.space("pets-01-10")) == "pets-01-10"
    for name in BLOCK_TYPES:
        assert f"`{name}`" in text
