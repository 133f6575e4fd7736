"""Settings of teacher, images and distillation."""

import pytest

from nni_spaceevo.distill.config import (
    DistillConfig,
    FashionMNISTConfig,
    ImageFolderConfig,
    PretrainedConfig,
    TeacherConfig,
    dataset_config,
    teacher_config,
)
from nni_spaceevo.errors import ConfigError
from nni_spaceevo.files import convert


@pytest.mark.parametrize(
    ("record", "wrong"),
    [
        (TeacherConfig, {"widths": (8,), "epochs": 0}),
        (TeacherConfig, {"widths": (), "epochs": 1}),
        (TeacherConfig, {"widths": (8,), "epochs": 1, "learning_rate": float("nan")}),
        (TeacherConfig, {"widths": (8,), "epochs": 1, "min_accuracy": 97}),
        (PretrainedConfig, {"model": "torchvision:resnet18", "std": (0.2, 0.0, 0.2)}),
        (DistillConfig, {"epochs_int8": 0}),
        (DistillConfig, {"learning_rate_int8": -1.0}),
        (DistillConfig, {"batch_size": 1}),
        (DistillConfig, {"random_substages": -1}),
        (DistillConfig, {"cache_gb": -1.0}),
        (DistillConfig, {"cache_gb": float("inf")}),
    ],
    ids=str,
)
def test_values_that_cannot_train_are_refused(record, wrong):
    with pytest.raises(ConfigError, match="must be"):
        record(**wrong)


def test_what_decides_results_is_neither_where_nor_how_fast_they_come():
    plain = DistillConfig()
    assert DistillConfig(device="cpu", cache_gb=3).deciding == plain.deciding
    assert DistillConfig(mixed_precision=True).deciding != plain.deciding
    assert DistillConfig(batch_size=32).deciding != plain.deciding


def test_an_unknown_device_is_refused_with_its_key():
    with pytest.raises(ConfigError, match=r"job: Invalid enum value 'gpu' - at `\$\.device`"):
        convert({"device": "gpu"}, DistillConfig, "job")


def test_a_teacher_is_pretrained_if_it_names_a_model():
    assert teacher_config({"model": "efficientnet-lite0"}, "x").weights is None
    assert teacher_config({"widths": [8, 8], "epochs": 1}, "x").widths == (8, 8)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "x", "wieghts": "y"}, "unknown field `wieghts`; allowed keys: model, weights"),
        ({"model": "x", "epochs": 3}, "unknown field `epochs`; allowed keys: model"),
        ({"widths": [8]}, "missing required field `epochs`"),
        ({"model": "x", "stages": ["a", "b"]}, r"Expected `object.*stages"),
        ({"widths": [8], "epochs": 0}, "epochs must be above 0"),
    ],
    ids=str,
)
def test_a_wrong_teacher_names_place_key_and_what_is_allowed(given, words):
    with pytest.raises(ConfigError, match=rf"job\.yaml: teacher: .*{words}"):
        teacher_config(given, "job.yaml: teacher")


def test_a_dataset_is_a_name_or_a_record():
    assert dataset_config("digits", "x") == dataset_config({"name": "digits"}, "x") == "digits"
    assert dataset_config("my.module:images", "x") == "my.module:images"
    assert dataset_config("fashion_mnist", "x") == FashionMNISTConfig()
    folders = {"train": "a", "held_out": "b"}
    found = dataset_config({"name": "image_folder", **folders}, "x")
    assert found == ImageFolderConfig(**folders)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("imagenet-22k", "unknown dataset 'imagenet-22k'; known: digits, image_folder, fashion"),
        ({}, "unknown dataset 'None'"),
        ("image_folder", "missing required field `train`"),
        ({"name": "image_folder", "test": "a"}, "`test`; allowed keys: train, held_out"),
        ({"name": "digits", "path": "a"}, r"'digits' has no settings; given \['name', 'path'\]"),
    ],
    ids=str,
)
def test_a_wrong_dataset_names_place_key_and_what_is_allowed(given, words):
    with pytest.raises(ConfigError, match=rf"job\.yaml: dataset: .*{words}"):
        dataset_config(given, "job.yaml: dataset")
