"""Blocks as kernels: shapes, multiply-accumulates, parameters; held against published rows."""

from __future__ import annotations

import csv
import gzip
from functools import cache
from typing import NamedTuple

import pytest
from published import published_file

from nni_spaceevo.hyperspace import (
    BlockConfig,
    ElasticStage,
    Hyperspace,
    Kernel,
    block_kernels,
    chain_kernels,
    load_hyperspace,
    mflops,
    mparams,
    output_hw,
    parse_chain,
)

# Data of microsoft/Moonlit, SpaceEvo/data/block_lut (MIT licence, Copyright (c) Microsoft
# Corporation): hyperspace, stage, block, width window, sub-stage, cin, hw, MFLOPs, MParams.
GOLDEN = """
onnxw 2 0 3 3#96#None_5#80#None 64 48 28.2839 0.0509
onnxw 4 0 1 3#160#None_5#144#None_3#144#None 144 14 37.8076 0.1971
onnxw 5 0 3 3#288#None_3#288#None_3#240#None 112 10 13.0680 0.5301
onnxw 1 1 1 3#64#6_3#48#8 32 96 243.4499 0.0905
onnxw 3 1 3 3#128#8_3#128#8 96 24 98.4637 0.4705
onnxw 6 1 2 3#384#8 256 5 35.6864 1.4372
onnxw 2 2 3 5#96#8_3#96#8_3#96#8 48 56 340.5558 1.0527
onnxw 4 2 0 5#128#6_3#128#8_5#128#6 144 14 150.5852 1.9697
onnxw 5 2 2 3#240#4_3#256#4 112 10 22.6956 1.3054
onnxw 1 3 0 5#48#1.0_7#48#0.5_5#48#1.0 16 112 490.7213 0.1551
onnxw 3 3 3 7#128#0.5_3#112#0.5 64 24 41.6840 0.2786
onnxw 6 3 0 3#320#0.5 192 6 13.4554 0.3757
onnxw 2 4 0 7#48#1.5_3#48#0.5 64 48 165.0063 0.2765
onnxw 4 4 0 7#144#1.0_7#144#1.0 144 12 304.5934 2.1402
onnxw 5 4 2 3#256#1.5_5#272#1.5 144 12 220.7670 6.0534
onnxw 1 5 1 5#64#2_3#64#1_3#48#3 16 96 414.0564 0.1809
onnxw 3 5 1 5#112#1_3#112#4_7#112#1 80 24 188.1907 1.3091
onnxw 6 5 1 5#352#3 208 6 127.3559 3.5403
mobilew 2 0 3 7#56#None_3#48#None_5#48#None 40 40 11.1776 0.0294
mobilew 4 0 0 3#120#None_5#120#None_7#112#None 96 10 12.4976 0.1283
mobilew 5 0 4 3#256#None_3#256#None 136 10 6.8594 0.2788
mobilew 1 1 0 5#24#3_7#32#6 16 80 34.7136 0.0204
mobilew 3 1 0 5#72#6_3#56#6_7#64#6 64 24 37.9791 0.1954
mobilew 6 1 2 7#296#8_7#312#6 256 6 92.3691 2.5836
mobilew 2 2 1 3#40#6_7#32#8_7#32#6 32 48 55.9370 0.1707
mobilew 4 2 2 7#136#6_5#128#6_5#144#3 96 10 56.6415 1.1507
mobilew 5 2 2 3#240#8_7#256#3 112 10 28.2972 1.4811
mobilew 1 3 0 3#24#1.0_3#32#1.5_3#32#0.5 32 112 116.4083 0.0355
mobilew 3 3 3 3#88#1.5_5#88#1.5 72 20 71.0272 0.6825
mobilew 6 3 0 5#232#0.5 240 5 11.8080 0.4737
mobilew 2 4 4 7#64#3_3#64#1_3#64#3 40 48 235.7573 0.4230
mobilew 4 4 5 3#160#2_3#168#3 112 14 211.3940 1.1345
mobilew 5 4 0 5#208#2_3#192#4_5#192#2 152 10 123.2584 5.0853
mobilew 1 5 0 3#32#8_3#24#6 32 112 180.4841 0.0868
mobilew 3 5 4 3#96#3_5#96#3_3#88#8 40 24 36.7461 0.5896
mobilew 6 5 0 3#248#3_5#264#6 224 7 61.7567 2.5911
mobilew 2 6 0 7#32#8_7#24#3_7#24#6 40 56 71.2625 0.0551
mobilew 4 6 0 7#120#6_7#128#8 112 12 67.2261 0.4744
mobilew 5 6 0 7#192#3_7#216#8 112 14 46.8072 0.8515
""".strip().splitlines()
FIELDS = ("stage", "block", "width_window", "substage", "cin", "hw", "mflops", "mparams")
MFLOPS_WITHIN = 0.001
MPARAMS_WITHIN = 0.0003  # Theirs count the quantizers' scalars.


