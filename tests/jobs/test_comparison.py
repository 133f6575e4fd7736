"""Searched against manually designed spaces: who takes part, what is trained, what is compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from nni_spaceevo.cli import main
from nni_spaceevo.errors import CodeError, ConfigError
from nni_spaceevo.files import exclusive, read_json
from nni_spaceevo.jobs.comparison import (
    SEARCHED,
    Comparison,
    accuracy_within,
    common_constraints,
    compare_spaces,
    contenders,
)
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.predictors import prepared_predictor
from nni_spaceevo.jobs.prepare import constraints, prepared_lut
from nni_spaceevo.jobs.results import SearchResults
from nni_spaceevo.jobs.scoring import score_config
from nni_spaceevo.jobs.subnets import SubnetResults, subnets_folder
from nni_spaceevo.jobs.supernets import supernet_path
from nni_spaceevo.reports.comparison_report import conclusions
from nni_spaceevo.search import make_scorer
from nni_spaceevo.search.priced import PricedSubnets
from nni_spaceevo.search.subnets import latency_span
from nni_spaceevo.testing import synthetic_lut

from .small_job import SPACE, SUPERNET, write_small_job

SUBNETS = {
    "constraint_quantiles": [0.4, 0.9],
    "evolution": {"population": 4, "mutations": 1, "crossovers": 1, "generations": 1},
    "surrogate": {"first": 4, "rounds": 1, "candidates": 1},
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job whose search is done: the best space is neither uniform nor found by chance."""
    made = write_small_job(tmp_path_factory.mktemp("job"), supernet=SUPERNET, subnets=SUBNETS)
    synthetic_lut(made.hyperspace, made.hyperspace.space(SPACE)).save(made.lut_path)
    assert main(["search", "--job", str(made.path), "--evaluations", "500"]) == 0
    assert SearchResults.load(made.search_path).best.space == SPACE
    return made


@pytest.fixture(scope="module")
def found(job: Job) -> Comparison:
    """The comparison with one manually designed space, by the command."""
    arguments = ["compare", "--job", str(job.path), "--manual", "resnet", "--rounds", "2"]
    assert main([*arguments, "--seeds", "0"]) == 0
    return read_json(job.comparison_path / "comparison.json", Comparison)


# ---- who takes part -----------------------------------------------------------------------------


def test_each_block_type_takes_part_with_its_best_uniform_space(job: Job) -> None:
    searched, *manual = contenders(job)
    assert (searched.name, searched.space) == (SEARCHED, SPACE)
    assert [c.name for c in manual] == ["all mbv1_dual", "all mbv2_res", "all resnet"]
    lut = prepared_lut(job)
    score = make_scorer(lut, score_config(job, constraints(job, lut)))
    for number, contender in enumerate(manual):
        assert set(job.hyperspace.space(contender.space).blocks) == {number}
        uniform = [s for s in job.hyperspace.uniform_spaces() if s.blocks[0] == number]
        assert contender.score == max(score(space).score for space in uniform)
        assert contender.score < searched.score
    assert [c.name for c in contenders(job, ["resnet"])] == [SEARCHED, "all resnet"]
    with pytest.raises(CodeError, match="unknown block type 'dense'"):
        contenders(job, ["dense"])


def test_a_manually_designed_space_that_is_the_best_one_takes_part_once(tmp_path: Path) -> None:
    made = write_small_job(tmp_path)
    synthetic_lut(made.hyperspace, made.hyperspace.space("synthetic-222-111")).save(made.lut_path)
    with pytest.raises(ConfigError, match="search first"):
        contenders(made)
    assert main(["search", "--job", str(made.path), "--evaluations", "500"]) == 0
    searched, other = contenders(made, ["resnet"])
    assert searched.space == "synthetic-222-111"
    assert other.space != searched.space
    assert other.name == "all resnet"


def test_constraints_are_shares_of_the_subnets_of_all_spaces(job: Job) -> None:
    device, taking_part = prepared_predictor(job), contenders(job)
    low, high = common_constraints(job, taking_part, device)
    rng, ms = np.random.default_rng(1), []
    for contender in taking_part:
        subnets = PricedSubnets(job.hyperspace, job.hyperspace.space(contender.space), device)
        ms.append(subnets.ms(subnets.random(2000, rng)))
    assert np.mean(np.concatenate(ms) <= low) == pytest.approx(0.4, abs=0.05)
    assert np.mean(np.concatenate(ms) <= high) == pytest.approx(0.9, abs=0.05)


