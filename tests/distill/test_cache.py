"""The teacher's features on disk: the same bits, within a budget, for several processes at once."""

import contextlib
import errno
import os
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from full_disk import full_disk

from nni_spaceevo.distill.cache import FeatureCache
from nni_spaceevo.distill.config import DistillConfig
from nni_spaceevo.distill.stage import StageRun, StageTask
from nni_spaceevo.errors import CacheWarning

FEATURES = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)
# Bytes that they take: values, two headers, a checksum.
ONE = 4 * (96 + 40) + 2 * 128 + 4

pytestmark = pytest.mark.filterwarnings("error")


def cache(folder, stage="stage1", key="a", files=100):
    return FeatureCache(folder, stage, key, files * ONE / 1e9)


def fill(folder, count, **which):
    with cache(folder, **which) as some:
        for batch in range(count):
            some.put(0, batch, FEATURES)


def kept(folder):
    """How many batches are there of each stage and key."""
    folders = (path for path in folder.glob("*/*") if path.is_dir())
    counts = {f"{p.parent.name}/{p.name}": len(list(p.glob("*.npy"))) for p in folders}
    return {name: count for name, count in counts.items() if count}


def files(folder):
    """All features, while other threads may remove folders, at which `rglob` fails."""
    found = (Path(at) / name for at, _, names in os.walk(folder) for name in names)
    return [path for path in found if path.suffix == ".npy"]


def size(folder):
    """Bytes of all features, while other threads may remove some."""
    total = 0
    for path in files(folder):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


# ---- reading and writing ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_features_come_back_bit_by_bit(tmp_path, kind):
    features = tuple(f.to(kind) for f in FEATURES)
    with cache(tmp_path) as some:
        assert some.get(0, 0) is None
        some.put(0, 0, features)
        found = some.get(0, 0)
        assert all(torch.equal(a, b) for a, b in zip(found, features, strict=True))
        assert [f.dtype for f in found] == [kind, kind]
        assert some.get(0, 1) is None and some.get(1, 0) is None


def test_without_a_budget_nothing_is_written(tmp_path):
    fill(tmp_path / "features", 1, files=0)
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-9], lambda b: b"", lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:]],
    ids=["half", "empty", "one bit"],
)
def test_a_damaged_file_is_named_and_made_again(tmp_path, damage):
    fill(tmp_path, 2)
    path = sorted(files(tmp_path))[1]
    path.write_bytes(damage(path.read_bytes()))
    with cache(tmp_path) as some:
        with pytest.warns(CacheWarning, match=rf"{path.name}: damaged; .* computed again"):
            assert some.get(0, 1) is None
        some.put(0, 1, FEATURES)
        assert torch.equal(some.get(0, 1)[1], FEATURES[1])
    assert kept(tmp_path) == {"stage1/a": 2}


def test_features_that_are_not_finite_are_not_kept(tmp_path):
    with cache(tmp_path) as some:
        some.put(0, 0, (FEATURES[0], FEATURES[1] * torch.nan))
        assert some.get(0, 0) is None


# ---- the budget -------------------------------------------------------------------------------


def test_what_does_not_fit_is_not_kept(tmp_path):
    fill(tmp_path, 5, files=3)
    assert kept(tmp_path) == {"stage1/a": 3}
    with cache(tmp_path, files=3) as some:
        assert some.get(0, 2) is not None and some.get(0, 3) is None


def test_the_stage_that_was_used_longest_ago_makes_room(tmp_path):
    for day, stage in enumerate(("stage1", "stage2", "stage3")):
        fill(tmp_path, 2, stage=stage, files=6)
        os.utime(tmp_path / stage / ".a.lock", (day, day))
    # Reading is using.
    with cache(tmp_path, "stage1", files=6) as some:
        assert some.get(0, 0) is not None
    fill(tmp_path, 3, stage="stage4", files=6)
    assert kept(tmp_path) == {"stage1/a": 2, "stage4/a": 3}


def test_features_of_an_earlier_teacher_make_room_too(tmp_path):
    fill(tmp_path, 3, key="of the earlier one", files=3)
    fill(tmp_path, 3, key="of this one", files=3)
    assert kept(tmp_path) == {"stage1/of this one": 3}


def test_what_another_process_is_using_stays(tmp_path):
    fill(tmp_path, 2, stage="stage1", files=3)
    with cache(tmp_path, "stage1", files=3):
        fill(tmp_path, 2, stage="stage2", files=3)
        assert kept(tmp_path) == {"stage1/a": 2, "stage2/a": 1}
    fill(tmp_path, 2, stage="stage2", files=3)
    assert kept(tmp_path) == {"stage2/a": 2}


def test_a_batch_larger_than_the_budget_makes_nobody_leave(tmp_path):
    fill(tmp_path, 1, stage="stage1")
    large = tuple(f.repeat(9, 1, 1, 1) for f in FEATURES)
    with cache(tmp_path, "stage2", files=1) as some:
        some.put(0, 0, large)
    assert kept(tmp_path) == {"stage1/a": 1}


