"""Where the stages of networks end: golden nodes of known ones, and what must hold for all."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from nni_spaceevo.distill.teachers.graph import Feature, TracedModel, divide, without_head
from nni_spaceevo.errors import ConfigError

from .tiny import NODES, WIDTHS, Tiny


def traced(network, channels=3, resolution=128):
    return TracedModel(network, channels, resolution, "teacher x")


def stages(model, counts):
    """Nodes and widths of so many stages at each stride."""
    features, found = model.features(), []
    for stride, count in counts.items():
        here = [f for f in features if f.size * stride == model.resolution]
        here = without_head(here) if stride == max(counts) else here
        found += divide(here, count)
    return {f.node: f.width for f in found}


PAPERS = {2: 1, 4: 1, 8: 1, 16: 2, 32: 2}
KNOWN = {
    "efficientnet_b5": {
        "features.1.2.add": 24,
        "features.2.4.add": 40,
        "features.3.4.add": 64,
        "features.4.6.add": 128,
        "features.5.6.add": 176,
        "features.6.8.add": 304,
        "features.7.2.add": 512,
    },
    "mobilenet_v2": {
        "features.1.conv.2": 16,
        "features.3.add": 24,
        "features.6.add": 32,
        "features.10.add": 64,
        "features.13.add": 96,
        "features.16.add": 160,
        "features.17.conv.3": 320,
    },
    "resnet50": {
        "relu": 64,
        "layer1.2.relu_2": 256,
        "layer2.3.relu_2": 512,
        "layer3.2.relu_2": 1024,
        "layer3.5.relu_2": 1024,
        "layer4.1.relu_2": 2048,
        "layer4.2.relu_2": 2048,
    },
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_networks_end_their_stages_at_their_blocks(name):
    assert stages(traced(models.get_model(name, weights=None)), PAPERS) == KNOWN[name]


def test_the_inside_of_blocks_and_the_head_are_not_ends():
    found = stages(traced(Tiny(), resolution=8), {2: 4})
    assert found == dict(zip(NODES, WIDTHS, strict=True))


def test_every_end_is_all_that_later_nodes_see():
    model = traced(models.get_model("efficientnet_b0", weights=None))
    image, *features = model.features()
    for feature in features:
        # Whatever reaches the output without passing the feature would lead back to the image.
        seen, stack = set(), [next(n for n in model.graph.nodes if n.op == "output")]
        while stack:
            node = stack.pop()
            if node not in seen and model.names.get(node) != feature.node:
                seen.add(node)
                stack += node.all_input_nodes
        assert model.nodes[image.node] not in seen


def test_a_part_gives_what_the_network_computes_and_has_nothing_after_it():
    network = Tiny().eval()
    model = traced(network, resolution=8)
    images = torch.randn(2, 3, 8, 8)
    part = model.part(network, ["stem.2", "blocks.1.layers.7"])
    found = part(images)
    expected = network.stem(images)
    assert torch.equal(found[0], expected)
    torch.testing.assert_close(found[1], network.blocks[:2](expected))
    assert not any(name.startswith(("blocks.2", "head")) for name, _ in part.named_modules())


class ChangesInPlace(nn.Module):
    """Overwrites every tensor it has made."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        """Three features, of which two are lost."""
        x = self.relu(self.conv(x))
        x += 1
        return F.relu(x, inplace=True) * 2


def test_a_feature_that_the_network_overwrites_is_kept():
    network = ChangesInPlace()
    model = traced(network, channels=1, resolution=8)
    images = torch.randn(1, 1, 8, 8)
    conv, relu, add, _ = model.part(network, ["conv", "relu_1", "add", "mul"])(images)
    expected = network.conv(images)
    assert torch.equal(conv, expected)
    assert torch.equal(add, expected.relu() + 1)
    assert torch.equal(relu, add)


def features(*widths):
    return [Feature(f"{i}", width, 8) for i, width in enumerate(widths)]


@pytest.mark.parametrize(
    ("widths", "count", "ends"),
    [
        ((24, 40, 40), 1, [2]),
        ((24, 40, 40), 2, [0, 2]),
        ((40, 40, 40, 40), 2, [1, 3]),
        ((40, 40, 40), 3, [0, 1, 2]),
        ((24, 40, 40, 40, 64), 2, [3, 4]),
        ((24, 40, 40, 64, 64, 64), 2, [2, 5]),
    ],
    ids=str,
)
def test_stages_follow_widths_and_otherwise_are_halves(widths, count, ends):
    assert [int(f.node) for f in divide(features(*widths), count)] == ends


def test_a_modules_name_stands_for_its_last_node():
    model = traced(Tiny(), resolution=8)
    assert model.feature("blocks.2").node == "blocks.2.add"
    assert model.feature("stem").width == 8


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blocks.9", r"no node 'blocks\.9'; there are blocks\."),
        ("classify", r"node 'classify' gives \[1, 5\]; expected features"),
    ],
)
def test_a_wrong_node_is_refused_with_others(name, words):
    with pytest.raises(ConfigError, match=words):
        traced(Tiny(), resolution=8).feature(name)


class Branches(nn.Module):
    """Looks at its input before it decides what to do."""

    def forward(self, x):
        """Not traceable."""
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_is_one_error():
    with pytest.raises(ConfigError, match=r"teacher x: cannot be traced by torch\.fx"):
        traced(Branches())


def test_a_network_that_does_not_run_is_one_error():
    with pytest.raises(ConfigError, match="teacher x: does not run on images of 1 x 8 x 8"):
        traced(Tiny(), channels=1, resolution=8)
