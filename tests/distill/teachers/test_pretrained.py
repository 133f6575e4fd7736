"""Pretrained teachers: features of the network itself, of images as it knows them."""

import sys

import pytest
import torch
from torch import nn

from nni_spaceevo.distill.config import PretrainedConfig
from nni_spaceevo.distill.teachers import check_teacher, pretrained
from nni_spaceevo.distill.teachers.pretrained import ImageAdapter, pretrained_teacher
from nni_spaceevo.errors import ConfigError
from nni_spaceevo.hyperspace import load_hyperspace
from nni_spaceevo.testing import synthetic_hyperspace

from .test_models import needs_lite
from .test_protocol import Blur
from .tiny import NODES, WIDTHS, grey_images, trained_tiny

OWN = """
from distill.teachers.test_protocol import Blur
from distill.teachers.tiny import trained_tiny as tiny

def blur():
    return Blur()

def number():
    return 3

def shifted():
    import torch

    class Shifted(type(tiny())):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.ones(3, 1, 1))

        def forward(self, images):
            return super().forward(images + self.shift)

    return Shifted()
"""


# Of MobileNetV2, which has no four blocks of stride 2.
STAGES = {
    "first_conv": "features.0",
    **{f"stage{i}": f"features.1.conv.{i - 1}" for i in (1, 2, 3)},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own_teacher.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "own_teacher", raising=False)
    return tmp_path


def teacher(folder, hyperspace=None, model="own_teacher:tiny", **changes):
    config = PretrainedConfig(model=model, **changes)
    data = grey_images()
    return pretrained_teacher(config, hyperspace or synthetic_hyperspace(), data, folder, 0)


def test_an_own_module_is_read_where_its_stages_end(folder):
    found = teacher(folder)
    assert (found.nodes, found.widths) == (NODES, WIDTHS)
    assert found.source == "own_teacher:tiny, weights of its own"
    assert not any(p.requires_grad for p in found.parameters())
    assert len(check_teacher(found, synthetic_hyperspace(), grey_images())) == 3


def test_a_teacher_moves_to_a_device_with_all_that_it_has(folder):
    found = teacher(folder, model="own_teacher:shifted")
    images = grey_images().test_batch(torch.arange(2), 16)
    found.stage_features(images, 1)
    # A device that is everywhere, and that computes shapes alone.
    found.to("meta")
    assert [f.device.type for f in found.stage_features(images.to("meta"), 1)] == ["meta"] * 2


def test_features_are_those_of_the_network_on_normalized_colours(folder, monkeypatch):
    monkeypatch.setattr(pretrained, "_BATCH", 3)
    data, network = grey_images(), trained_tiny()
    images = data.test_batch(torch.arange(8), 16)
    pixels = data.test_images[:8].float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    stem = network.stem((pixels.expand(-1, 3, -1, -1) - mean) / std)
    expected = [stem, *(network.blocks[:i](stem) for i in (1, 3, 4))]
    found = teacher(folder)
    for stage in range(3):
        before, after = found.stage_features(images, stage)
        torch.testing.assert_close(before, expected[stage], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after, expected[stage + 1], rtol=1e-4, atol=1e-4)


def test_images_normalized_as_the_network_wants_them_pass_unchanged():
    data = grey_images()
    images = data.test_batch(torch.arange(2), 8)
    assert torch.equal(ImageAdapter(1, data.mean, data.std, data)(images), images)


def test_the_fingerprint_follows_whatever_decides_the_features(folder):
    nodes = dict(zip(("first_conv", "stage1", "stage2", "stage3"), ("stem", *NODES), strict=False))
    found = [
        teacher(folder).fingerprint,
        teacher(folder, stages=nodes).fingerprint,
        teacher(folder, mean=(0.5,)).fingerprint,
        teacher(
            folder, model="torchvision:mobilenet_v2", weights="random", stages=STAGES
        ).fingerprint,
    ]
    assert len(set(found)) == 4
    assert teacher(folder).fingerprint == found[0]


def test_random_weights_follow_the_seed_and_leave_torchs_generator_alone(folder):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    a, b = (
        teacher(folder, model="torchvision:mobilenet_v2", weights="random", stages=STAGES)
        for _ in range(2)
    )
    assert a.fingerprint == b.fingerprint
    assert "RANDOM" in a.source
    assert torch.equal(torch.rand(1), expected)


def test_too_few_stages_say_which_are_missing_and_what_there_is(folder):
    with pytest.raises(
        ConfigError,
        match=r"own_teacher:tiny: too few stages: stage1 end at stride 4, where it has 0 block "
        r"ends; it has \d at stride 2.*name a node for each stage",
    ):
        teacher(folder, load_hyperspace("onnxw"))


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"stage1": "blocks.1"}, "stages has stage1; expected first_conv, stage1, stage2, stage3"),
        (
            {"first_conv": "x", **{f"stage{i}": f"blocks.{i}" for i in (1, 2, 3)}},
            r"first_conv ends at stride 2, which is 4 px of 8; node 'x|no node 'x'",
        ),
        (
            {"first_conv": "blocks.7", **{f"stage{i}": f"blocks.{i}" for i in (1, 2, 3)}},
            r"no node 'blocks\.7'; there are",
        ),
    ],
    ids=["keys", "stride", "node"],
)
def test_a_wrong_mapping_is_one_error(folder, stages, words):
    with pytest.raises(ConfigError, match=words):
        teacher(folder, stages=stages)


def test_a_mapping_is_obeyed_in_any_order(folder):
    stages = {f"stage{i}": f"blocks.{i}" for i in (3, 2, 1)}
    found = teacher(folder, stages={**stages, "first_conv": "stem"})
    assert found.nodes == ("stem.2", "blocks.1.layers.7", *NODES[2:])


def test_means_of_other_channels_are_refused(folder):
    with pytest.raises(ConfigError, match="mean has 2 values; expected 3, one a channel"):
        teacher(folder, mean=(0.1, 0.2))


def test_an_object_with_features_of_its_own_is_taken_as_it_is(folder):
    assert isinstance(teacher(folder, model="own_teacher:blur"), Blur)
    with pytest.raises(ConfigError, match="has stage_features of its own; expected no key but"):
        teacher(folder, model="own_teacher:blur", quantize=True)


def test_an_object_without_features_is_refused(folder):
    with pytest.raises(ConfigError, match="'own_teacher:number': gave a int; expected a torch"):
        teacher(folder, model="own_teacher:number")


@needs_lite
def test_efficientnet_lite_fits_the_published_hyperspace(folder):
    hyperspace = load_hyperspace("onnxw")
    found = teacher(folder, hyperspace, model="efficientnet-lite0")
    assert found.widths == (16, 24, 40, 80, 112, 192, 320)
    rows = check_teacher(found, hyperspace, grey_images())
    assert rows[-1].sizes == {160: (5, 5), 192: (6, 6), 224: (7, 7)}
    assert isinstance(found, nn.Module)