def test_many_at_once_keep_the_budget_and_each_others_files(tmp_path):
    def work(number):
        with cache(tmp_path, f"stage{number % 3}", files=10) as some:
            for batch in range(12):
                some.put(0, batch, FEATURES)
                if (found := some.get(0, batch)) is not None:
                    assert torch.equal(found[0], FEATURES[0])
                most.append(size(tmp_path))

    most, errors = [], []
    threading.excepthook, before = errors.append, threading.excepthook
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.excepthook = before
    assert errors == []
    assert 8 * ONE <= size(tmp_path) <= max(most) <= 10 * ONE
    assert int((tmp_path / "used").read_text()) == size(tmp_path)


def test_what_a_killed_process_left_is_cleared_away_and_counted(tmp_path):
    fill(tmp_path, 2)
    (tmp_path / "stage1" / "a" / ".e000_b000002.npy.part").write_bytes(b"half")
    (tmp_path / "used").write_text("")
    fill(tmp_path, 3, files=3)
    assert kept(tmp_path) == {"stage1/a": 3}
    assert not list(tmp_path.rglob("*.part"))


def test_folders_may_be_deleted_at_any_time(tmp_path):
    import shutil

    with cache(tmp_path / "features") as some:
        some.put(0, 0, FEATURES)
        shutil.rmtree(tmp_path / "features")
        assert some.get(0, 0) is None
        some.put(0, 1, FEATURES)
        assert some.get(0, 1) is not None


# ---- disks ------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_caching_with_one_warning(tmp_path):
    with cache(tmp_path) as some:
        some.put(0, 0, FEATURES)
        with pytest.warns(CacheWarning, match="cached no more") as told, full_disk(200):
            some.put(0, 1, FEATURES)
            some.put(0, 2, FEATURES)
        assert len(told) == 1
        assert some.get(0, 0) is None
    assert kept(tmp_path) == {"stage1/a": 1}
    assert not list(tmp_path.rglob("*.part"))


def test_a_disk_that_cannot_be_read_ends_it_too(tmp_path, monkeypatch):
    def broken(path):
        raise OSError(errno.EIO, "Input/output error")

    fill(tmp_path, 1)
    with cache(tmp_path) as some:
        monkeypatch.setattr(Path, "read_bytes", broken)
        with pytest.warns(CacheWarning, match="Input/output error"):
            assert some.get(0, 0) is None


def test_a_folder_that_cannot_be_made_ends_it_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(CacheWarning, match="cached no more"), cache(tmp_path / "file") as some:
        some.put(0, 0, FEATURES)
        assert some.get(0, 0) is None


# ---- training with it -------------------------------------------------------------------------

CONFIG = DistillConfig(epochs_fp32=1, epochs_int8=1, batch_size=64)
CACHED = msgspec.structs.replace(CONFIG, cache_gb=0.1)
BATCHES = 2 * 3


def distilled(small, folder, block=1, config=CACHED):
    task = StageTask(small.hyperspace, 1, block, small.teacher, small.data, seed=3)
    run = StageRun(task, config, folder / "stages", folder / "features")
    return run, dict(run.run().state_dict())


def equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_block_types_of_a_stage_share_features_and_nothing_changes(small, tmp_path):
    plain = [distilled(small, tmp_path / "plain", b, CONFIG)[1] for b in (0, 1)]
    first, weights = distilled(small, tmp_path, 0)
    assert (first.batches, first.cached_batches) == (BATCHES, 0)
    assert equal(weights, plain[0])
    second, weights = distilled(small, tmp_path, 1)
    assert (second.batches, second.cached_batches) == (BATCHES, BATCHES)
    assert equal(weights, plain[1])


def test_with_all_features_there_no_teacher_is_asked(small, tmp_path, monkeypatch):
    distilled(small, tmp_path, 0)
    monkeypatch.setattr(small.teacher, "stage_features", None)
    distilled(small, tmp_path, 1)


def test_a_full_disk_changes_no_result(small, tmp_path):
    _, expected = distilled(small, tmp_path / "plain", 1, CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        (tmp_path / "features").write_text("a file where the folder should be")
        run, weights = distilled(small, tmp_path)
    assert (run.cached_batches, equal(weights, expected)) == (0, True)


@pytest.mark.parametrize("other", [{"batch_size": 32}, {"mixed_precision": True}], ids=str)
def test_features_of_other_settings_are_not_taken(small, tmp_path, other):
    distilled(small, tmp_path, 0)
    run, _ = distilled(small, tmp_path, 1, msgspec.structs.replace(CACHED, **other))
    assert run.cached_batches == 0


def test_features_of_other_images_are_not_taken(small, tmp_path):
    distilled(small, tmp_path, 0)
    images = replace(small.data, train_images=small.data.train_images + 1)
    run, _ = distilled(replace(small, data=images), tmp_path, 1)
    assert run.cached_batches == 0
