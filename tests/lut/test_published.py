"""Import of published LUTs: both layouts, every kind of bad row, and the published data itself."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import published_file, published_lut

from nni_spaceevo.errors import CodeError, FileAccessError, LUTError
from nni_spaceevo.hyperspace import (
    BlockChoice,
    ElasticStage,
    Hyperspace,
    format_chain,
    load_hyperspace,
    mflops,
    mparams,
)
from nni_spaceevo.lut import OtherStages, QuantizedLUT
from nni_spaceevo.lut.pricing import RowBlocks
from nni_spaceevo.lut.published import (
    JOINED,
    TEACHER,
    Substages,
    import_published,
    published_files,
)
from nni_spaceevo.testing import MACsLatency, synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace()
OTHER = OtherStages.given(HYPERSPACE, {8: 0.5, 16: 0.75})
HEADER = ",".join(JOINED)
ROW = "1,0,0,3#8#None,8,8,0.5,0.1,0.01,0.2"


@pytest.fixture(scope="module")
def lut() -> QuantizedLUT:
    return synthetic_lut(HYPERSPACE, HYPERSPACE.space("synthetic-120-201"), rows_per_cell=3)


def joined_lines(lut: QuantizedLUT) -> list[str]:
    """The rows of a LUT as the joined layout has them, shuffled."""
    lines = []
    for i in np.random.default_rng(1).permutation(len(lut)):
        r = lut.row(i)
        hw = lut.hyperspace.input_hw(lut.hyperspace.searchable[r.stage], r.resolution)
        cell = f"{r.stage + 1},{r.block},{r.window},{format_chain(r.chain)},{r.cin},{hw}"
        figures = (lut.columns[k][i] for k in ("loss", "mflops", "mparams", "latency_ms"))
        lines.append(",".join([cell, *(str(v) for v in figures)]))
    return lines


def write_joined(folder: Path, lines: list[str], name: str = "lut.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def write_cells(folder: Path, lines: list[str]) -> Path:
    """The same rows in the authors' layout."""
    folder.mkdir(exist_ok=True)
    for line in lines:
        s, b, w, substage, cin, hw, *figures = line.split(",")
        with (folder / f"stage{s}_{b}_{w}.csv").open("a") as stream:
            print(substage, f"1x{cin}x{hw}x{hw}", *figures, sep=",", file=stream)
    return folder


def imported(*sources: Path, hyperspace: Hyperspace = HYPERSPACE) -> QuantizedLUT:
    return import_published(sources, hyperspace, OTHER)


# ---- what comes out ---------------------------------------------------------------------------


@pytest.fixture(params=["joined", "joined.gz", "cells", "cells.gz"])
def sources(request, lut, tmp_path) -> list[Path]:
    """The rows of `lut` in every layout."""
    lines = joined_lines(lut)
    if request.param.startswith("joined"):
        paths = [write_joined(tmp_path, lines)]
    else:
        paths = sorted(write_cells(tmp_path / "cells", lines).iterdir())
    if request.param.endswith("gz"):
        for path in paths:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        paths = [path.with_name(f"{path.name}.gz") for path in paths]
    return paths


def test_every_layout_gives_the_rows_back(sources, lut):
    found = imported(*sources)
    for name, values in lut.columns.items():
        np.testing.assert_array_equal(found.columns[name], values, err_msg=name)
    assert found.header.teacher == TEACHER
    assert found.header.device == "published:synthetic"
    assert found.header.device_fingerprint == found.rows_fingerprint == lut.rows_fingerprint
    assert found.header.made_with == ""
    assert found.header.other_ms == {"8": 0.5, "16": 0.75}
    assert found.header.other_ms_source == "given by the user"


def test_the_order_of_the_files_does_not_matter(lut, tmp_path):
    files = sorted(write_cells(tmp_path / "cells", joined_lines(lut)).iterdir())
    assert imported(*files).fingerprint == imported(*files[::-1]).fingerprint