class Row(NamedTuple):
    """What a published row says of a sub-stage."""

    stage: int
    block: int
    window: int
    substage: str
    cin: int
    hw: int
    mflops: float
    mparams: float


def row(*fields: str) -> Row:
    """A row of text, its fields in the order of `FIELDS`."""
    kinds = (int, int, int, str, int, int, float, float)
    return Row(*(kind(field) for kind, field in zip(kinds, fields, strict=True)))  # type: ignore


@cache
def elastic_stage(hyperspace: str, stage: int, block: int, window: int) -> ElasticStage:
    space = load(hyperspace)
    chosen = space.stage(f"stage{stage}")
    return ElasticStage(
        stage=chosen, option=space.block_types[block], widths=chosen.windows[window]
    )


@cache
def load(hyperspace: str) -> Hyperspace:
    return load_hyperspace(hyperspace)


@cache
def block_cost(config: BlockConfig, hw: int) -> tuple[float, float, int]:
    """MFLOPs, MParams and output size of one block; most published rows share their blocks."""
    kernels = block_kernels(config, hw)
    return mflops(kernels), mparams(kernels), output_hw(config, hw)


# ---- one kernel -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "macs", "params"),
    [
        (Kernel("conv", 8, 4, 6, 3, 2), 6 * 4 * 9 * 16, 6 * 4 * 9),
        (Kernel("conv", 8, 4, 6, 3, norm=True), 6 * 4 * 9 * 64, 6 * 4 * 9 + 12),
        (Kernel("dwconv", 8, 6, 6, 5, 2), 6 * 25 * 16, 6 * 25),
        (Kernel("se", 8, 16, 16, squeezed=8), 2 * 16 * 8, 2 * 16 * 8 + 16 + 8),
        (Kernel("linear", 1, 16, 10), 160, 170),
        (Kernel("add", 8, 16, 16), 0, 0),
        (Kernel("pool", 8, 16, 16), 0, 0),
    ],
    ids=["conv", "conv-bn", "dwconv", "se", "linear", "add", "pool"],
)
def test_a_kernel_counts_multiply_accumulates_and_parameters(
    kernel: Kernel, macs: int, params: int
) -> None:
    assert kernel.macs == macs
    assert kernel.params == params


@pytest.mark.parametrize(
    ("hw", "stride", "expected"), [(224, 2, 112), (7, 1, 7), (7, 2, 4), (5, 2, 3), (1, 2, 1)]
)
def test_odd_sizes_round_up_when_halved(hw: int, stride: int, expected: int) -> None:
    assert Kernel("conv", hw, 8, 8, 3, stride).hw_out == expected
    assert output_hw(BlockConfig("resnet", 8, 8, 3, 1.0, stride), hw) == expected


def test_a_pool_ends_at_one_pixel() -> None:
    assert Kernel("pool", 7, 8, 8).hw_out == 1
    assert output_hw(BlockConfig("pool_conv", 8, 8), 7) == 1


def test_a_squeeze_is_two_convolutions_on_one_pixel_and_sums_are_none() -> None:
    squeeze, excite = Kernel("se", 14, 64, 64, squeezed=16).convolutions()
    assert (squeeze.hw, squeeze.cin, squeeze.cout, squeeze.activation) == (1, 64, 16, "relu")
    assert (excite.hw, excite.cin, excite.cout, excite.activation) == (1, 16, 64, "hsigmoid")
    conv = Kernel("conv", 14, 8, 8)
    assert conv.convolutions() == (conv,)
    assert Kernel("add", 14, 8, 8).convolutions() == ()


# ---- blocks and chains ------------------------------------------------------------------------


def test_a_block_is_its_main_path_then_shortcut_then_sum_with_sizes() -> None:
    config = BlockConfig("mbv3_res", 16, 24, 5, 4.0, 2, "hswish")
    assert block_kernels(config, 15) == (
        Kernel("conv", 15, 16, 64, activation="hswish", norm=True),
        Kernel("dwconv", 15, 64, 64, 5, 2, "hswish", norm=True),
        Kernel("se", 8, 64, 64, squeezed=16),
        Kernel("conv", 8, 64, 24, norm=True),
        Kernel("conv", 15, 16, 24, stride=2, norm=True),
        Kernel("add", 8, 24, 24),
    )


