from __future__ import annotations

import pytest
from msgspec import structs

from nni_spaceevo.errors import PredictorError
from nni_spaceevo.hyperspace import BlockConfig, Kernel, PlacedBlock
from nni_spaceevo.latency.graph import RANGES
from nni_spaceevo.latency.lowering import (
    NEVER_NEGATIVE,
    SUM,
    Lowering,
    RuntimeKernel,
    lowering_of,
)

from .conftest import LOWERING

CONV = ("Conv:int8",)


def test_what_is_free_costs_nothing_of_its_own():
    plain = LOWERING.lower(Kernel("conv", 14, 16, 32, 3, 2))
    assert plain == (RuntimeKernel("conv", 14, 16, 32, 3, 2),)
    for activation in ("relu", "relu6"):
        assert LOWERING.lower(Kernel("conv", 14, 16, 32, 3, 2, activation)) == plain


@pytest.mark.parametrize("activation", ["swish", "hswish"])
def test_other_activations_are_kernels_at_the_output_size(activation):
    main, after = LOWERING.lower(Kernel("dwconv", 15, 24, 24, 5, 2, activation))
    assert main.type == "dwconv"
    assert after == RuntimeKernel(activation, 8, 24, 24)


def test_an_activation_computed_within_stays_part_of_the_kernel():
    lowering = lowering_of({"conv": CONV, "conv+hswish": CONV, "conv+relu": CONV})
    (part,) = lowering.lower(Kernel("conv", 14, 16, 32, 3, 2, "hswish"))
    assert part == RuntimeKernel("conv", 14, 16, 32, 3, 2, activation="hswish")
    assert part.unit == "conv+hswish"


def test_operators_tell_free_own_and_within_apart():
    lowering = lowering_of(
        {
            "conv": CONV,
            "conv+relu": CONV,
            "conv+relu6": (*CONV, "Clip:float32"),
            "conv+swish": (*CONV, "Sigmoid:int8", "Mul:int8"),
            "conv+hswish": CONV,
            "conv+hsigmoid": ("FusedConv:float32",),
        }
    )
    assert lowering.free == {"conv": ("relu",)}
    assert lowering.own_kernel == {"conv": ("relu6", "swish")}
    assert lowering.operators == {
        "conv": CONV,
        "relu6": ("Clip:float32",),
        "swish": ("Sigmoid:int8", "Mul:int8"),
        "conv+hswish": CONV,
        "conv+hsigmoid": ("FusedConv:float32",),
    }


def test_pointwise_convolution_is_a_kernel_of_its_own():
    assert LOWERING.lower(Kernel("conv", 7, 8, 16))[0].type == "conv1x1"
    assert LOWERING.lower(Kernel("conv", 7, 8, 16, 3))[0].type == "conv"


def test_squeeze_excite_keeps_its_inner_width():
    assert LOWERING.lower(Kernel("se", 7, 32, 32, squeezed=8)) == (
        RuntimeKernel("se", 7, 32, 32, squeezed=8),
    )


def test_unknown_operators_and_activations_are_refused_by_name():
    with pytest.raises(PredictorError, match=r"'lstm'.*known: conv, dwconv"):
        LOWERING.lower(Kernel("lstm", 7, 8, 8))
    with pytest.raises(PredictorError, match=r"'conv\+gelu'.*hswish"):
        LOWERING.lower(Kernel("conv", 7, 8, 8, 3, activation="gelu"))


def test_runtime_ops_count_every_node():
    kernels = [Kernel("conv", 7, 8, 16, activation="swish"), Kernel("add", 7, 16, 16)]
    found = LOWERING.runtime_ops(kernels)
    assert found == {"QLinearConv": 1, "QLinearSigmoid": 1, "QLinearMul": 1, "QLinearAdd": 1}
    nodes = sum(LOWERING.nodes(part) for k in kernels for part in LOWERING.lower(k))
    assert nodes == sum(found.values())


def test_float_operators_are_told():
    assert LOWERING.in_float("hswish") == ("HardSwish:float32",)
    assert LOWERING.in_float("swish") == ()


def test_a_device_measured_by_blocks_lowers_to_whole_blocks():
    block = PlacedBlock(BlockConfig("mbv2_res", 16, 24, 5, 6.0, 2, "relu6"), 28)
    (part,) = Lowering(whole_blocks=True).lower_block(block)
    assert (part.hw, part.cin, part.cout, part.kernel_size, part.stride) == (28, 16, 24, 5, 2)
    assert (part.activation, part.expand) == ("relu6", 6.0)


def by_neighbours(**fields) -> Lowering:
    return structs.replace(LOWERING, **fields)