def test_an_imported_lut_is_saved_loaded_and_priced_anew(lut, tmp_path):
    found = imported(write_joined(tmp_path, joined_lines(lut)))
    found.save(tmp_path / "a.lut")
    again = QuantizedLUT.load(tmp_path / "a.lut", HYPERSPACE)
    assert again.fingerprint == found.fingerprint
    priced = again.priced(MACsLatency())
    assert priced.header.device == "synthetic"
    assert priced.header.teacher == TEACHER
    assert priced.header.other_ms_source == "latency predictor synthetic (macs-1e+06)"
    np.testing.assert_array_equal(priced.columns["loss"], lut.columns["loss"])


def test_stem_and_head_by_a_predictor_leave_the_rows_latencies_alone(lut, tmp_path):
    path = write_joined(tmp_path, joined_lines(lut))
    other = OtherStages.predicted(HYPERSPACE, MACsLatency())
    found = import_published([path], HYPERSPACE, other, "my phone")
    np.testing.assert_array_equal(found.columns["latency_ms"], lut.columns["latency_ms"])
    assert found.header.device == "my phone"
    assert found.header.other_ms == lut.header.other_ms
    assert found.header.other_ms_source == lut.header.other_ms_source


# ---- which files ------------------------------------------------------------------------------


def test_a_folder_gives_its_published_files_and_no_others(tmp_path):
    names = ["stage1_0_0.csv", "stage1_0_1.csv.gz", "block_lut_synthetic.csv", "stage1_0.csv"]
    for name in [*names, "block_lut_other.csv", "notes.txt", "stage1_0_0.csv.bak"]:
        (tmp_path / name).touch()
    alone = tmp_path / "anything.csv"
    found = published_files([alone, tmp_path], HYPERSPACE)
    assert found == [alone, *(tmp_path / name for name in sorted(names[:3]))]


def test_a_folder_without_published_files_is_refused(tmp_path):
    (tmp_path / "block_lut_other.csv").touch()
    with pytest.raises(LUTError, match=r"holds neither .*block_lut_synthetic\.csv"):
        imported(tmp_path)


@pytest.mark.parametrize("content", ["", f"{ROW}\n", f"stage,{HEADER}\n{ROW}\n"])
def test_a_file_of_neither_layout_is_refused(tmp_path, content):
    (tmp_path / "lut.csv").write_text(content)
    with pytest.raises(LUTError, match=r"lut\.csv: neither named .* nor begun by the header stage"):
        imported(tmp_path / "lut.csv")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv.gz", gzip.compress(b"some text" * 99, mtime=0)[:-20], "end-of-stream"),
        ("a.csv.gz", gzip.compress(b"some text" * 99, mtime=0)[:30], "end-of-stream"),
        ("a.csv.gz", HEADER.encode(), "Not a gzipped file"),
        ("a.csv.gz", gzip.compress(b"\xff\xfe", mtime=0), "not UTF-8 text"),
        ("a.csv.gz", gzip.compress(b"some text" * 99, mtime=0)[:10] + b"\xff" * 40, "invalid"),
        ("a.csv", b"\xff\xfe", "not UTF-8 text"),
        ("a.csv", None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FileAccessError, match=rf"{re.escape(name)}: cannot read \(.*{words}"):
        imported(tmp_path / name)


def test_a_missing_cell_is_named_with_the_file(lut, tmp_path):
    lines = [line for line in joined_lines(lut) if not line.startswith("2,1,0,")]
    path = write_joined(tmp_path, lines)
    with pytest.raises(LUTError, match=r"lut\.csv: no rows for stage2, mbv2_res, window \[8, 16\]"):
        imported(path)


def test_a_resolution_that_a_cell_lacks_is_named(lut, tmp_path):
    folder = write_cells(tmp_path / "cells", joined_lines(lut))
    path = folder / "stage3_2_1.csv"
    kept = [line for line in path.read_text().splitlines() if "x8x8," not in line]
    path.write_text("\n".join(kept) + "\n")
    with pytest.raises(LUTError, match=r"cells: no rows for stage3, resnet, .* resolution 16"):
        imported(folder)