# ---- what comes out -----------------------------------------------------------------------------


def test_all_spaces_are_trained_searched_and_measured_in_one_run(
    job: Job, found: Comparison
) -> None:
    assert [c.name for c in found.contenders] == [SEARCHED, "all resnet"]
    assert (found.seeds, len(found.constraints_ms)) == ((0,), 2)
    for contender in found.contenders:
        space = job.hyperspace.space(contender.space)
        assert supernet_path(job, space).is_file()
        # A search of the user's own for the same supernet stays what it is.
        assert not (subnets_folder(job, space) / "subnets.json").exists()
        folder = job.comparison_path / "seed0" / contender.space
        results = read_json(folder / "subnets.json", SubnetResults)
        entries = found.of(contender.name, 0)
        assert [e.found for e in entries] == list(results.best)
        device = prepared_predictor(job)
        fastest, _ = latency_span(PricedSubnets(job.hyperspace, space, device), 0)
        within = tuple(T for T in found.constraints_ms if fastest <= T)
        assert tuple(e.constraint_ms for e in entries) == within
        for entry in entries:
            assert Path(entry.measured.file).is_file()
            assert len(entry.measured.rounds_ms) == 2
            # The file is judged on both halves, the entry on the unseen one.
            both = (entry.found.accuracy * 223 + entry.accuracy * 222) / 445
            assert entry.measured.accuracy == pytest.approx(both, abs=0.02)
    report = (job.comparison_path / "report.md").read_text()
    for contender in found.contenders:
        assert f"{contender.name} `{contender.space}`" in report
    for line in conclusions(found):
        assert line in report
    assert (job.comparison_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_trained_and_evaluated_is_kept(job: Job, found: Comparison) -> None:
    training = [*job.supernets_path.rglob("*.training.pt")]
    assert len(training) == 2
    trained = {path: path.stat().st_mtime_ns for path in training}
    evaluations = [*job.subnets_path.rglob("evaluations.json")]
    before = {path: path.read_bytes() for path in (*evaluations, *job.supernets_path.rglob("*.pt"))}
    arguments = ["compare", "--job", str(job.path), "--manual", "resnet", "resnet", "--rounds", "1"]
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in training} == trained
    assert {path: path.read_bytes() for path in before} == before
    again = read_json(job.comparison_path / "comparison.json", Comparison)
    assert [e.found for e in again.entries] == [e.found for e in found.entries]


