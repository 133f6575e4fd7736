"""Merging rows of several machines: the same LUT in any order, and nothing that does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nni_spaceevo.errors import LockedError, LUTError
from nni_spaceevo.files import exclusive, to_json
from nni_spaceevo.lut import merge
from nni_spaceevo.lut.merge import RowsFolder, StageRows, task_cells
from nni_spaceevo.testing import MACsLatency, synthetic_hyperspace, synthetic_stage_rows

HYPERSPACE = synthetic_hyperspace()
TASKS = task_cells(HYPERSPACE)


def rows_of(task: str, made_with: str = "job", teacher: str = "lite0") -> StageRows:
    return synthetic_stage_rows(HYPERSPACE, task, made_with, teacher)


ROWS = {task: rows_of(task) for task in TASKS}
ORDER = {task: i for i, task in enumerate(TASKS)}


def folder(path: Path, tasks: list[str] | tuple[str, ...] = ()) -> RowsFolder:
    """A folder with the rows of some tasks."""
    made = RowsFolder(path, HYPERSPACE, "job")
    for task in tasks:
        made.add(ROWS[task], "test")
    return made


def lut_bytes(rows: RowsFolder, path: Path) -> bytes:
    rows.lut("digits", "recipe").priced(MACsLatency()).save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The LUT of one machine that has done everything."""
    place = tmp_path_factory.mktemp("one")
    return lut_bytes(folder(place / "rows", list(TASKS)), place / "one.lut")


# ---- the property -------------------------------------------------------------------------------


@st.composite
def merges(draw: st.DrawFn) -> list[list[list[str]]]:
    """Machines' folders, which overlap and cover everything, and the calls that merge them."""
    owners = draw(
        st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=len(TASKS), max_size=len(TASKS))
    )
    machines = [[t for t, own in zip(TASKS, owners, strict=True) if m in own] for m in range(4)]
    calls = draw(st.permutations([m for m in machines if m]))
    again = draw(st.lists(st.sampled_from(calls), max_size=3))
    mixed = draw(st.permutations([*calls, *again]))
    cuts = draw(st.lists(st.booleans(), min_size=len(mixed), max_size=len(mixed)))
    grouped: list[list[list[str]]] = [[]]
    for machine, cut in zip(mixed, cuts, strict=True):
        grouped[-1].append(machine)
        if cut:
            grouped.append([])
    return [call for call in grouped if call]


@given(calls=merges())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_order_split_and_repetition_gives_the_same_lut(
    calls: list[list[list[str]]], expected: bytes
) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        target = folder(place / "rows")
        have: set[str] = set()
        for number, call in enumerate(calls):
            sources = [place / f"{number}-{i}" for i in range(len(call))]
            for source, tasks in zip(sources, call, strict=True):
                folder(source, tasks)
            new = target.merge(sources)
            assert len(new) == len(set(new))
            assert set(new) == {t for tasks in call for t in tasks} - have
            have |= set(new)
            assert set(target.missing()) == set(TASKS) - have
        assert lut_bytes(target, place / "merged.lut") == expected


def test_merging_a_folder_into_itself_changes_nothing(tmp_path: Path) -> None:
    rows = folder(tmp_path / "rows", list(TASKS))
    before = {p: p.stat().st_mtime_ns for p in rows.path.iterdir()}
    assert rows.merge([rows.path, rows.path]) == []
    assert {p: p.stat().st_mtime_ns for p in rows.path.iterdir()} == before


# ---- writers at the same time -------------------------------------------------------------------


def test_writers_at_the_same_time_end_with_the_same_lut(tmp_path: Path, expected: bytes) -> None:
    def work(machine: int) -> int:
        target = folder(tmp_path / "rows")
        return sum(target.add(rows, "test") for t, rows in ROWS.items() if ORDER[t] % 4 != machine)

    with ThreadPoolExecutor(4) as pool:
        new = sum(pool.map(work, range(4)))
    assert new == len(TASKS)
    assert lut_bytes(folder(tmp_path / "rows"), tmp_path / "x.lut") == expected