@pytest.mark.parametrize("content", [None, ""])
def test_a_file_that_a_folder_lacks_is_a_missing_cell(lut, tmp_path, content):
    folder = write_cells(tmp_path / "cells", joined_lines(lut))
    (folder / "stage1_0_2.csv").unlink()
    if content is not None:
        (folder / "stage1_0_2.csv").write_text(content)
    with pytest.raises(LUTError, match=r"cells: no rows for stage1, mbv1_dual, window \[24, 32\]"):
        imported(folder)


def test_files_without_rows_lack_the_first_cell(tmp_path):
    with pytest.raises(LUTError, match="no rows for stage1, mbv1_dual"):
        imported(write_joined(tmp_path, []))


def test_a_cell_in_two_files_is_refused(lut, tmp_path):
    lines = joined_lines(lut)
    folder = write_cells(tmp_path / "cells", lines)
    one = next(line for line in lines if line.startswith("2,0,1,"))
    path = write_joined(tmp_path, [one], "more.csv")
    with pytest.raises(
        LUTError, match=r"stage2, mbv1_dual, window \[16, 24\]: rows in .*2_0_1\.csv .*more\.csv"
    ):
        imported(folder, path)


def test_the_same_file_twice_is_refused(lut, tmp_path):
    path = write_joined(tmp_path, joined_lines(lut))
    with pytest.raises(LUTError, match=r"rows in .*lut\.csv and again in .*lut\.csv"):
        imported(path, path)


# ---- bad rows ---------------------------------------------------------------------------------

BAD = [
    ("stage", "0", "stage 0; expected 1 to 3"),
    ("stage", "4", "stage 4; expected 1 to 3"),
    ("stage", "1.5", "stage 1.5; expected 1 to 3"),
    ("stage", "one", "stage one; expected 1 to 3"),
    ("block", "3", "block 3; expected 0 to 2"),
    ("block", "-1", "block -1; expected 0 to 2"),
    ("width_window", "3", "width_window 3; expected 0 to 2"),
    ("width_window", "", "width_window ; expected 0 to 2"),
    ("substage", "3#8", "sub-stage '3#8': expected k#w#e_k#w#e…"),
    ("substage", "", "sub-stage '': expected k#w#e_k#w#e…"),
    ("substage", "3#8#None_", "expected k#w#e_k#w#e…"),
    ("substage", "3#8#nan", "expected k#w#e_k#w#e…"),
    ("substage", "3#8#None_3#8#None_3#8#None", "stage1: depth 3; allowed [1, 2]"),
    ("substage", "7#8#None", "stage1 (mbv1_dual): kernel size 7; allowed [3, 5]"),
    ("substage", "3#24#None", "stage1 (mbv1_dual): width 24; allowed [8, 16]"),
    ("substage", "3#8#2", "stage1 (mbv1_dual): expand ratio 2.0; allowed [0.0]"),
    ("cin", "16", "cin 16; stage1 allows [8]"),
    ("cin", "nan", "cin nan; stage1 allows [8]"),
    ("hw", "5", "hw 5; stage1 has [4, 8] at resolutions [8, 16]"),
    ("hw", "8.5", "hw 8.5; stage1 has [4, 8]"),
    *(
        (name, value, f"{name} {value}; expected a finite number above 0")
        for name in ("nsr_loss", "mflops", "mparams", "latency_ms")
        for value in ("0", "-0.5", "nan", "inf", "1e39", "0x1", "")
    ),
]


@pytest.mark.parametrize(("column", "value", "words"), BAD, ids=lambda v: v or "empty")
def test_a_bad_row_is_named_by_file_and_line(tmp_path, column, value, words):
    fields = ROW.split(",")
    fields[JOINED.index(column)] = value
    path = write_joined(tmp_path, [ROW, ",".join(fields), ROW])
    message = rf"1 of 3 rows .* 'synthetic', the first: .*lut\.csv, line 3: .*{re.escape(words)}"
    with pytest.raises(LUTError, match=message):
        imported(path)


