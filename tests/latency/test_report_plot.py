from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nni_spaceevo.errors import FileAccessError
from nni_spaceevo.latency.comparison import step_curves
from nni_spaceevo.latency.report_plot import accuracy_svg, steps_svg, write_accuracy_plot

from .conftest import NONE_HELD_OUT
from .formula import exact_report, formula_predictor


def test_equal_reports_give_equal_small_pictures(tmp_path: Path) -> None:
    report = exact_report({}, ("add", "conv", "se"))
    contents = []
    for name in ("a.png", "b.png"):
        write_accuracy_plot(report, tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].startswith(b"\x89PNG")
    assert len(contents[0]) < 80_000
    assert b"matplotlib" not in contents[0]


@pytest.mark.parametrize(
    "report", [{}, {"kernels": {"add": NONE_HELD_OUT}, "networks": NONE_HELD_OUT}], ids=str
)
def test_a_report_without_figures_is_drawn_too(report: dict, tmp_path: Path) -> None:
    write_accuracy_plot(report, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileAccessError, match="file"):
        write_accuracy_plot(exact_report({}, ()), tmp_path / "file" / "report.png")


def test_pictures_for_a_page_are_elements_that_scale() -> None:
    curves = step_curves(formula_predictor(), "dwconv")
    for draw in (lambda: accuracy_svg(exact_report({}, ("add",))), lambda: steps_svg(curves)):
        svg = draw()
        assert svg == draw()
        opening = svg[: svg.index(">")]
        assert opening.startswith("<svg role=") and "viewBox" in opening
        assert "width=" not in opening and "height=" not in opening
        assert "<metadata" not in svg and '<g id="' not in svg


def test_a_panel_a_curve() -> None:
    predictor = formula_predictor()
    curves = [c for kind in ("conv1x1", "dwconv") for c in step_curves(predictor, kind)]
    svg = steps_svg(curves)
    assert all(curve.title in svg for curve in curves)


def test_matplotlib_waits_until_something_is_drawn() -> None:
    code = (
        "import sys, nni_spaceevo.reports.device_report as _\nsys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
