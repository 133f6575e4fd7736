"""Rows of a distilled stage."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from torch import nn

from nni_spaceevo.errors import LUTError
from nni_spaceevo.lut.build import StageSampler
from nni_spaceevo.lut.config import LUTConfig
from nni_spaceevo.lut.measure import Variance, channel_errors, image_losses

from .distilled_stages import CONFIG, Distilled, distilled, measured_rows


def test_rows_cover_every_window_and_resolution_with_distinct_substages(stage: Distilled) -> None:
    rows = StageSampler(stage.task, CONFIG).rows(stage.model)
    cells = {(r.window, r.resolution) for r in rows}
    assert cells == {(w, r) for w in range(3) for r in (8, 16)}
    assert len(rows) == 6 * 3
    assert len({(r.window, r.resolution, r.cin, r.chain) for r in rows}) == len(rows)
    assert all(np.isfinite(r.loss) and r.loss > 0 for r in rows)
    assert all(r.loss > r.loss_error > 0 and r.loss > r.paired_error > 0 for r in rows)


def test_a_row_has_the_loss_of_its_substage(stage: Distilled) -> None:
    few = LUTConfig(rows_per_cell=4, calibration_images=40, held_out_images=60)
    for row in StageSampler(stage.task, few).rows(stage.model):
        calibration = stage.task.train_features(torch.arange(40), row.resolution)
        held_out = stage.task.test_features(torch.arange(60), row.resolution)
        errors = channel_errors(stage.model, [(row.cin, row.chain)], [calibration], [held_out])
        loss = image_losses(errors, Variance.of([held_out])).mean()
        assert row.loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.slow
def test_rows_are_the_same_in_any_number_of_processes() -> None:
    here = [measured_rows(block) for block in range(2)]
    assert here[0] != here[1]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        assert list(pool.map(measured_rows, range(2))) == here


def test_rows_do_not_depend_on_what_was_measured_before(stage: Distilled) -> None:
    first = StageSampler(stage.task, CONFIG).rows(stage.model)
    for module in stage.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.fill_(7.0)
    before = {k: v.clone() for k, v in stage.model.named_parameters()}
    assert StageSampler(stage.task, CONFIG).rows(stage.model) == first
    assert all(torch.equal(before[k], v) for k, v in stage.model.named_parameters())


def test_rows_are_made_for_their_settings_and_their_training(stage: Distilled) -> None:
    more = LUTConfig(rows_per_cell=8, calibration_images=96, held_out_images=84)
    assert len(StageSampler(stage.task, more).rows(stage.model)) == 8 * 3
    stamps = [
        StageSampler(stage.task, config).made_for(training)
        for config in (CONFIG, more)
        for training in (stage.training, "x")
    ]
    assert len(set(stamps)) == 4
    assert StageSampler(stage.task, CONFIG).made_for(stage.training) == stamps[0]


def test_a_small_dataset_gives_all_that_it_has(stage: Distilled) -> None:
    config = LUTConfig(rows_per_cell=2, calibration_images=10**6, held_out_images=10**6)
    sampler = StageSampler(stage.task, config)
    assert sampler.held_out_images == stage.task.data.test_size == 445
    assert len(sampler.rows(stage.model)) == 2 * 3


def test_a_loss_that_is_not_finite_names_stage_block_type_and_substage() -> None:
    task, model, _ = distilled(0)
    assert model.leave.bias is not None
    model.leave.bias.data.fill_(torch.nan)
    with pytest.raises(LUTError, match=r"stage2, mbv1_dual: loss of sub-stage \d#.* is nan"):
        StageSampler(task, CONFIG).rows(model)