def test_a_second_merge_is_refused_and_a_trial_waits(tmp_path: Path) -> None:
    source, target = folder(tmp_path / "a", ["stage1_resnet"]), folder(tmp_path / "rows")
    with ThreadPoolExecutor(1) as pool:
        with exclusive(target.path):
            with pytest.raises(LockedError, match=r"rows: process \d+ is writing it"):
                target.merge([source.path])
            waiting = pool.submit(target.add, ROWS["stage2_resnet"], "test")
            assert not target.path.exists()
        assert waiting.result(timeout=30)
    assert target.merge([source.path]) == ["stage1_resnet"]


# ---- what does not fit --------------------------------------------------------------------------


def refused(tmp_path: Path, rows: StageRows, message: str) -> None:
    """Whether rows are refused, from a trial and from a folder, without a change."""
    target = folder(tmp_path / "rows", ["stage1_resnet"])
    before = sorted(p.read_bytes() for p in target.path.glob("*.json"))
    with pytest.raises(LUTError, match=message):
        target.add(rows, "the trial")
    source = tmp_path / "source"
    source.mkdir()
    (source / f"{rows.task}.json").write_text(to_json(rows))
    # A row that fits does not come in beside one that does not.
    (source / "stage1_mbv1_dual.json").write_text(to_json(ROWS["stage1_mbv1_dual"]))
    with pytest.raises(LUTError, match=message):
        target.merge([source])
    assert sorted(p.read_bytes() for p in target.path.glob("*.json")) == before


def test_two_different_results_are_refused_by_name(tmp_path: Path) -> None:
    other = ROWS["stage1_resnet"]
    last = (*other.rows[-1][:6], 9.0, *other.rows[-1][7:])
    changed = msgspec.structs.replace(other, rows=(*other.rows[:-1], last))
    message = r"rows/stage1_resnet\.json and .*: two different results for stage1_resnet; delete"
    refused(tmp_path, changed, message)


def test_another_teachers_rows_are_refused(tmp_path: Path) -> None:
    message = r"distilled from teacher other, but .*stage1_resnet\.json from lite0; give all"
    refused(tmp_path, rows_of("stage2_resnet", teacher="other"), message)


def test_rows_on_other_images_are_refused(tmp_path: Path) -> None:
    fewer = msgspec.structs.replace(ROWS["stage2_resnet"], held_out_images=64)
    message = r"losses on 64 held-out images, but .*stage1_resnet\.json on 640; give all machines"
    refused(tmp_path, fewer, message)


def test_rows_on_as_many_other_images_are_refused(tmp_path: Path) -> None:
    first, second = (
        msgspec.structs.replace(ROWS[task], images=images)
        for task, images in (("stage1_resnet", "these"), ("stage2_resnet", "those"))
    )
    target = folder(tmp_path / "rows")
    target.add(first, "a trial")
    with pytest.raises(
        LUTError, match=r"the trial: distilled on other images \(those\) than .*these"
    ):
        target.add(second, "the trial")
    assert [p.name for p in target.path.glob("*.json")] == ["stage1_resnet.json"]


def test_rows_of_other_settings_are_refused(tmp_path: Path) -> None:
    message = r"stage2_resnet was distilled with other settings than this job has \(x, expected job"
    refused(tmp_path, rows_of("stage2_resnet", made_with="x"), message)


def test_rows_of_another_hyperspace_are_refused(tmp_path: Path) -> None:
    foreign = msgspec.structs.replace(ROWS["stage2_resnet"], task="stage9_resnet")
    refused(tmp_path, foreign, r"rows of 'stage9_resnet', which hyperspace 'synthetic' does not")
    moved = msgspec.structs.replace(ROWS["stage2_resnet"], task="stage3_resnet")
    refused(tmp_path / "2", moved, "has rows that are not of stage3_resnet")


