"""The timing of a distillation step: the plain step is the same step, and the sums are right."""

from __future__ import annotations

import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from nni_spaceevo.distill.config import DistillConfig, PretrainedConfig
from nni_spaceevo.errors import SpaceEvoError
from nni_spaceevo.quant import FP32, INT8


@pytest.fixture(scope="module")
def small(speed):
    """A smaller teacher, and few small images."""
    with pytest.MonkeyPatch.context() as patch:
        teacher = PretrainedConfig(model="torchvision:efficientnet_b0", weights="random")
        patch.setattr(speed, "TEACHER", teacher)
        config = DistillConfig(device="cpu", batch_size=3)
        yield speed.Setting(32, 3, torch.device("cpu"), config)


@pytest.fixture(scope="module")
def teacher(speed, small):
    """It, made once."""
    return speed.new_teacher(small)


@pytest.mark.parametrize("precision", [FP32, INT8], ids=lambda p: p.name)
def test_all_ways_compute_the_same_and_differ_in_how_often_the_teacher_runs(
    speed, small, teacher, precision, monkeypatch
):
    found = speed.all_steps(small, small.task("stage1", "mbv3_res", teacher), precision)
    assert speed.check_same(small, found) < 1e-4
    runs = []
    features = type(teacher).stage_features
    monkeypatch.setattr(
        type(teacher), "stage_features", lambda *a: (runs.append(1), features(*a))[1]
    )
    for way, times in {"plain": 4, "package": 1, "cached": 0}.items():
        runs.clear()
        found[way](np.random.default_rng(0))
        assert len(runs) == times, way


def test_the_plain_step_keeps_the_usual_order_in_memory(speed, small, teacher):
    found = speed.all_steps(small, small.task("stage1", "mbv2_res", teacher), FP32)
    plain, package = found["plain"], found["package"]
    seen = []
    for step in (plain, package):
        step.use_own_order()
        step.model.stage.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    losses = [step(np.random.default_rng(0)) for step in (plain, package)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    usual, last = seen[0], seen[-1]
    assert usual.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()


def test_ways_that_differ_are_refused(speed, small, teacher):
    found = speed.all_steps(small, small.task("stage1", "mbv2_res", teacher), FP32)
    with torch.no_grad():
        found["plain"].model.leave.weight.mul_(1.2)
    with pytest.raises(SpaceEvoError, match="the ways differ by"):
        speed.check_same(small, found)


def test_mixed_precision_computes_about_the_same(speed, small, teacher):
    losses = []
    for mixed_precision in (False, True):
        config = DistillConfig(device="cpu", batch_size=3, mixed_precision=mixed_precision)
        setting = dataclasses.replace(small, config=config)
        found = speed.all_steps(setting, setting.task("stage1", "mbv2_res", teacher), INT8)
        assert speed.check_same(setting, found) < 0.05
        losses.append(found["package"](np.random.default_rng(1)))
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_memory_is_that_of_this_process(speed, small, teacher):
    kept = torch.ones(50 * 2**18)
    found = speed.cpu_memory_mb(small, "mbv2_res", INT8, "cached", teacher.widths)
    assert 50 < found["loaded"] <= found["peak"] < 4000
    assert kept[0] == 1


def row(precision, plain, package, cached):
    ways = {"plain": plain, "package": package, "cached": cached}
    return {
        "block": "resnet",
        "precision": precision,
        **{
            way: {"step_s": float(np.median(t)), "all_s": t, "memory_mb": {"peak": 5.0}}
            for way, t in ways.items()
        },
    }


ROWS = [row("fp32", [2.0, 4.0, 9.0], [1.0, 2.0, 3.0], [0.5] * 3), row("int8", [8.0], [2.0], [1.0])]


def test_a_ratio_is_the_median_of_those_of_equal_draws(speed):
    assert speed.ratios(ROWS[0]) == {"package": 2.0, "cached": 8.0}


def test_phases_count_by_their_epochs(speed):
    # 5 epochs of 4 s and one of 8 s; 5 of 2 s and one of 2 s; 5 of half a second and one of 1 s.
    assert speed.over_recipe(ROWS) == {"resnet": {"package": 2.33, "cached": 8.0}}


def test_the_table_has_every_step_and_the_whole_recipe(speed):
    result = {"steps": ROWS, "times_faster": speed.over_recipe(ROWS)}
    *_, fp32, int8, whole = speed.table(result).splitlines()
    assert fp32 == "| resnet | fp32 | 4.00 | 2.00 | 0.50 | 2.0x | 8.0x | 5, 5, 5 |"
    assert int8 == "| resnet | int8 | 8.00 | 2.00 | 1.00 | 4.0x | 8.0x | 5, 5, 5 |"
    assert whole == "| resnet | all epochs | | | | 2.3x | 8.0x | |"


def test_steps_are_counted_while_the_other_processes_do_theirs(speed, small, teacher, monkeypatch):
    monkeypatch.setattr(speed, "new_teacher", lambda setting: teacher)
    barrier = Meeting()
    monkeypatch.setattr(speed, "_barriers", [barrier])
    numbers = []

    class Quick:
        ordered = False

        def use_own_order(self):
            self.ordered = True

        def __call__(self, rng):
            assert self.ordered
            numbers.append((barrier.met, rng.integers(2**31)))
            time.sleep(0.02)

    monkeypatch.setattr(speed, "new_step", lambda *a: Quick())
    rows = speed._steps_of_block(small, "resnet", 0.1)
    assert [row["stage"] for row in rows] == [s.name for s in small.hyperspace.searchable]
    assert all(0.02 <= row[f"{p}_step_s"] < 2 for row in rows for p in ("fp32", "int8"))
    # Before they meet, each draw once; the same are counted then.
    before, counted = ([draw for met, draw in numbers if met == when] for when in (0, 1))
    assert len(before) == len(set(before)) == speed.DRAWS
    assert set(counted) == set(before) and len(counted) > speed.DRAWS


class Meeting:
    """A barrier of one."""

    met = 0

    def wait(self, patience):
        assert patience > 0
        self.met += 1


def test_hours_are_those_of_all_steps_when_block_types_share_the_gpu(speed, small, monkeypatch):
    def threads(count, context, initializer, initargs):
        initializer(*initargs)
        return ThreadPoolExecutor(count)

    def steps(setting, block, window_s):
        names = (stage.name for stage in setting.hyperspace.searchable)
        return [{"stage": n, "block": block, "fp32_step_s": 0.1, "int8_step_s": 0.7} for n in names]

    monkeypatch.setattr(speed, "_barriers", [])
    monkeypatch.setattr(speed, "ProcessPoolExecutor", threads)
    monkeypatch.setattr(speed, "_steps_of_block", steps)
    result = speed.projection(small, 1.0)
    assert len(result["of"]) == 36
    assert result["at_a_time"] == speed._barriers[0].parties == 6
    batches = -(-1_281_167 // 3)
    hours = 36 / 6 * batches * (5 * 0.1 + 0.7) / 3600
    assert result["hours"] == pytest.approx(hours, rel=1e-3)


def test_the_picture_is_one(speed, tmp_path):
    speed.picture({"steps": json.loads(json.dumps(ROWS))}, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
