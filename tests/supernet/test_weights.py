"""The file of a trained supernet."""

from __future__ import annotations

import pytest
import torch

from nni_spaceevo.errors import CheckpointError
from nni_spaceevo.network.checkpoint import save_checkpoint
from nni_spaceevo.quant import FP32, INT8
from nni_spaceevo.supernet.weights import check_training, load_supernet, load_weights, save_supernet

from .tiny import tiny_hyperspace, uniform, used_supernet

TINY = tiny_hyperspace()
SPACE = uniform(TINY)


@pytest.mark.parametrize("precision", [FP32, INT8], ids=lambda p: p.name)
def test_a_supernet_comes_back_as_it_was(precision, tmp_path):
    supernet = used_supernet(TINY, SPACE, precision)
    save_supernet(tmp_path / "some.pt", supernet)
    loaded = load_supernet(tmp_path / "some.pt", TINY, str(SPACE))
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(images, loaded.largest), supernet(images, supernet.largest))
    assert loaded.image.enabled == precision.quantized
    assert not loaded.training


def test_weights_of_another_space_or_hyperspace_are_refused_by_name(tmp_path):
    save_supernet(tmp_path / "some.pt", used_supernet(TINY, SPACE))
    with pytest.raises(CheckpointError, match=r"some\.pt: .*space tiny-00-00, expected tiny-11-00"):
        load_supernet(tmp_path / "some.pt", TINY, "tiny-11-00")
    other = tiny_hyperspace(TINY.block_types[1])
    message = f"hyperspace {TINY.fingerprint}, expected {other.fingerprint}"
    with pytest.raises(CheckpointError, match=message):
        load_supernet(tmp_path / "some.pt", other, "tiny-00-00")


def test_a_file_of_something_else_is_refused(tmp_path):
    supernet = used_supernet(TINY, SPACE)
    save_checkpoint(tmp_path / "some.pt", supernet.made_for, {"teacher": {}})
    with pytest.raises(CheckpointError, match=r"some\.pt: not the weights of a supernet"):
        load_supernet(tmp_path / "some.pt", TINY, SPACE)


def test_a_supernet_of_another_training_is_refused_by_what_differs(tmp_path):
    supernet = used_supernet(TINY, SPACE)
    path = tmp_path / "some.pt"
    save_supernet(path, supernet, {"images": "these", "supernet.seed": "0"})
    found = load_weights(path, supernet)
    check_training(path, found, {"images": "these", "supernet.seed": "0"})
    with pytest.raises(
        CheckpointError, match=r"some\.pt: trained .*\(images these, expected those"
    ):
        check_training(path, found, {"images": "those", "supernet.seed": "0"})
    # NNI's one-shot strategy does not say what it was given.
    save_supernet(path, supernet)
    check_training(path, load_weights(path, supernet), {"images": "those"})
