"""Sampling rows of a distilled stage."""

import numpy as np
import pytest

from nni_spaceevo.distill.config import DistillConfig
from nni_spaceevo.distill.data import load_dataset
from nni_spaceevo.distill.stage import StageDistiller, StageRun, StageTask
from nni_spaceevo.distill.teachers import Teacher
from nni_spaceevo.hyperspace import ElasticStage
from nni_spaceevo.lut.build import StageSampler, sample_substages
from nni_spaceevo.lut.config import LUTConfig
from nni_spaceevo.testing import synthetic_hyperspace

HYPERSPACE = synthetic_hyperspace()
CONFIG = LUTConfig(rows_per_cell=6, calibration_images=32, held_out_images=32)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """One hardly trained stage; what matters here is how it is sampled."""
    import torch

    torch.manual_seed(0)
    teacher = Teacher(HYPERSPACE, (8, 12, 16, 16), 10).requires_grad_(False).eval()
    data = load_dataset("digits")
    config = DistillConfig(epochs_fp32=1, epochs_int8=1, batch_size=512)
    folder = tmp_path_factory.mktemp("stages")
    task = StageTask(HYPERSPACE, 1, 0, teacher, data, seed=0)
    run = StageRun(task, config, folder)
    return task, run.run(), run.made_for


def test_rows_cover_every_window_and_resolution_with_distinct_substages(distilled):
    rows = StageSampler(distilled[0], CONFIG).rows(distilled[1])
    cells = {(r.window, r.resolution) for r in rows}
    assert cells == {(w, r) for w in range(3) for r in (8, 16)}
    assert len(rows) == 6 * 3
    assert len({(r.window, r.resolution, r.cin, r.chain) for r in rows}) == len(rows)
    assert all(np.isfinite(r.loss) and r.loss > 0 for r in rows)


def test_the_same_seed_gives_the_same_rows(distilled):
    a, b = (StageSampler(distilled[0], CONFIG).rows(distilled[1]) for _ in range(2))
    assert a == b


def test_rows_are_made_for_their_settings_and_their_training(distilled):
    task, _, training = distilled
    more = LUTConfig(rows_per_cell=8, calibration_images=32, held_out_images=32)
    assert len(StageSampler(task, more).rows(distilled[1])) == 8 * 3
    stamps = [StageSampler(task, c).made_for(t) for c in (CONFIG, more) for t in (training, "x")]
    assert len(set(stamps)) == 4
    assert StageSampler(task, CONFIG).made_for(training) == stamps[0]


def test_a_small_stage_gives_fewer_rows_rather_than_repeated_ones():
    stage, option = HYPERSPACE.searchable[0], HYPERSPACE.block_types[2]
    elastic = ElasticStage(stage=stage, option=option, widths=(8,))
    found = sample_substages(elastic, (8,), 50, np.random.default_rng(0))
    assert len(found) == 6  # one block: 2 ratios; two blocks: 4


def test_the_stage_is_left_as_it_was(distilled):
    model: StageDistiller = distilled[1]
    before = {k: v.clone() for k, v in model.named_parameters()}
    StageSampler(distilled[0], CONFIG).rows(model)
    assert all((before[k] == v).all() for k, v in model.named_parameters())
