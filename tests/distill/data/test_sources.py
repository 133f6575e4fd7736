"""The datasets that a job can name."""

import numpy as np
import pytest
import torch

from nni_spaceevo.distill.config import FashionMNISTConfig, ImageFolderConfig
from nni_spaceevo.distill.data import load_dataset
from nni_spaceevo.errors import ConfigError, FileAccessError

from .folders import write_fashion, write_idx, write_images


def test_digits_are_split_by_class_without_overlap():
    data = load_dataset("digits")
    assert len(data.train_labels) + len(data.test_labels) == 1797
    share = torch.bincount(data.test_labels) / torch.bincount(
        torch.cat([data.train_labels, data.test_labels])
    )
    assert torch.all((share > 0.24) & (share <= 0.25))
    both = torch.cat([data.train_images, data.test_images])
    assert both.mean().abs() < 1e-5
    assert both.std() == pytest.approx(1, abs=1e-5)


def test_digits_say_how_they_were_normalized():
    data = load_dataset("digits")
    pixels = data.test_images * data.std[0] + data.mean[0]
    assert pixels.min() == pytest.approx(0, abs=1e-6)
    assert pixels.max() == pytest.approx(1)


@pytest.mark.parametrize(
    ("below", "suffix"), [("", ".gz"), ("", ""), ("FashionMNIST/raw", "")], ids=str
)
def test_fashion_mnist_is_read_where_debian_and_torchvision_put_it(tmp_path, below, suffix):
    write_fashion(tmp_path / "files" / below, suffix)
    data = load_dataset(FashionMNISTConfig(path="files"), tmp_path)
    assert (data.train_size, data.test_size, data.classes) == (12, 5, 10)
    assert data.test_labels.tolist() == [0, 1, 2, 3, 4]
    batch = data.train_batch(torch.arange(12), 32, range(12))
    assert batch.shape == (12, 1, 32, 32)
    plain = data.test_batch(torch.arange(5), 28) * data.std[0] + data.mean[0]
    torch.testing.assert_close(plain, data.test_images.float() / 255)


def test_fewer_images_are_the_first_of_each_class(tmp_path):
    write_fashion(tmp_path, count=40)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(40) // 4)
    every = load_dataset(FashionMNISTConfig(path=str(tmp_path)))
    few = load_dataset(FashionMNISTConfig(path=str(tmp_path), train_images=20))
    first = [4 * label + image for label in range(10) for image in range(2)]
    assert torch.equal(few.train_images, every.train_images[first])
    assert torch.equal(few.train_labels, every.train_labels[first])
    assert torch.equal(few.test_images, every.test_images)
    assert few.fingerprint != every.fingerprint


def test_images_that_are_not_augmented_are_the_same_images_and_another_dataset(tmp_path):
    write_fashion(tmp_path)
    configs = (FashionMNISTConfig(path=str(tmp_path), augment=a) for a in (True, False))
    given, plain = map(load_dataset, configs)
    index, seeds = torch.arange(12), range(12)
    assert torch.equal(plain.train_batch(index, 28, seeds), given.train_batch(index, 28))
    assert not torch.equal(given.train_batch(index, 28, seeds), given.train_batch(index, 28))
    assert plain.fingerprint != given.fingerprint


def test_more_images_than_there_are_to_train_on_are_refused(tmp_path):
    write_fashion(tmp_path)
    with pytest.raises(ConfigError, match=r"train_images 13; .* has 12 images to train on"):
        load_dataset(FashionMNISTConfig(path=str(tmp_path), train_images=13))


@pytest.mark.parametrize("count", [0, -5])
def test_no_images_to_train_on_are_refused(count):
    with pytest.raises(ConfigError, match="train_images must be above 0"):
        FashionMNISTConfig(train_images=count)


def test_missing_fashion_mnist_says_where_to_get_it(tmp_path):
    with pytest.raises(ConfigError, match=r"no train-images-idx3-ubyte.*Debian's\s+dataset-fash"):
        load_dataset(FashionMNISTConfig(path=str(tmp_path)))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_truncated_idx_file_is_named(tmp_path, suffix):
    path = write_fashion(tmp_path, suffix) / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(FileAccessError, match=r"train-images-idx3-ubyte.*idx file"):
        load_dataset(FashionMNISTConfig(path=str(tmp_path)))


def test_other_numbers_of_images_and_labels_are_refused(tmp_path):
    write_idx(write_fashion(tmp_path) / "train-labels-idx1-ubyte.gz", np.arange(3))
    with pytest.raises(FileAccessError, match=r"12 images and 3 labels in train-"):
        load_dataset(FashionMNISTConfig(path=str(tmp_path)))


def test_an_image_folder_lies_beside_the_job_file(tmp_path):
    write_images(tmp_path / "train")
    data = load_dataset(ImageFolderConfig(train="train", held_out="train/class0"), tmp_path)
    assert (data.train_size, data.test_size) == (12, 6)


OWN = """
import torch
from nni_spaceevo.distill.data import ImageData

def zeros(n=4):
    return ImageData(torch.zeros(n, 1, 8, 8), None, torch.zeros(2, 1, 8, 8), None)

def one():
    return zeros(1)

def nothing():
    return [1, 2]
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own_images.py").write_text(OWN)
    return tmp_path


def test_an_own_dataset_lies_beside_the_job_file(own):
    assert load_dataset("own_images:zeros", own).train_size == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_images:nothing", "gave a list without .*train_batch.*expected .*ImageData"),
        ("own_images:absent", "expected <module>:<function>.*has no attribute 'absent'"),
        ("no_such_module:f", "expected <module>:<function>.*No module named"),
        ("own_images:one", "1 images to train on and 2 held out; expected at least 2 and 1"),
    ],
)
def test_what_is_no_dataset_is_one_error(own, name, words):
    with pytest.raises(ConfigError, match=words):
        load_dataset(name, own)
