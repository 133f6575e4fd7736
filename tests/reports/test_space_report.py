"""The report of a search: it shows the study's figures, and needs nothing but itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from nni_spaceevo.files import convert
from nni_spaceevo.reports.space_report import write_space_report
from nni_spaceevo.reports.space_study import SpaceStudy, study_space
from nni_spaceevo.testing import synthetic_hyperspace

from .small_search import (
    BEST,
    SCORING,
    small_lut,
    small_search,
    with_header,
)
from .test_space_study import beyond_uniform


def text_of(page: Path) -> str:
    """Text of a page outside its pictures."""
    source = re.sub(r"<(svg|style)\b.*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", source).split())


@pytest.fixture(scope="module")
def lut():
    made = small_lut()
    return with_header(made, device="shop <floor> $5", other_ms_source="given by & me")


@pytest.fixture(scope="module")
def results(lut, tmp_path_factory):
    return small_search(tmp_path_factory.mktemp("search"), lut)


@pytest.fixture(scope="module")
def page(lut, results, tmp_path_factory) -> Path:
    return write_space_report(lut, results, SCORING, tmp_path_factory.mktemp("report") / "new")


@pytest.fixture(scope="module")
def study(lut, results) -> SpaceStudy:
    return study_space(lut, results, SCORING)


def test_the_page_needs_nothing_but_itself(page):
    source = page.read_text(encoding="utf-8")
    assert "<script" not in source and "@import" not in source
    assert not re.search(r'\b(src|href)="(?!#)', source.replace("xlink:", ""))
    assert "url(" not in source.replace("url(#", "")
    # Search, front, latencies, losses within each T, and each stage.
    assert source.count("<svg") == 3 + len(SCORING.constraints_ms) + 3


def test_the_data_beside_it_are_the_figures(page, study):
    data = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    assert data["schema"] == 1
    assert convert(data, SpaceStudy, "report.json") == study


def test_the_page_says_how_good_the_best_space_is(page, study):
    text = text_of(page)
    gain = 100 * (study.best.score / study.uniform[0].score - 1)
    assert f"{BEST} scores {study.best.score:.4f}: {gain:.1f} % above the best" in text
    assert f"{study.uniform[0].name} in all stages" in text
    assert f"scores more than {study.bound.score:.4f}" in text
    for space in (study.best, *study.uniform):
        losses = " ".join(f"{loss:.3f}" for loss in space.top_losses)
        assert f"{space.name} {space.space} {space.score:.4f}" in text
        assert losses in text


def test_the_page_says_what_the_stages_are_made_of_and_why(page, study):
    text = text_of(page)
    for stage in study.stages:
        widths = " ".join(map(str, stage.widths))
        assert f"{stage.stage} {stage.block_type} {widths}" in text
    reference = study.reference
    assert f"best subnet within {reference.constraint_ms:g} ms (at {reference.resolution}" in text
    changes = [100 * b.change for s in study.stages for b in s.blocks if b.change]
    assert f"\N{MINUS SIGN}{abs(min(changes)):.1f} %" in text
    assert len(re.findall(r"\bchosen\b", text)) >= 3


def test_the_page_says_how_robust_the_choice_is(page, study):
    text = text_of(page)
    assert f"among {study.compared_spaces} good spaces" in text
    for setting in study.settings[1:]:
        assert f"{setting.changed} {setting.first} {setting.rank} " in text


def test_the_page_says_where_the_figures_come_from(page, lut, results):
    text = text_of(page)
    header = lut.header
    for fact in (
        *(f"{lut.hyperspace.num_spaces:,} spaces", f"{len(results.spaces):,}"),
        *(f"({lut.fingerprint})", f"{len(lut):,} rows", header.hyperspace_fingerprint),
        *(f"against teacher {header.teacher}", header.device_fingerprint),
        *("shop &lt;floor&gt; $5", "given by &amp; me", "t = 0.08, a = 0.01, seed 3"),
        *(f"{header.other_ms['8']:#.4g} ms at 8 pixels", "in one process"),
    ):
        assert fact in text


def test_names_are_text(tmp_path):
    hyperspace = synthetic_hyperspace()
    stages = tuple(msgspec.structs.replace(s, name=f"{s.name} <i>$a_b$") for s in hyperspace.stages)
    lut = small_lut(msgspec.structs.replace(hyperspace, stages=stages))
    page = write_space_report(lut, small_search(tmp_path, lut, SCORING, 5), SCORING, tmp_path)
    source = page.read_text(encoding="utf-8")
    # In tables and in pictures.
    assert source.count("stage1 &lt;i&gt;$a_b$") >= 4
    assert "<i>$" not in source


def test_the_same_search_gives_the_same_bytes(tmp_path, page, lut, results):
    again = write_space_report(lut, results, SCORING, tmp_path)
    assert again.read_bytes() == page.read_bytes()
    assert (tmp_path / "report.json").read_bytes() == (page.parent / "report.json").read_bytes()


def test_a_short_search_is_told_to_go_on(tmp_path, lut, results):
    spaces = tuple(s for s in results.spaces if s.space != BEST)[-5:]
    short = msgspec.structs.replace(results, spaces=spaces, experiment="k3x<y")
    text = text_of(write_space_report(lut, short, SCORING, tmp_path))
    assert "The search is not at its end: " in text
    assert "NNI experiment k3x&lt;y" in text


def test_one_space_alone_within_t_has_a_report(tmp_path):
    lut, own = beyond_uniform()
    own = msgspec.structs.replace(own, estimator="sampled", samples=1000)
    text = text_of(write_space_report(lut, small_search(tmp_path, lut, own, 1), own, tmp_path))
    assert "1 of 729 spaces scored" in text
    assert "no manually designed space has a subnet within T" in text
    assert "of the best manually designed space none is" in text
    assert "sampled: the best 50 of 1,000 drawn subnets averaged" in text