def test_two_comparisons_at_a_time_are_refused(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    with exclusive(job.comparison_path / "comparison.json"):
        assert main(["compare", "--job", str(job.path)]) == 1
    assert "comparison.json" in capsys.readouterr().err


def test_a_supernet_that_fails_is_named_and_the_others_are_done(
    tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_small_job(tmp_path, supernet=SUPERNET, subnets=SUBNETS)
    left = shutil.ignore_patterns("supernets", "subnets", "comparison")
    shutil.copytree(job.work, other.work, ignore=left)
    _, manual = contenders(other, ["resnet"])
    path = supernet_path(other, other.hyperspace.space(manual.space))
    path.parent.mkdir(parents=True)
    path.with_suffix(".training.pt").write_bytes(b"damaged")
    assert main(["compare", "--job", str(other.path), "--manual", "resnet", "--rounds", "1"]) == 1
    error = capsys.readouterr().err
    assert "1 of 2 tasks failed" in error
    assert f"all resnet ({manual.space}), seed 0: " in error
    assert path.with_suffix(".training.pt").name in error
    assert supernet_path(other, other.hyperspace.space(SPACE)).is_file()
    assert not (other.comparison_path / "comparison.json").is_file()


def test_a_job_without_an_int8_phase_is_refused_before_anything_is_trained(
    job: Job, tmp_path: Path
) -> None:
    only_floats = {**SUPERNET, "int8": {"epochs": 0, "learning_rate": 0.1}}
    other = write_small_job(tmp_path, supernet=only_floats)
    with pytest.raises(ConfigError, match=r"int8\.epochs is 0; expected an LSQ\+ phase"):
        compare_spaces(other)


# ---- what is concluded --------------------------------------------------------------------------


def test_accuracy_within_a_latency_is_that_of_the_best_subnet_as_fast() -> None:
    subnets = [(2.0, 0.8), (1.0, 0.6), (3.0, 0.7)]
    assert accuracy_within(subnets, 0.9) is None
    assert accuracy_within([], 1.0) is None
    assert accuracy_within(subnets, 1.0) == pytest.approx(0.6)
    assert accuracy_within(subnets, 1.5) == pytest.approx(0.7)
    # The slowest one is no better than one that is faster.
    assert accuracy_within(subnets, 3.0) == pytest.approx(0.8)
    assert accuracy_within(subnets, 9.0) == pytest.approx(0.8)


def invented(found: Comparison, by_name: dict[str, list[tuple[float, float]]]) -> Comparison:
    """A comparison with these measured milliseconds and accuracies."""
    entry, entries = found.entries[0], []
    for name, rows in by_name.items():
        for ms, accuracy in rows:
            measured = replace(entry.measured, median_ms=ms)
            subnet = replace(entry.found, subnet=f"{name} {ms}", unseen_accuracy=accuracy)
            entries.append(replace(entry, contender=name, found=subnet, measured=measured))
    return replace(found, entries=tuple(entries))


def twice(found: Comparison) -> Comparison:
    """The same with a second seed that has come to the same."""
    again = (replace(entry, seed=1) for entry in found.entries)
    return replace(found, seeds=(0, 1), entries=(*found.entries, *again))


def test_a_conclusion_is_what_the_figures_say(found: Comparison) -> None:
    other = found.contenders[1].name
    ours = [(1.0, 0.7), (2.0, 0.8)]
    better = invented(found, {SEARCHED: ours, other: [(1.0, 0.69), (2.0, 0.77)]})
    (gap,) = better.gaps
    assert (gap.ms, gap.faster) == ((1.0, 2.0), 0)
    assert gap.points == pytest.approx((1.0, 3.0))
    # Of many images two points are many, of few ones none.
    (line,) = conclusions(replace(twice(better), images=100_000))
    assert "searched space is more accurate, +2.00 ± 0.00 points" in line
    assert "better one at 4 of 4 latencies." in line
    # With 1,500 images two standard errors are over two points, and one is not.
    for images in (100, 1_500):
        (line,) = conclusions(replace(twice(better), images=images))
        assert "**not distinguishable**" in line
    (line,) = conclusions(replace(better, images=100_000))
    assert "**one seed, which does not tell**, +2.00 points on average of 1 seed(s)" in line
    worse = invented(found, {SEARCHED: ours, other: [(0.5, 0.9)]})
    (line,) = conclusions(replace(twice(worse), images=100_000))
    assert "**less accurate**, -15.00 ± 0.00 points" in line
    assert "0 of 4 latencies. 2 of its subnets are faster than any searched one" in line
    (line,) = conclusions(invented(found, {SEARCHED: ours, other: [(5.0, 0.9)]}))
    assert "nothing to compare" in line


def test_seeds_that_disagree_tell_nothing(found: Comparison) -> None:
    other = found.contenders[1].name
    first = invented(found, {SEARCHED: [(1.0, 0.7)], other: [(1.0, 0.5)]})
    second = invented(found, {SEARCHED: [(1.0, 0.5)], other: [(1.0, 0.6)]})
    entries = (*first.entries, *(replace(e, seed=1) for e in second.entries))
    both = replace(first, seeds=(0, 1), entries=entries, images=100_000)
    (line,) = conclusions(both)
    assert "**not distinguishable**, +5.00 ± 21.21 points on average of 2 seed(s)" in line


def test_a_subnet_that_is_best_within_two_latencies_counts_once(found: Comparison) -> None:
    ours, theirs = (found.of(c.name, 0)[0] for c in found.contenders)
    again = replace(ours, constraint_ms=2 * ours.constraint_ms)
    (gap,) = replace(found, entries=(ours, again, theirs)).gaps
    assert len(gap.ms) <= 1