def test_old_rows_of_other_settings_are_replaced(tmp_path: Path) -> None:
    target = folder(tmp_path / "rows", ["stage1_resnet"])
    now = RowsFolder(target.path, HYPERSPACE, "now")
    assert now.find("stage1_resnet") is None
    assert now.add(rows_of("stage1_resnet", made_with="now"), "test")
    assert now.find("stage1_resnet") is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"a/stage1_resnet\.json: not valid JSON.*; copy it again, or delete it"),
        ("[]", r"a/stage1_resnet\.json: Expected `object`"),
        ('{"schema": 2}', r"missing required field .*; copy it again"),
        ('{"schema": 1}', r"rows schema 1; this version reads 2; .*distil it again"),
        (
            to_json(ROWS["stage1_resnet"]).replace("0.01", "-0.01"),
            "stage1_resnet: no rows, or a loss or error that is not finite and at least 0",
        ),
        (to_json(ROWS["stage2_resnet"]), "has the rows of stage2_resnet; a file is named after"),
        (
            json.dumps({**json.loads(to_json(ROWS["stage1_resnet"])), "rows": []}),
            "stage1_resnet: no rows",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    source = tmp_path / "a"
    source.mkdir()
    (source / "stage1_resnet.json").write_text(content)
    with pytest.raises(LUTError, match=message):
        folder(tmp_path / "rows").merge([source])


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LUTError, match=r"nowhere: no rows; expected a folder of <stage>"):
        folder(tmp_path / "rows").merge([tmp_path / "nowhere"])


def test_a_lut_names_what_is_missing(tmp_path: Path) -> None:
    rows = folder(tmp_path / "rows", [t for t in TASKS if t != "stage2_resnet"])
    with pytest.raises(LUTError, match=r"rows: no rows yet for stage2_resnet"):
        rows.lut("digits", "recipe")


def test_a_lut_takes_one_look_at_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, seen = folder(tmp_path / "rows", list(TASKS)), []
    read_json = merge.read_json
    monkeypatch.setattr(merge, "read_json", lambda p, kind: (seen.append(p), read_json(p, kind))[1])
    rows.lut("digits", "recipe")
    assert seen == [rows.file(task) for task in TASKS]


def test_a_lut_of_two_teachers_is_refused(tmp_path: Path) -> None:
    rows = folder(tmp_path / "rows", [t for t in TASKS if t != "stage2_resnet"])
    rows.file("stage2_resnet").write_text(to_json(rows_of("stage2_resnet", teacher="other")))
    with pytest.raises(LUTError, match="distilled from teacher"):
        rows.lut("digits", "recipe")


def test_a_lut_knows_its_losses_errors_and_on_how_many_images(tmp_path: Path) -> None:
    lut = folder(tmp_path / "rows", list(TASKS)).lut("digits", "recipe")
    assert lut.header.held_out_images == 640
    for column, error in (("loss_error", 0.02), ("paired_error", 0.01)):
        assert lut.columns[column] == pytest.approx(error)


# ---- text ---------------------------------------------------------------------------------------


def test_packed_rows_come_back() -> None:
    for rows in ROWS.values():
        packed = rows.packed()
        assert StageRows.unpacked(packed, "x") == rows
        assert len(packed) < 60 * len(rows.rows)
        # NNI takes both for the start of a comment.
        assert not {"#", "/"} & set(packed)


@pytest.mark.parametrize("text", ["", "no base64!", "AAAA", None, 7])
def test_other_text_is_refused(text: object) -> None:
    with pytest.raises(LUTError, match=r"the trial: not the rows of a task \("):
        StageRows.unpacked(text, "the trial")  # type: ignore[arg-type]


def test_torch_is_not_needed() -> None:
    code = "import sys, nni_spaceevo.lut.merge; assert not {'torch', 'nni'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