CELL_ROW = "3#8#None,1x8x8x8,0.5,0.1,0.01,0.2"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (CELL_ROW.replace("1x8x8x8", "1x8x8x4"), "hw 1x8x8x4; stage1 has"),
        (CELL_ROW.replace("1x8x8x8", "2x8x8x8"), "hw 2x8x8x8; stage1 has"),
        (CELL_ROW.replace("1x8x8x8", "1x16x8x8"), "cin 16; stage1 allows"),
        (CELL_ROW.replace("0.5", "zero"), "nsr_loss zero; expected"),
        (f"{CELL_ROW},1", "7 columns; expected substage,1xCxHxH,nsr_loss"),
        ("3#8#None", "1 columns; expected substage,1xCxHxH,nsr_loss"),
        ("", "1 columns; expected"),
    ],
)
def test_a_bad_row_of_the_authors_layout_is_named_too(tmp_path, row, words):
    path = tmp_path / "stage1_0_0.csv"
    path.write_text(f"{CELL_ROW}\n{row}\n{CELL_ROW}\n")
    with pytest.raises(LUTError, match=rf"stage1_0_0\.csv, line 2: {re.escape(words)}"):
        imported(path)


@pytest.mark.parametrize("name", ["stage0_0_0", "stage4_0_0", "stage1_3_0", "stage1_0_3"])
def test_a_file_name_outside_the_hyperspace_is_refused(tmp_path, name):
    (tmp_path / f"{name}.csv").write_text(f"{CELL_ROW}\n")
    with pytest.raises(LUTError, match=rf"{name}\.csv, line 1: (stage|block|width_window) \d; exp"):
        imported(tmp_path)


@pytest.mark.parametrize("row", [f"{ROW},1", ROW.rpartition(",")[0], ""])
def test_a_row_of_another_number_of_columns_is_named(tmp_path, row):
    count = row.count(",") + 1
    words = rf"line 3: {count} columns; expected {HEADER}"
    with pytest.raises(LUTError, match=words):
        imported(write_joined(tmp_path, [ROW, row]))


def test_many_bad_rows_are_counted_and_the_first_told_in_order(tmp_path):
    bad = [ROW.replace("0.5", "-1"), f"{ROW},1", ROW.replace("1,0,0", "9,0,0")]
    a = write_joined(tmp_path, [ROW, *bad[:2]], "a.csv")
    b = write_joined(tmp_path, [ROW, *(bad * 50)], "b.csv")
    with pytest.raises(LUTError) as error:
        imported(a, b)
    text = str(error.value)
    assert text.startswith("152 of 154 rows do not fit")
    places = re.findall(r"(\w)\.csv, line (\d+): (\w+)", text)
    assert places == [("a", "3", "nsr_loss"), ("a", "4", "11"), ("b", "3", "nsr_loss")]


def test_a_row_is_told_once_however_much_is_wrong_with_it(tmp_path):
    with pytest.raises(LUTError, match=r"1 of 1 rows .*line 2: stage 7; expected 1 to 3$"):
        imported(write_joined(tmp_path, ["7,9,9,x,0,0,-1,-1,-1,-1"]))


def test_rows_of_another_hyperspace_are_refused_by_name(lut, tmp_path):
    path = write_joined(tmp_path, joined_lines(lut))
    with pytest.raises(LUTError, match=r"162 of 162 rows do not fit hyperspace 'onnxw'"):
        import_published([path], load_hyperspace("onnxw"), OTHER)


def test_a_size_that_two_resolutions_share_tells_nothing(tmp_path):
    alike = msgspec.structs.replace(HYPERSPACE, distill_resolutions=(15, 16))
    with pytest.raises(LUTError, match=r"hw 8 is that of more than one of the .* \[15, 16\]"):
        imported(write_joined(tmp_path, [ROW]), hyperspace=alike)


# ---- sub-stages -------------------------------------------------------------------------------

choices = st.builds(
    BlockChoice,
    st.integers(1, 99),
    st.integers(1, 9999),
    st.one_of(st.just(0.0), st.floats(0.001, 64, allow_nan=False)),
)
chains = st.lists(choices, min_size=1, max_size=6).map(tuple)


