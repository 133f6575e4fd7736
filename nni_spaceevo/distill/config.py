"""Settings of teacher, images and distillation, readable without torch."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

from ..errors import ConfigError
from ..files import Record, convert, plain


class TeacherConfig(Record, frozen=True):
    """How a small teacher is trained.

    Attributes
    ----------
    widths : channels after the stem and after each searchable stage
    epochs, learning_rate, batch_size : AdamW with a one-cycle schedule
    min_accuracy : least accuracy on the held-out images; below it the job stops
    """

    widths: tuple[int, ...]
    epochs: int
    learning_rate: float = 3e-3
    batch_size: int = 64
    min_accuracy: float = 0.97

    def __post_init__(self) -> None:
        _positive("", epochs=self.epochs, learning_rate=self.learning_rate)
        _positive("", batch_size=self.batch_size, widths=min(self.widths, default=0))
        if not 0 <= self.min_accuracy <= 1:
            raise ConfigError(f"min_accuracy must be a share, 0 to 1, given {self.min_accuracy}")


class PretrainedConfig(Record, frozen=True):
    """A teacher that has been trained already.

    Attributes
    ----------
    model : `torchvision:NAME`, `timm:NAME`, `efficientnet-lite0` to `2`, or the import path
        `mymodule:function` of an own one
    weights : state dict in a local file, relative to the job file; `random` for speed benchmarks;
        None where the model brings its weights along: EfficientNet-Lite, an own one
    stages : node of the features before the first searchable stage and after each one, by the
        stage's name; None to find them from the model's graph
    quantize : quantize the teacher with LSQ+ first, as in the paper
    mean, std : what images of 0 to 1 are normalized with, one value a channel; None for the model's
    """

    model: str
    weights: str | None = None
    stages: dict[str, str] | None = None
    quantize: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.std is not None:
            _positive("", std=min(self.std, default=0))


class ImageFolderConfig(Record, frozen=True, tag_field="name", tag="image_folder"):
    """Folders of images, such as ImageNet's, relative to the job file.

    Attributes
    ----------
    train : folder of images to train on, in one folder a class or not
    held_out : folder of images to measure losses on
    """

    train: str
    held_out: str


class FashionMNISTConfig(Record, frozen=True, tag_field="name", tag="fashion_mnist"):
    """FashionMNIST's four files.

    Attributes
    ----------
    path : their folder, as Debian's package `dataset-fashion-mnist` or as torchvision has it
    train_images : how many of the 60,000 to train on, the first of each class in equal shares; None
        for all
    augment : crop and flip them at random; a training of few epochs learns more without
    """

    path: str = "/usr/share/datasets/fashion-mnist"
    train_images: int | None = None
    augment: bool = True

    def __post_init__(self) -> None:
        if self.train_images is not None:
            _positive("", train_images=self.train_images)


# What results do not depend on, but for rounding.
_HOW_ALONE = ("device", "tasks_per_gpu", "cache_gb")
DatasetConfig: TypeAlias = str | ImageFolderConfig | FashionMNISTConfig
_DATASETS: dict[str, type[ImageFolderConfig] | type[FashionMNISTConfig]] = {
    "image_folder": ImageFolderConfig,
    "fashion_mnist": FashionMNISTConfig,
}


def teacher_config(given: dict[str, Any], where: str) -> TeacherConfig | PretrainedConfig:
    """The settings of a teacher, which is pretrained if they name a model.

    Raises
    ------
    ConfigError
        Starts with `where`, names the wrong key and those allowed.
    """
    if "model" in given:
        return convert(given, PretrainedConfig, where)
    return convert(given, TeacherConfig, where)


def dataset_config(given: str | dict[str, Any], where: str) -> DatasetConfig:
    """The settings of a dataset: `digits`, an import path, or a record; errors as above."""
    settings = {"name": given} if isinstance(given, str) else given
    name = str(settings.get("name"))
    if name in _DATASETS:
        return convert(settings, _DATASETS[name], where)
    if name != "digits" and ":" not in name:
        raise ConfigError(
            f"{where}: unknown dataset {name!r}; known: digits, {', '.join(_DATASETS)}, and "
            "<module>:<function>"
        )
    if len(settings) > 1:
        raise ConfigError(f"{where}: {name!r} has no settings; given {sorted(settings)}")
    return name


class DistillConfig(Record, frozen=True):
    """Block-wise distillation of every (stage, block type); defaults as published.

    Attributes
    ----------
    epochs_fp32, epochs_int8 : epochs in FP32, then with LSQ+
    learning_rate_fp32, learning_rate_int8 : peak rates of the two phases (Adam, cosine)
    batch_size : images per step
    random_substages : sub-stages per step besides the largest and the smallest
    device : `auto` is a GPU (CUDA) if there is one
    tasks_per_gpu : (stage, block type) tasks that share a GPU; a step is many small operations, and
        one task alone leaves a large GPU idle between them
    mixed_precision : compute the convolutions, the teacher's too, in bfloat16; losses, BatchNorm's
        statistics and quantizers stay in float32
    cache_gb : gigabytes on disk for the teacher's features, which serve all block types of a stage;
        0 computes them each time
    """

    epochs_fp32: int = 5
    epochs_int8: int = 1
    learning_rate_fp32: float = 5e-3
    learning_rate_int8: float = 1.25e-3
    batch_size: int = 64
    random_substages: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tasks_per_gpu: int = 1
    mixed_precision: bool = False
    cache_gb: float = 0

    def __post_init__(self) -> None:
        _positive("distill: ", epochs_fp32=self.epochs_fp32, epochs_int8=self.epochs_int8)
        _positive("distill: ", tasks_per_gpu=self.tasks_per_gpu)
        _positive("distill: ", learning_rate_fp32=self.learning_rate_fp32)
        _positive("distill: ", learning_rate_int8=self.learning_rate_int8)
        if self.batch_size < 2 or self.random_substages < 0:
            raise ConfigError(
                "distill: batch_size must be at least 2 and random_substages at least 0, "
                f"given {self.batch_size} and {self.random_substages}"
            )
        if not 0 <= self.cache_gb < math.inf:
            raise ConfigError(f"distill: cache_gb must be at least 0, given {self.cache_gb}")

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings that results depend on, as plain data; not where and how fast they come."""
        return {k: v for k, v in plain(self).items() if k not in _HOW_ALONE}


def _positive(section: str, **values: float) -> None:
    for key, value in values.items():
        if not value > 0:
            raise ConfigError(f"{section}{key} must be above 0, given {value}")
