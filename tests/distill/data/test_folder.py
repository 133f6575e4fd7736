"""Image folders: what is read, what is drawn, and what is refused."""

import numpy as np
import pytest
import torch

from nni_spaceevo.distill.data import ImageFolderData, Images, folder, image_seeds
from nni_spaceevo.errors import ConfigError, FileAccessError

from .folders import write_images

ALL = torch.arange(12)


def seeds(seed):
    return image_seeds(np.random.default_rng(seed), len(ALL))


@pytest.fixture
def data(tmp_path):
    return ImageFolderData(write_images(tmp_path / "train"), write_images(tmp_path / "val"))


def test_a_folder_is_images_with_labels(data):
    assert isinstance(data, Images)
    assert (data.train_size, data.test_size, data.classes) == (12, 12, 2)
    assert torch.bincount(data.train_labels).tolist() == [6, 6]
    batch = data.train_batch(ALL, 16, seeds(0))
    assert batch.shape == (12, 3, 16, 16)
    # The second class is the brighter one, so labels and images go together.
    means = batch.mean((1, 2, 3))
    assert means[data.train_labels == 1].min() > means[data.train_labels == 0].max()


def test_the_first_images_are_of_all_classes(tmp_path):
    train = write_images(tmp_path / "train", classes=4, count=8)
    data = ImageFolderData(train, train)
    assert len(data.train_labels[:12].unique()) == 4


def test_the_same_is_drawn_by_any_number_of_threads(data, monkeypatch):
    batches = []
    for threads in (1, 3, 8):
        monkeypatch.setattr(folder, "_THREADS", threads)
        batches.append(data.train_batch(ALL, 16, seeds(4)))
    assert all(torch.equal(batches[0], b) for b in batches[1:])
    assert not torch.equal(batches[0], data.train_batch(ALL, 16, seeds(5)))


def test_an_image_is_drawn_by_its_own_seed_whatever_is_asked_for_beside_it(data):
    whole, some = data.train_batch(ALL, 16, seeds(4)), slice(5, 9)
    assert torch.equal(data.train_batch(ALL[some], 16, seeds(4)[some]), whole[some])


def test_held_out_images_and_calibration_are_not_augmented(data):
    assert torch.equal(data.test_batch(ALL, 16), data.test_batch(ALL, 16))
    assert torch.equal(data.train_batch(ALL, 16), data.train_batch(ALL, 16))


def test_a_folder_without_classes_has_images_without_labels(tmp_path):
    flat = write_images(tmp_path / "some", classes=1) / "class0"
    data = ImageFolderData(flat, flat)
    assert (data.train_size, data.train_labels, data.classes) == (6, None, 0)


def test_folders_of_other_classes_have_no_common_labels(tmp_path):
    train, val = write_images(tmp_path / "a", 2), write_images(tmp_path / "b", 3)
    assert ImageFolderData(train, val).train_labels is None


def test_the_fingerprint_follows_the_files(tmp_path):
    train, val = write_images(tmp_path / "train"), write_images(tmp_path / "val")
    before = ImageFolderData(train, val).fingerprint
    assert ImageFolderData(train, val).fingerprint == before
    (val / "class0" / "0.jpg").unlink()
    assert ImageFolderData(train, val).fingerprint != before


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere: no such folder; expected one with images"):
        ImageFolderData(tmp_path / "nowhere", tmp_path)


def test_an_empty_class_is_named_with_what_was_expected(tmp_path):
    train = write_images(tmp_path / "train")
    (train / "class2").mkdir()
    (train / "class2" / "notes.txt").write_text("no image")
    with pytest.raises(ConfigError, match=r"class2: no images in this folder; expected .*\.jpg"):
        ImageFolderData(train, train)


@pytest.mark.parametrize("kept", [0, 100, 300])
def test_a_truncated_image_is_one_error_naming_the_file(data, tmp_path, kept):
    damaged = tmp_path / "train" / "class1" / "2.jpg"
    damaged.write_bytes(damaged.read_bytes()[:kept])
    with pytest.raises(FileAccessError, match=r"class1/2\.jpg: not a readable image.*expected a"):
        data.train_batch(ALL, 16, seeds(0))


def test_all_images_that_cannot_be_read_are_counted_and_the_first_ones_named(data, tmp_path):
    data.check()
    for name in ("train", "val"):
        for path in sorted((tmp_path / name).rglob("*.png"))[:2]:
            path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(FileAccessError, match=r"^4 of 24 images cannot be read: .*\(and 1 more\)$"):
        data.check()
