"""The published block types: which steps each recipe has, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_spaceevo.errors import ConfigError
from nni_spaceevo.hyperspace import (
    BLOCK_TYPES,
    BlockConfig,
    ConvStep,
    PoolStep,
    Recipe,
    SqueezeExciteStep,
    block_type,
    get_block_type,
    presets,
    recipe_of,
)
from nni_spaceevo.hyperspace.blocks import BlockType

TITLES = {
    "mbv1_dual": "MobileNetV1Dual",
    "mbv2": "MobileNetV2",
    "mbv2_res": "MobileNetV2Res",
    "mbv3_res": "MobileNetV3Res",
    "mbv2_k3_res": "MobileNetV2K3Res",
    "mbv3_k3_res": "MobileNetV3K3Res",
    "resnet": "ResNet",
    "resnet_se": "ResNetSE",
    "fused_mb_res": "FusedMBConvRes",
    "fused_mb_se_res": "FusedMBConvSERes",
    "conv": "ConvBnAct",
    "pool_conv": "FeatureMix",
    "linear": "Logits",
}
HEAD_AND_STEM = ("conv", "pool_conv", "linear")
ELASTIC = tuple(name for name in TITLES if name not in HEAD_AND_STEM)
WITH_SHORTCUT = tuple(name for name in ELASTIC if name != "mbv2")
WITH_SE = ("mbv3_res", "mbv3_k3_res", "resnet_se", "fused_mb_se_res")
INVERTED = ("mbv2", "mbv2_res", "mbv3_res", "mbv2_k3_res", "mbv3_k3_res")


def config(
    name: str, cin: int = 16, cout: int = 16, kernel: int = 3, **more: object
) -> BlockConfig:
    """A block with an expand ratio of 1 where its type has one."""
    more.setdefault("expand", 1.0 if BLOCK_TYPES[name].expands else None)
    return BlockConfig(name, cin, cout, kernel, **more)  # type: ignore[arg-type]


def names(recipe: Recipe) -> list[str]:
    return [step.name for step in recipe.steps]


def squeeze(recipe: Recipe) -> SqueezeExciteStep:
    (step,) = (s for s in recipe.main if isinstance(s, SqueezeExciteStep))
    return step


# ---- the registry -----------------------------------------------------------------------------


def test_every_published_block_type_is_declared_once() -> None:
    assert {name: kind.title for name, kind in BLOCK_TYPES.items()} == TITLES
    assert all(kind.name == name for name, kind in BLOCK_TYPES.items())
    assert presets() == ["mobilew", "onnxw"]


def test_an_unknown_block_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown block type 'mbv9'; known: conv, .*resnet_se"):
        get_block_type("mbv9")
    with pytest.raises(ConfigError, match="unknown block type 'mbv9'"):
        recipe_of(BlockConfig("mbv9", 8, 8))


def test_a_name_that_is_taken_is_not_overridden() -> None:
    before = BLOCK_TYPES["resnet"]
    with pytest.raises(ConfigError, match="block type 'resnet' is already registered"):
        block_type("resnet", "Mine", expands=False)(lambda c: Recipe(()))
    assert BLOCK_TYPES["resnet"] is before


def test_a_new_block_type_is_one_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, BlockType] = {}
    monkeypatch.setattr("nni_spaceevo.hyperspace.blocks.BLOCK_TYPES", known)

    @block_type("plain", "Plain", expands=False)
    def plain(c: BlockConfig) -> Recipe:
        return Recipe((ConvStep("conv", c.cin, c.cout, c.kernel_size, c.stride),))

    assert known["plain"].title == "Plain"
    assert names(recipe_of(BlockConfig("plain", 8, 16, 5, stride=2))) == ["conv"]


# ---- shortcuts --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_SHORTCUT)
@pytest.mark.parametrize(
    ("cout", "stride", "convolution"),
    [(16, 1, False), (24, 1, True), (16, 2, True), (24, 2, True)],
    ids=["identity-fits", "widths-differ", "strided", "both"],
)
def test_a_shortcut_has_a_convolution_where_the_identity_does_not_fit(
    name: str, cout: int, stride: int, convolution: bool
) -> None:
    recipe = recipe_of(config(name, cout=cout, stride=stride))
    assert recipe.residual
    expected = ConvStep("shortcut", 16, cout, 1, stride) if convolution else None
    assert recipe.shortcut == expected


@pytest.mark.parametrize(("cout", "stride"), [(24, 1), (16, 2)], ids=["widths-differ", "strided"])
def test_mobilenet_v2_has_no_shortcut_where_the_identity_does_not_fit(
    cout: int, stride: int
) -> None:
    recipe = recipe_of(config("mbv2", cout=cout, stride=stride))
    assert not recipe.residual
    assert recipe.shortcut is None
    assert recipe_of(config("mbv2")).residual


@pytest.mark.parametrize("name", HEAD_AND_STEM)
def test_stem_and_head_blocks_have_no_shortcut(name: str) -> None:
    recipe = recipe_of(config(name, kernel=1))
    assert not recipe.residual
    assert recipe.shortcut is None


@pytest.mark.parametrize("name", ELASTIC)
def test_only_resnet_blocks_activate_after_the_sum(name: str) -> None:
    recipe = recipe_of(config(name, activation="relu6"))
    assert recipe.activation == ("relu6" if name.startswith("resnet") else "none")


# ---- hidden widths ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", INVERTED)
def test_the_expand_convolution_is_left_out_where_it_would_keep_the_width(name: str) -> None:
    assert "expand" not in names(recipe_of(config(name, expand=1.0)))
    expand = recipe_of(config(name, expand=6.0)).main[0]
    assert expand == ConvStep("expand", 16, 96, activation="relu")


def test_the_expand_convolution_is_left_out_where_rounding_keeps_the_width() -> None:
    assert "expand" not in names(recipe_of(config("mbv2_res", expand=1.1)))


@pytest.mark.parametrize("name", ["fused_mb_res", "fused_mb_se_res"])
def test_a_fused_block_keeps_its_convolution_at_ratio_one(name: str) -> None:
    fused = recipe_of(config(name, cout=24, kernel=5, stride=2)).main[0]
    assert fused == ConvStep("fused", 16, 16, 5, 2, activation="relu")


@pytest.mark.parametrize(("ratio", "hidden"), [(0.5, 24), (1.0, 48), (1.5, 72)])
@pytest.mark.parametrize("name", ["resnet", "resnet_se"])
def test_a_bottleneck_is_as_wide_as_its_output_times_the_ratio(
    name: str, ratio: float, hidden: int
) -> None:
    recipe = recipe_of(config(name, cin=32, cout=48, kernel=5, stride=2, expand=ratio))
    assert recipe.main[0] == ConvStep("reduce", 32, hidden, activation="relu")
    assert recipe.main[1] == ConvStep("spatial", hidden, hidden, 5, 2, activation="relu")
    assert recipe.main[-1] == ConvStep("project", hidden, 48)


@pytest.mark.parametrize(
    ("name", "channels", "squeezed"),
    [
        ("mbv3_res", 384, 96),  # hidden // 4
        ("mbv3_k3_res", 384, 96),
        ("resnet_se", 480, 16),  # input // 4
        ("fused_mb_se_res", 384, 16),
    ],
)
def test_squeeze_widths_follow_the_published_rule(name: str, channels: int, squeezed: int) -> None:
    recipe = recipe_of(config(name, cin=64, cout=80, expand=6.0))
    assert squeeze(recipe) == SqueezeExciteStep("se", channels, squeezed)
    assert names(recipe).index("se") == len(recipe.main) - 2, "just before the projection"


@pytest.mark.parametrize("name", [n for n in ELASTIC if n not in WITH_SE])
def test_the_other_blocks_squeeze_nothing(name: str) -> None:
    assert "se" not in names(recipe_of(config(name)))


# ---- spatial convolutions ---------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "count"), [(3, 1), (5, 2), (7, 3)])
@pytest.mark.parametrize("name", ["mbv2_k3_res", "mbv3_k3_res"])
def test_a_k3_block_stacks_3x3_convolutions(name: str, kernel: int, count: int) -> None:
    recipe = recipe_of(config(name, kernel=kernel, stride=2, expand=3.0, activation="swish"))
    stack = [s for s in recipe.main if isinstance(s, ConvStep) and s.depthwise]
    assert [s.kernel_size for s in stack] == [3] * count
    assert [s.stride for s in stack] == [2] + [1] * (count - 1)
    assert [s.norm for s in stack] == [False] * (count - 1) + [True]
    assert [s.activation for s in stack] == ["none"] * (count - 1) + ["swish"]


def test_a_dual_block_strides_in_its_first_pair_and_widens_in_it() -> None:
    recipe = recipe_of(config("mbv1_dual", cout=24, kernel=5, stride=2))
    assert recipe.main == (
        ConvStep("depthwise1", 16, 16, 5, 2, depthwise=True, activation="relu"),
        ConvStep("pointwise1", 16, 24, activation="relu"),
        ConvStep("depthwise2", 24, 24, 5, depthwise=True, activation="relu"),
        ConvStep("pointwise2", 24, 24, activation="relu"),
    )


def test_feature_mix_pools_before_its_convolution() -> None:
    pool, conv = recipe_of(config("pool_conv", cout=24, kernel=1)).main
    assert isinstance(pool, PoolStep)
    assert conv == ConvStep("conv", 16, 24, activation="relu")


# ---- every recipe, any shape ------------------------------------------------------------------


@given(
    name=st.sampled_from(ELASTIC),
    cin=st.integers(1, 64).map(lambda n: 8 * n),
    cout=st.integers(1, 64).map(lambda n: 8 * n),
    kernel=st.sampled_from([3, 5, 7]),
    stride=st.sampled_from([1, 2]),
    ratio=st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 8.0]),
)
def test_widths_join_from_step_to_step_and_the_stride_is_taken_once(
    name: str, cin: int, cout: int, kernel: int, stride: int, ratio: float
) -> None:
    expand = ratio if BLOCK_TYPES[name].expands else None
    recipe = recipe_of(config(name, cin, cout, kernel, stride=stride, expand=expand))
    width, strided = cin, 1
    for step in recipe.main:
        if isinstance(step, SqueezeExciteStep):
            assert step.channels == width
            continue
        assert isinstance(step, ConvStep)
        assert step.cin == width
        assert not step.depthwise or step.cin == step.cout
        width, strided = step.cout, strided * step.stride
    assert (width, strided) == (cout, stride)
    assert len(set(names(recipe))) == len(recipe.steps), "step names are the module's names"
