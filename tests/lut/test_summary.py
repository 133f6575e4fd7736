"""The text about a LUT."""

from dataclasses import replace

import numpy as np

from nni_spaceevo.lut import QuantizedLUT
from nni_spaceevo.lut.summary import format_lut
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

HYPERSPACE = synthetic_hyperspace()
LUT = synthetic_lut(HYPERSPACE, HYPERSPACE.space("synthetic-120-201"), rows_per_cell=3)


def test_the_text_says_where_the_lut_comes_from_and_what_is_in_it():
    text = format_lut(LUT)
    for words in (
        f"hyperspace     synthetic ({HYPERSPACE.fingerprint})",
        "teacher        synthetic",
        "device         synthetic (macs-1e+06)",
        "ms; latency predictor synthetic (macs-1e+06)",
        f"rows           {len(LUT)}, subnets of",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_tables_have_a_median_for_every_block_type_and_stage():
    tables = format_lut(LUT).split("\n\n")[1:]
    for table, column in zip(tables, ("loss", "latency_ms"), strict=True):
        head, *lines = (line.split() for line in table.splitlines())
        assert head[-3:] == ["stage1", "stage2", "stage3"]
        assert [line[0] for line in lines] == [o.type for o in HYPERSPACE.block_types]
        c = LUT.columns
        median = np.median(c[column][(c["stage"] == 2) & (c["block"] == 1)])
        assert lines[1][3] == f"{median:.4f}"


def test_the_text_says_how_well_the_losses_are_known():
    assert "losses         with unknown errors" in format_lut(LUT)
    rows = [replace(LUT.row(i), loss_error=0.01, paired_error=0.002) for i in range(len(LUT))]
    text = format_lut(QuantizedLUT.from_rows(HYPERSPACE, rows, "t", held_out_images=640))
    assert "losses         640 held-out images put 8" in text
    *_, table = text.split("\n\n")
    assert [line.split("  ")[0] for line in table.splitlines()][:2] == [
        "batches of 64 images",
        "error of a loss",
    ]
    assert max(map(len, text.splitlines())) <= 100


def test_an_unpriced_lut_shows_no_latencies():
    rows = [LUT.row(i) for i in range(len(LUT))]
    text = format_lut(QuantizedLUT.from_rows(HYPERSPACE, rows, "t", "m"))
    assert "device         unpriced" in text
    assert "made with      m" in text
    assert " ms" not in text
