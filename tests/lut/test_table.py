"""The LUT's table and file: round trips, prices, and every way in which a file can be wrong."""

import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from nni_spaceevo.errors import FileAccessError, LockedError, LUTError
from nni_spaceevo.hyperspace import ElasticStage, chain_kernels, mflops, mparams
from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.testing import MACsLatency, synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace()
BEST = HYPERSPACE.space("synthetic-120-201")


@pytest.fixture(scope="module")
def lut():
    return synthetic_lut(HYPERSPACE, BEST, rows_per_cell=5)


@pytest.fixture
def path(lut, tmp_path):
    lut.save(tmp_path / "a.lut")
    return tmp_path / "a.lut"


def test_a_saved_lut_comes_back_the_same(lut, path):
    again = QuantizedLUT.load(path, HYPERSPACE)
    assert again.header == lut.header
    assert again.fingerprint == lut.fingerprint
    for name, values in lut.columns.items():
        assert np.array_equal(again.columns[name], values, equal_nan=True)
    assert [again.row(i) for i in range(20)] == [lut.row(i) for i in range(20)]


def test_the_order_of_rows_does_not_matter(lut):
    rows = [lut.row(i) for i in range(len(lut))]
    forward = QuantizedLUT.from_rows(HYPERSPACE, rows, "t")
    assert QuantizedLUT.from_rows(HYPERSPACE, rows[::-1], "t").fingerprint == forward.fingerprint


def test_columns_in_any_order_and_of_wider_types_give_the_same_lut(lut, rng):
    order = rng.permutation(len(lut))
    columns = {name: values[order].astype(np.float64) for name, values in lut.columns.items()}
    again = QuantizedLUT.from_columns(HYPERSPACE, columns, lut.header)
    assert again.fingerprint == lut.fingerprint


def test_an_expand_ratio_that_has_no_short_binary_form_is_kept_exactly(lut, tmp_path):
    options = [msgspec.structs.replace(o, expands=(1.2, 4.3)) for o in HYPERSPACE.block_types[1:]]
    types = (HYPERSPACE.block_types[0], *options)
    hyperspace = msgspec.structs.replace(HYPERSPACE, block_types=types)
    first = synthetic_lut(hyperspace, BEST, rows_per_cell=2)
    first.save(tmp_path / "a.lut")
    again = QuantizedLUT.load(tmp_path / "a.lut", hyperspace)
    expands = {b.expand for i in range(len(again)) for b in again.row(i).chain}
    assert expands == {0.0, 1.2, 4.3}


def test_rows_carry_their_mflops_and_mparams(lut):
    for i in range(0, len(lut), 37):
        row = lut.row(i)
        stage = HYPERSPACE.searchable[row.stage]
        option = HYPERSPACE.block_types[row.block]
        elastic = ElasticStage(stage=stage, option=option, widths=stage.windows[row.window])
        elastic.check(row.chain)
        blocks = elastic.blocks(row.cin, row.chain)
        kernels = chain_kernels(blocks, HYPERSPACE.input_hw(stage, row.resolution))
        assert lut.columns["mflops"][i] == pytest.approx(mflops(kernels))
        assert lut.columns["mparams"][i] == pytest.approx(mparams(kernels))


def test_errors_of_losses_come_back_and_may_be_unknown_in_some_rows(lut, tmp_path):
    rows = [replace(lut.row(i), loss_error=0.25, paired_error=0.125) for i in range(len(lut))]
    rows[7] = replace(rows[7], paired_error=None)
    QuantizedLUT.from_rows(HYPERSPACE, rows, "t", "m", 640).save(tmp_path / "b.lut")
    again = QuantizedLUT.load(tmp_path / "b.lut", HYPERSPACE)
    assert again.header.held_out_images == 640
    found = [again.row(i) for i in range(len(again))]
    assert {r.loss_error for r in found} == {0.25}
    assert sorted(str(r.paired_error) for r in found) == ["0.125"] * (len(rows) - 1) + ["None"]
    assert {lut.row(i).loss_error for i in range(len(lut))} == {None}


def test_a_lut_is_priced_anew_without_touching_its_losses(lut):
    twice = lut.priced(MACsLatency(macs_per_ms=0.5e6))
    once = lut.priced(MACsLatency(macs_per_ms=1e6))
    assert np.array_equal(twice.columns["loss"], lut.columns["loss"])
    np.testing.assert_allclose(twice.columns["latency_ms"], 2 * once.columns["latency_ms"])
    assert twice.header.device_fingerprint != once.header.device_fingerprint
    assert once.other_ms(16) > MACsLatency.network_overhead_ms
    assert once.header.other_ms_source == "latency predictor synthetic (macs-1e+06)"


