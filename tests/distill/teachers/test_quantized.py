"""A teacher quantized with LSQ+: close to what it was, and the same whenever it is read again."""

import re

import pytest
import torch

from nni_spaceevo.distill.loss import nsr_loss
from nni_spaceevo.distill.teachers.graph import TracedModel
from nni_spaceevo.distill.teachers.pretrained import ImageAdapter, PretrainedTeacher
from nni_spaceevo.distill.teachers.quantized import QuantizedLayer, quantize_teacher
from nni_spaceevo.errors import CheckpointError
from nni_spaceevo.quant import FP32, INT8, Quantizer, set_precision, uninitialized

from .tiny import NODES, grey_images, trained_tiny

DATA = grey_images()


def teacher():
    traced = TracedModel(trained_tiny(), 3, 8, "tiny")
    adapter = ImageAdapter(3, (0.5,), (0.25,), DATA)
    return PretrainedTeacher(traced, [traced.feature(n) for n in NODES], adapter, "tiny")


def quantized(path, lines=None):
    say = (lambda line: None) if lines is None else lines.append
    return quantize_teacher(teacher(), DATA, (8, 16), 0, path, say)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path, lines = tmp_path_factory.mktemp("teacher") / "teacher.pt", []
    return quantized(path, lines), path, lines


def test_every_layer_before_the_last_border_computes_in_int8(finished):
    found = finished[0]
    layers = [m for m in found.modules() if isinstance(m, QuantizedLayer)]
    assert len(layers) == 1 + 4 * 3
    assert uninitialized(found) == []
    assert all(m.enabled and not m.training for m in found.modules() if isinstance(m, Quantizer))
    assert not any(p.requires_grad for p in found.parameters())


def test_learned_ranges_give_the_features_of_before(finished):
    found, _, lines = finished
    images = DATA.test_batch(torch.arange(24), 16)
    pairs = zip(found(images), teacher()(images), strict=True)
    assert all(0 < nsr_loss(a, b).item() < 0.2 for a, b in pairs)
    last, first = map(float, re.findall(r"\d\.\d+", lines[0]))
    assert last < first


def test_weights_and_norms_are_left_alone(finished):
    found = finished[0]
    set_precision(found, FP32)
    images = DATA.test_batch(torch.arange(4), 16)
    expected = teacher()(images)
    assert all(torch.equal(a, b) for a, b in zip(found(images), expected, strict=True))
    set_precision(found, INT8)


def test_the_fingerprint_is_another_and_read_ranges_give_the_same(finished):
    found, path, _ = finished
    assert found.fingerprint != teacher().fingerprint
    content = path.read_bytes()
    said = []
    assert quantized(path, said).fingerprint == found.fingerprint
    assert said == []
    assert path.read_bytes() == content


def test_two_runs_give_the_same_ranges(finished, tmp_path):
    assert quantized(tmp_path / "t.pt").fingerprint == finished[0].fingerprint


def test_stage_features_are_quantized_even_if_they_were_asked_for_before(finished):
    images = DATA.test_batch(torch.arange(4), 16)
    found = teacher()
    found.stage_features(images, 1)
    quantize_teacher(found, DATA, (8, 16), 0, finished[1])
    before, after = found.stage_features(images, 1)
    everything = finished[0](images)
    assert torch.equal(before, everything[1])
    assert torch.equal(after, everything[2])


def test_ranges_of_other_settings_are_refused(finished):
    with pytest.raises(CheckpointError, match=r"teacher\.pt: made for other settings"):
        quantize_teacher(teacher(), DATA, (8,), 0, finished[1])