def test_an_identity_shortcut_costs_only_the_sum() -> None:
    *_, project, add = block_kernels(BlockConfig("resnet", 16, 16, 3, 1.0), 8)
    assert project.op == "conv"
    assert add == Kernel("add", 8, 16, 16, activation="relu")


def test_stacked_depthwise_convolutions_shrink_only_once_and_norm_only_the_last() -> None:
    kernels = block_kernels(BlockConfig("mbv2_k3_res", 16, 16, 7, 3.0, 2, "relu6"), 14)
    stack = [k for k in kernels if k.op == "dwconv"]
    assert [k.hw for k in stack] == [14, 7, 7]
    assert [k.norm for k in stack] == [False, False, True]
    assert sum(k.params for k in stack) == 3 * 48 * 9 + 2 * 48


def test_a_chain_passes_its_size_from_block_to_block() -> None:
    blocks = (
        BlockConfig("conv", 3, 16, 3, stride=2),
        BlockConfig("resnet", 16, 24, 3, 0.5, 2),
        BlockConfig("pool_conv", 24, 32),
        BlockConfig("linear", 32, 10),
    )
    kernels = chain_kernels(blocks, 30)
    assert [k.hw for k in kernels if k.op == "conv"] == [30, 15, 15, 8, 15, 1]
    assert kernels[-1] == Kernel("linear", 1, 32, 10)
    assert mflops(kernels) == sum(k.macs for k in kernels) / 1e6
    assert mparams(kernels) == sum(k.params for k in kernels) / 1e6
    assert chain_kernels((), 8) == ()


# ---- the published figures --------------------------------------------------------------------


@pytest.mark.parametrize("line", GOLDEN, ids=lambda line: "-".join(line.split()[:5]))
def test_a_golden_published_row_is_met(line: str) -> None:
    hyperspace, *fields = line.split()
    r = row(*fields)
    stage, chain = elastic_stage(hyperspace, *r[:3]), parse_chain(r.substage)
    stage.check(chain)
    assert r.cin in load(hyperspace).input_widths(stage.stage)
    kernels = chain_kernels(stage.blocks(r.cin, chain), r.hw)
    assert mflops(kernels) == pytest.approx(r.mflops, abs=MFLOPS_WITHIN)
    assert mparams(kernels) == pytest.approx(r.mparams, abs=MPARAMS_WITHIN)


def test_the_golden_rows_have_every_block_type_of_both_presets() -> None:
    covered = {(h, int(b)) for h, _, b, *_ in map(str.split, GOLDEN)}
    assert covered == {(h, b) for h, n in (("onnxw", 6), ("mobilew", 7)) for b in range(n)}


def check_published_row(hyperspace: str, r: Row) -> str | None:
    """What is wrong with our reading of a published row, or None."""
    space, stage = load(hyperspace), elastic_stage(hyperspace, *r[:3])
    chain = parse_chain(r.substage)
    stage.check(chain)
    assert r.cin in space.input_widths(stage.stage), r
    found_mflops = found_mparams = 0.0
    hw = r.hw
    for config in stage.blocks(r.cin, chain):
        flops, params, hw = block_cost(config, hw)
        found_mflops += flops
        found_mparams += params
    flops_fit = abs(found_mflops - r.mflops) <= MFLOPS_WITHIN
    params_fit = abs(found_mparams - r.mparams) <= MPARAMS_WITHIN
    return None if flops_fit and params_fit else f"{r}: {found_mflops:.4f}, {found_mparams:.4f}"


@pytest.mark.published
@pytest.mark.slow
@pytest.mark.parametrize(("hyperspace", "rows"), [("onnxw", 132_000), ("mobilew", 210_000)])
def test_every_published_row_is_met(hyperspace: str, rows: int) -> None:
    path = published_file(f"block_lut_{hyperspace}.csv.gz")
    sizes = {
        s.name: {load(hyperspace).input_hw(s, r) for r in load(hyperspace).distill_resolutions}
        for s in load(hyperspace).searchable
    }
    count, wrong = 0, []
    with gzip.open(path, "rt", newline="") as stream:
        for fields in csv.DictReader(stream):
            r = row(*(fields[k] for k in FIELDS))
            assert r.hw in sizes[f"stage{r.stage}"], r
            problem = check_published_row(hyperspace, r)
            wrong += [problem] if problem else []
            count += 1
    block_cost.cache_clear()
    assert not wrong, f"{len(wrong)} rows, the first: {wrong[:3]}"
    assert count == rows