def test_the_latency_range_of_a_space_is_that_of_its_rows(lut):
    low, high = lut.latency_range(BEST)
    span = lut.latency_span
    assert span[0] <= low < high <= span[1]


def test_the_same_lut_is_the_same_file(lut, path, tmp_path):
    lut.save(tmp_path / "b.lut")
    assert (tmp_path / "b.lut").read_bytes() == path.read_bytes()


def test_a_lut_of_an_older_schema_is_refused_by_name(path):
    def older(header):
        meta = json.loads(header.tobytes())
        return np.frombuffer(json.dumps({**meta, "schema": 2}).encode(), np.uint8)

    rewrite(path, header=older)
    words = r"a\.lut: LUT schema 2; this version reads 3; build or import it again"
    with pytest.raises(LUTError, match=words):
        QuantizedLUT.load(path, HYPERSPACE)


def test_a_lut_with_a_flipped_byte_is_refused_by_name(path, rng):
    content = path.read_bytes()
    for place in rng.integers(len(content), size=200):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            QuantizedLUT.load(path, HYPERSPACE)
        except LUTError as error:
            assert "a.lut: " in str(error)


def test_objects_are_never_unpickled(path):
    rewrite(path, loss=lambda a: a.astype(object))
    with pytest.raises(LUTError, match=r"a\.lut: truncated or not a LUT \(Object arrays"):
        QuantizedLUT.load(path, HYPERSPACE)


def test_a_lut_for_another_hyperspace_is_refused_by_name(path):
    other = synthetic_hyperspace(name="other")
    with pytest.raises(LUTError, match=r"a\.lut: made for hyperspace 'synthetic'.*'other'"):
        QuantizedLUT.load(path, other)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_lut_is_refused_by_name(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(LUTError, match=r"a\.lut: truncated or not a LUT"):
        QuantizedLUT.load(path, HYPERSPACE)


def rewrite(path, **changes):
    """Write the file again with some arrays replaced, as an editor or a bug would."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays.update({name: change(arrays[name].copy()) for name, change in changes.items()})
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(buffer.getvalue())


def put(index, value):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": put(3, np.nan)}, "row 3: loss is nan"),
        ({"latency_ms": put(4, -1)}, r"row 4: latency_ms is -1\.0"),
        ({"loss_error": put(6, -0.5)}, r"row 6: loss_error is -0\.5"),
        ({"paired_error": put(7, np.inf)}, r"row 7: paired_error is inf"),
        ({"loss": put(5, 0.123)}, "do not match the file's own hash"),
        ({"loss": lambda a: a.astype(np.float64)}, "columns"),
        ({"loss": lambda a: a[:-1]}, "unequal length"),
        ({"window": lambda a: np.roll(a, 1)}, "rows of one cell do not lie together"),
    ],
    ids=["nan", "negative", "error", "infinite", "altered", "dtype", "length", "order"],
)
def test_altered_values_are_refused_naming_file_and_row(path, changes, words):
    rewrite(path, **changes)
    with pytest.raises(LUTError, match=rf"a\.lut: .*{words}"):
        QuantizedLUT.load(path, HYPERSPACE)


def test_a_missing_cell_is_named(lut):
    rows = [r for r in map(lut.row, range(len(lut))) if (r.stage, r.block) != (1, 2)]
    with pytest.raises(LUTError, match=r"no rows for stage2, resnet, window \[8, 16\]"):
        QuantizedLUT.from_rows(HYPERSPACE, rows, "t")


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(LUTError, match="no such LUT; build it with"):
        QuantizedLUT.load(tmp_path / "b.lut", HYPERSPACE)


@pytest.mark.parametrize("kind", ["zip", "npy"])
def test_another_kind_of_file_is_refused(tmp_path, kind):
    with (tmp_path / "b.lut").open("wb") as stream:
        if kind == "npy":
            np.save(stream, np.ones(3))
        else:
            with zipfile.ZipFile(stream, "w") as archive:
                archive.writestr("hello", "world")
    with pytest.raises(LUTError, match="truncated or not a LUT"):
        QuantizedLUT.load(tmp_path / "b.lut", HYPERSPACE)


def test_a_second_process_writing_the_same_lut_is_refused_and_the_file_stays(lut, path):
    holder = (
        "import sys, time; from pathlib import Path; from nni_spaceevo.files import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline().strip() == "held"
        before = path.read_bytes()
        with pytest.raises(LockedError, match=rf"a\.lut: process {process.pid} is writing it"):
            lut.save(path)
        assert path.read_bytes() == before
    finally:
        process.kill()
        process.wait()
    lut.save(path)  # the lock died with its owner


def test_a_folder_that_cannot_be_written_gives_one_error(lut, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileAccessError, match="cannot write"):
        lut.save(tmp_path / "file" / "a.lut")
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208 (names are all that counts)
