from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from latency.conftest import MACHINE, NONE_HELD_OUT
from latency.formula import FormulaPredictor, formula_predictor

from nni_spaceevo.errors import PredictorError
from nni_spaceevo.latency import Lowering
from nni_spaceevo.reports.device_report import write_device_report

VOID = {"meta"}


class Page(HTMLParser):
    """Text of a page outside its pictures; fails on tags that are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(self.source)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "svg" not in self.open and "style" not in self.open:
            self.words.append(data)


def page_of(
    tmp_path: Path, int8: FormulaPredictor, float32: FormulaPredictor | None = None
) -> Page:
    output = tmp_path / "page.html"
    assert write_device_report(int8, float32, output) == output
    return Page(output)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("page")
    return page_of(folder, formula_predictor(), formula_predictor("float32"))


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    assert "<script" not in page.source
    assert not re.search(r'\b(src|href)="(?!#)', page.source.replace("xlink:", ""))
    assert "url(http" not in page.source and "@import" not in page.source
    assert page.source.count("<svg") == 2


def test_the_findings_are_those_of_the_predictors(page: Page) -> None:
    # The made-up device: 1x1 convolutions three times as fast in INT8, depthwise ones slower.
    assert "gains most on conv1x1 (median 3.0×) and least on dwconv" in page.text
    assert "Slower in INT8 than in FP32, in the median: dwconv 3×3, dwconv 5×5." in page.text
    assert re.search(r"multiples beside them: dwconv 1\.\d+×\.", page.text)
    assert "at least in part: se, hswish." in page.text


def test_speeds_stand_in_cells_of_their_colour(page: Page) -> None:
    cells = re.findall(r'<td style="background:#(\w{6})">([\d.]+)</td>', page.source)
    assert len(cells) > 100
    for colour, text in cells:
        red, blue = int(colour[:2], 16), int(colour[4:], 16)
        # Orange below 1, blue above; the rounded text of a cell near 1 may say 1.0.
        assert (blue > red) if float(text) > 1.05 else (red > blue or float(text) > 0.95)


def test_operators_and_conversions_are_told(page: Page) -> None:
    for text in (
        "free after conv1x1, conv, dwconv, add",
        "DequantizeLinear, HardSwish, QuantizeLinear",
        "QLinearGlobalAveragePool, HardSigmoid, QLinearMul",
    ):
        assert text in page.text


def test_machine_protocol_and_calibration_are_told(page: Page) -> None:
    for text in ("INT8 on made up", "invented", "rounds 5", "10.0 µs", "Kendall's tau", "toy"):
        assert text in page.text
    assert "passed its accuracy gate: 100 % of 40 held-out networks within 5 %" in page.text


def test_the_same_predictors_give_the_same_page(page: Page, tmp_path: Path) -> None:
    again = page_of(tmp_path, formula_predictor(), formula_predictor("float32"))
    assert again.source == page.source


def test_without_a_float_predictor_the_page_says_how_to_make_one(tmp_path: Path) -> None:
    page = page_of(tmp_path, formula_predictor())
    assert (
        "spaceevo profile --device ort-x86-fp32 --hyperspace toy "
        "--output latency_predictors/toy_fp32"
    ) in page.text
    assert "in FP32" not in page.text.replace("than in FP32", "")


def test_a_failed_gate_cannot_be_overlooked(tmp_path: Path) -> None:
    page = page_of(tmp_path, formula_predictor(failures=("se: 12 % of kernels",)))
    assert "failed its accuracy gate" in page.text
    assert page.text.index("se: 12 % of kernels") < page.text.index("In short")
    assert "passed its accuracy gate" not in page.text


def test_a_predictor_that_held_nothing_out_does_not_pass(tmp_path: Path) -> None:
    int8 = formula_predictor()
    int8.report = {"kernels": {"conv": NONE_HELD_OUT}, "networks": NONE_HELD_OUT}
    page = page_of(tmp_path, int8)
    assert "nothing is known about this predictor's accuracy" in page.text
    assert "too few measured kernels" in page.text


def test_text_of_the_predictor_is_escaped(tmp_path: Path) -> None:
    machine = msgspec.structs.replace(MACHINE, cpu='<b>R&D</b> "9"')
    page = page_of(tmp_path, formula_predictor(machine=machine, notes=("<script>1</script>",)))
    assert "<b>R" not in page.source and "<script" not in page.source
    assert '<b>R&D</b> "9"' in page.text and "<script>1</script>" in page.text


def test_another_machine_or_a_failed_gate_of_the_partner_is_told(tmp_path: Path) -> None:
    machine = msgspec.structs.replace(MACHINE, cpu="another")
    page = page_of(tmp_path, formula_predictor(), formula_predictor("float32", machine=machine))
    assert "is of another, none" in page.text
    failed = formula_predictor("float32", failures=("everything",))
    assert "The FP32 predictor failed" in page_of(tmp_path, formula_predictor(), failed).text


def test_predictors_must_be_of_their_precision(tmp_path: Path) -> None:
    int8, float32 = formula_predictor(), formula_predictor("float32")
    with pytest.raises(PredictorError, match="float32 networks; expected int8"):
        write_device_report(float32, None, tmp_path / "page.html")
    with pytest.raises(PredictorError, match="int8 networks; expected float32"):
        write_device_report(int8, int8, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("float32", [False, True], ids=["alone", "with FP32"])
def test_a_device_known_by_blocks_has_a_page(tmp_path: Path, float32: bool) -> None:
    whole = Lowering(whole_blocks=True)
    partner = formula_predictor("float32", lowering=whole) if float32 else None
    page = page_of(tmp_path, formula_predictor(lowering=whole), partner)
    assert "does not tell which operators it starts" in page.text
    assert ("measured no kernels in common" in page.text) == float32


def test_a_device_that_computes_all_in_int8_is_praised_for_it(tmp_path: Path) -> None:
    int8 = formula_predictor(lowering=Lowering(operators={"conv1x1": ("Conv:int8",)}))
    assert "Everything computes in INT8." in page_of(tmp_path, int8).text


def test_notes_of_a_predictor_are_told(tmp_path: Path) -> None:
    int8 = formula_predictor()
    int8.provenance = replace(int8.provenance, notes=("estimated constant",))
    assert "estimated constant" in page_of(tmp_path, int8).text
