"""The teacher trained here: features where the hyperspace's stages are, training that continues."""

from dataclasses import replace

import pytest
import torch
from msgspec import structs

from nni_spaceevo.distill.config import TeacherConfig
from nni_spaceevo.distill.data import ImageData
from nni_spaceevo.distill.teachers import trained as module
from nni_spaceevo.distill.teachers.trained import Teacher, one_cycle, train_teacher
from nni_spaceevo.errors import CheckpointError, ConfigError, TrainingError
from nni_spaceevo.hyperspace import load_hyperspace

from ..small_problem import TEACHER


def test_features_have_the_sizes_of_the_hyperspaces_stages():
    hyperspace = load_hyperspace("onnxw")
    teacher = Teacher(hyperspace, (8, 8, 8, 8, 8, 8, 8), 10).eval()
    images = torch.randn(1, 3, 160, 160)
    for i, stage in enumerate(hyperspace.searchable):
        before, after = teacher.stage_features(images, i)
        assert before.shape[-1] == hyperspace.input_hw(stage, 160)
        assert after.shape[-1] == -(-before.shape[-1] // stage.stride)


def test_the_features_chain_from_stage_to_stage(small):
    images = torch.randn(2, 1, 16, 16)
    teacher = small.teacher.eval()
    assert torch.equal(teacher.stage_features(images, 0)[1], teacher.stage_features(images, 1)[0])


def test_a_wrong_number_of_widths_names_the_stages(small):
    with pytest.raises(ConfigError, match=r"widths has 2 values; expected 4.*stage1, stage2"):
        Teacher(small.hyperspace, (8, 8), 10)


def train(small, path, config=TEACHER, seed=0):
    return train_teacher(small.hyperspace, small.data, config, seed, path)


def test_a_killed_training_continues_to_the_same_weights(small, tmp_path, monkeypatch):
    original, calls = module._epoch, []

    def dies_in_the_second_epoch(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(module, "_epoch", dies_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(small, tmp_path / "t.pt")
    monkeypatch.undo()
    assert train(small, tmp_path / "t.pt").fingerprint == small.teacher.fingerprint


def test_a_trained_teacher_is_read_not_trained_again(small, tmp_path):
    path = tmp_path / "t.pt"
    train(small, path)
    content = path.read_bytes()
    assert train(small, path).fingerprint == small.teacher.fingerprint
    assert path.read_bytes() == content


def test_a_teacher_of_other_settings_is_refused_by_name(small, tmp_path):
    train(small, tmp_path / "t.pt")
    with pytest.raises(CheckpointError, match=r"t\.pt: made for other settings"):
        train(small, tmp_path / "t.pt", seed=1)


def test_a_teacher_that_is_not_good_enough_stops_the_job(small, tmp_path):
    strict = TeacherConfig(widths=(8, 12, 16, 16), epochs=1, min_accuracy=0.999)
    with pytest.raises(TrainingError, match=r"held-out accuracy .*expected at least 99\.90%"):
        train(small, tmp_path / "t.pt", strict)
    content = (tmp_path / "t.pt").read_bytes()
    # Asked for less, it is not trained again.
    train(small, tmp_path / "t.pt", structs.replace(strict, min_accuracy=0.01))
    assert (tmp_path / "t.pt").read_bytes() == content


def test_the_learning_rate_rises_then_falls():
    rates = [one_cycle(i / 100) for i in range(101)]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(1)
    assert rates[100] == pytest.approx(0)
    assert rates[:21] == sorted(rates[:21])


def test_a_dataset_without_labels_is_refused(small, tmp_path):
    images = torch.zeros(8, 1, 8, 8)
    small = replace(small, data=ImageData(images, None, images, None))
    with pytest.raises(ConfigError, match="the dataset has no labels to train one with"):
        train(small, tmp_path / "t.pt")


def test_a_teacher_of_other_images_is_refused(small, tmp_path):
    path = tmp_path / "t.pt"
    train(small, path)
    other = replace(small, data=replace(small.data, train_images=small.data.train_images + 1))
    with pytest.raises(CheckpointError, match="made for other settings"):
        train(other, path)


def test_grey_images_are_repeated_for_a_hyperspace_of_colours():
    teacher = Teacher(load_hyperspace("onnxw"), (8, 8, 8, 8, 8, 8, 8), 10).eval()
    grey = torch.randn(1, 1, 32, 32)
    assert torch.equal(teacher(grey), teacher(grey.expand(-1, 3, -1, -1)))
