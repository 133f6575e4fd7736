"""The pictures of a search's report stay small and can be told apart."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from nni_spaceevo.reports.space_pictures import (
    colour_key,
    front_picture,
    latency_picture,
    loss_pictures,
    search_picture,
    stage_pictures,
)
from nni_spaceevo.reports.space_study import SpaceStudy, study_space

from .small_search import SCORING, small_lut, small_search


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> SpaceStudy:
    lut = small_lut()
    return study_space(lut, small_search(tmp_path_factory.mktemp("search"), lut), SCORING)


def test_each_constraint_and_each_stage_has_its_picture(study):
    losses, stages = loss_pictures(study), stage_pictures(study)
    for T, picture in zip(SCORING.constraints_ms, losses, strict=True):
        assert f"Losses within T = {T:g} ms" in picture
    for stage, picture in zip(study.stages, stages, strict=True):
        assert f"{stage.stage}: {stage.block_type}" in picture
    for picture in (front_picture(study), latency_picture(study)):
        assert all(f"T = {T:g} ms" in picture for T in SCORING.constraints_ms)


def test_a_long_search_makes_no_large_picture(study):
    scores = tuple(1 - 1 / (i + 2) for i in range(50_000))
    picture = search_picture(replace(study, scores=scores))
    assert picture.count("<use") < 2000


def test_many_block_types_have_lines_of_their_own(study):
    stage = study.stages[0]
    blocks = tuple(replace(stage.blocks[0], block_type=f"type{i}") for i in range(25))
    many = replace(study, stages=(replace(stage, blocks=blocks),))
    key = colour_key(many, with_best=True)
    borders = re.findall(r'style="border-bottom: ([^"]*)"', key)
    assert len(set(borders)) == len(borders) == 26
    assert "best space found" not in colour_key(many, with_best=False)