@given(st.lists(chains, max_size=8))
def test_substages_come_back_as_they_were_written(written):
    found = Substages.parse([format_chain(chain) for chain in written])
    blocks = [
        BlockChoice(int(found.kernel_size[t]), int(found.width[t]), float(found.expand[t]))
        for t in found.token
    ]
    assert found.depth.tolist() == [len(chain) for chain in written]
    assert blocks == [block for chain in written for block in chain]


near = st.builds(
    BlockChoice,
    st.sampled_from([3, 5, 7]),
    st.sampled_from([8, 16, 24]),
    st.sampled_from([0.0, 2.0, 3.0]),
)


@given(st.lists(near, min_size=1, max_size=3).map(tuple), st.integers(0, 2), st.integers(0, 2))
def test_a_substage_is_refused_exactly_where_the_hyperspace_refuses_it(
    tmp_path_factory, chain, block, window
):
    stage, option = HYPERSPACE.searchable[0], HYPERSPACE.block_types[block]
    elastic = ElasticStage(stage=stage, option=option, widths=stage.windows[window])
    try:
        elastic.check(chain)
        words = "no rows for"
    except CodeError as error:
        words = str(error)
    row = f"1,{block},{window},{format_chain(chain)},8,8,0.5,0.1,0.01,0.2"
    with pytest.raises(LUTError, match=re.escape(words)):
        imported(write_joined(tmp_path_factory.getbasetemp(), [row]))


# ---- the published data -----------------------------------------------------------------------


@pytest.mark.published
@pytest.mark.parametrize(
    ("name", "rows", "loss", "ms"),
    [
        ("onnxw", 132_000, (0.1069, 1.0255), (0.1265, 57.3214)),
        ("mobilew", 210_000, (0.1468, 1.0235), (0.0859, 73.1062)),
    ],
)
def test_every_published_row_is_imported(name, rows, loss, ms):
    lut = published_lut(name)
    assert len(lut) == rows
    columns = lut.columns
    for column, ends in (("loss", loss), ("latency_ms", ms)):
        assert (columns[column].min(), columns[column].max()) == pytest.approx(ends, abs=1e-4)
    sizes = [b - a for a, b in lut._starts.values()]
    assert sum(sizes) == rows
    blocks = RowBlocks.of(lut.hyperspace, columns)
    for column, count, within in (("mflops", mflops, 1e-3), ("mparams", mparams, 4e-4)):
        ours = blocks.sums([count(block.kernels) for block in blocks.distinct])
        np.testing.assert_allclose(columns[column], ours, rtol=1e-6, atol=within)


@pytest.mark.published
def test_the_authors_own_files_have_the_rows_of_the_joined_one():
    folder = published_file("original_layout/onnxw/stage1_0_0.csv").parent
    lines = gzip.decompress(published_file("block_lut_onnxw.csv.gz").read_bytes()).decode()
    joined = set(lines.splitlines())
    for path in folder.iterdir():
        cell = path.stem.removeprefix("stage").replace("_", ",")
        for line in path.read_text().splitlines():
            substage, shape, figures = line.split(",", 2)
            _, cin, hw, _ = shape.split("x")
            assert f"{cell},{substage},{cin},{hw},{figures}" in joined
    hyperspace = load_hyperspace("onnxw")
    other = OtherStages.given(hyperspace, {160: 1, 192: 2, 224: 3})
    # All their rows fit; what is wrong is that only three cells are there.
    with pytest.raises(LUTError, match=r"onnxw: no rows for stage1, mbv1_dual, window \[48, 64\]"):
        import_published([folder], hyperspace, other)


@pytest.mark.published
def test_the_lut_of_one_hyperspace_is_not_that_of_the_other():
    hyperspace = load_hyperspace("mobilew")
    other = OtherStages.given(hyperspace, {160: 1, 192: 2, 224: 3})
    path = published_file("block_lut_onnxw.csv.gz")
    with pytest.raises(LUTError, match=r"\d+ of 132000 rows do not fit hyperspace 'mobilew'"):
        import_published([path], hyperspace, other)