def test_padded_convolutions_are_told_that_their_input_is_never_negative():
    lowering = by_neighbours(positive=("conv", "dwconv"))
    block = PlacedBlock(BlockConfig("resnet", 16, 32, 3, stride=2, expand=1, activation="relu"), 8)
    first, padded, *others = lowering.lower_block(block)
    assert padded == RuntimeKernel("conv", 8, 32, 32, 3, 2, positive=True)
    assert not any(k.positive for k in (first, *others))
    # Of what a block reads nothing is known, and hswish has negative results.
    mbv1 = BlockConfig("mbv1_dual", 16, 16, 3, activation="relu")
    told = [k.positive for k in lowering.lower_block(PlacedBlock(mbv1, 8)) if k.type == "dwconv"]
    assert told == [False, True]
    mbv3 = BlockConfig("mbv3_res", 16, 16, 3, expand=4, activation="hswish")
    assert not any(k.positive for k in lowering.lower_block(PlacedBlock(mbv3, 8)))
    # A device to which it makes no difference does not ask.
    assert not any(k.positive for k in LOWERING.lower_block(block))


def test_what_is_never_negative_has_no_zero_point_in_files():
    assert {name: zero_point for name, (_, zero_point) in RANGES.items()} == dict.fromkeys(
        NEVER_NEGATIVE, 0
    )


@pytest.mark.parametrize("kind", ["mbv2_res", "resnet", "fused_mb_res", "mbv1_dual"])
@pytest.mark.parametrize(("cin", "stride"), [(16, 1), (16, 2), (32, 1)])
def test_sums_are_computed_where_the_main_path_ends(kind, cin, stride):
    lowering = by_neighbours(
        operators={**LOWERING.operators, "conv1x1+sum": CONV},
        sums_within=("conv1x1", "conv"),
        sums_in_main=True,
    )
    expand = None if kind == "mbv1_dual" else 2
    config = BlockConfig(kind, cin, 32, 3, stride=stride, expand=expand, activation="relu")
    parts = lowering.lower_block(PlacedBlock(config, 8))
    (place,) = (i for i, k in enumerate(parts) if k.activation == SUM)
    has_shortcut = (cin, stride) != (32, 1)
    assert place == len(parts) - 1 - has_shortcut
    assert parts[place].stride == 1
    # Predictors of before were fitted with the sum in the very last.
    before = structs.replace(lowering, sums_in_main=False).lower_block(PlacedBlock(config, 8))
    assert before[-1].activation == SUM


def test_squeeze_excite_takes_the_activation_before_it_along():
    block = PlacedBlock(BlockConfig("mbv3_res", 16, 16, 3, expand=4, activation="hswish"), 8)
    alone = LOWERING.lower_block(block)
    joined = by_neighbours(within_se=("hswish",)).lower_block(block)
    kinds = ["conv1x1", "hswish", "dwconv", "se", "conv1x1", "add"]
    assert [k.type for k in joined] == kinds
    assert [k.type for k in alone] == [*kinds[:3], "hswish", *kinds[3:]]
    (se,) = (k for k in joined if k.type == "se")
    assert (se.unit, se.squeezed) == ("se+hswish", 16)
    # After an activation that is free there is nothing to take along.
    resnet = BlockConfig("resnet_se", 16, 16, 3, expand=1, activation="relu")
    units = [
        k.unit for k in by_neighbours(within_se=("hswish",)).lower_block(PlacedBlock(resnet, 8))
    ]
    assert "se" in units


def test_weights_are_those_of_the_abstract_kernels():
    block = PlacedBlock(BlockConfig("mbv3_res", 16, 16, 3, expand=4), 8)
    of_kernels = [RuntimeKernel("conv1x1", 8, 16, 64), RuntimeKernel("dwconv", 8, 64, 64, 3)]
    for runtime, kernel in zip(of_kernels, block.kernels, strict=False):
        # Those have BatchNorm too.
        assert runtime.weights == kernel.params - 2 * kernel.cout
    assert RuntimeKernel("se", 8, 64, 64, squeezed=16).weights == 2 * 64 * 16
    assert RuntimeKernel("add", 8, 64, 64).weights == RuntimeKernel("pool", 8, 64, 64).weights == 0


def test_keys_tell_all_kernels_apart():
    variants = [
        RuntimeKernel("conv", 1, 2, 3, 4, 5, 6),
        RuntimeKernel("dwconv", 1, 2, 3, 4, 5, 6),
        RuntimeKernel("conv", 1, 2, 3, 4, 5, 6, "hswish"),
        RuntimeKernel("conv", 1, 2, 3, 4, 5, 6, "hswish", 1.5),
        RuntimeKernel("conv", 1, 2, 3, 4, 5, 7),
        RuntimeKernel("conv", 1, 2, 3, 4, 5, 6, positive=True),
    ]
    assert len({k.key for k in variants}) == len(variants)
    assert variants[0].key == "conv/1/2/3/4/5/6"
