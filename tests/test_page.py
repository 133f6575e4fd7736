"""Pages of one file: what is text stays text, and equal data give equal pages."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nni_spaceevo.errors import FileAccessError
from nni_spaceevo.page import (
    Html,
    bullets,
    drawing,
    facts,
    join,
    paragraph,
    plain_ticks,
    svg,
    table,
    tag,
    write_page,
)

WILD = '<b>$x^2$ & "quoted"'
ESCAPED = "&lt;b&gt;$x^2$ &amp; &quot;quoted&quot;"


class _Closed(HTMLParser):
    """Fails on elements that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, name: str, attributes: object) -> None:
        self.open += [name] if name != "meta" else []

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name


def drawn(title: str = "title") -> str:
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(3, 2), layout="constrained")
        axes = figure.add_subplot(title=title)
        axes.plot([1, 10, 100], [1, 2, 3], "o-")
        axes.set_xscale("log")
        plain_ticks(axes)
        return svg(figure, title)


def test_text_is_escaped_and_html_is_not():
    assert tag("p", WILD) == f"<p>{ESCAPED}</p>"
    assert tag("p", tag("b", "x")) == "<p><b>x</b></p>"
    assert tag("td", "1", class_="text") == '<td class="text">1</td>'
    assert tag("i", "", title='"') == '<i title="&quot;"></i>'
    assert paragraph("a", tag("i", "b")) == "<p>a<i>b</i></p>"
    assert bullets(["<", "b"]) == "<ul><li>&lt;</li><li>b</li></ul>"
    assert join(Html("a"), Html(), Html("b")) == "a\nb"


def test_tables_align_text_and_numbers():
    made = table(["name", "ms"], [["a<b", "1.5"]], caption="times")
    assert made == (
        "<table><caption>times</caption>"
        '<tr><th class="text">name</th><th>ms</th></tr>'
        '<tr><td class="text">a&lt;b</td><td>1.5</td></tr></table>'
    )
    coloured = tag("td", "2", style="color: red")
    assert str(coloured) in table([], [["a", coloured]])
    assert facts([("k", "<v>")]) == (
        '<table class="facts"><tr><td>k</td><td>&lt;v&gt;</td></tr></table>'
    )


def test_a_picture_is_text_of_the_page_and_says_what_it_is():
    picture = drawn(WILD)
    assert picture.startswith("<svg")
    assert f'role="img" aria-label="{ESCAPED}"' in picture
    # The dollars are drawn, not read as a formula.
    assert "$x^2$ &amp;" in re.sub(r"aria-label=\"[^\"]*\"|<!--.*?-->", "", picture)
    assert ">10<" in picture and "metadata" not in picture


def test_equal_pictures_are_equal_text():
    assert drawn() == drawn() != drawn("another")


def test_a_page_is_one_file_that_needs_no_other(tmp_path: Path):
    path = tmp_path / "page.html"
    write_page(path, WILD, tag("h1", "$title"), Html(drawn()), style=".mine { color: red; }")
    source = path.read_text(encoding="utf-8")
    assert f"<title>{ESCAPED}</title>" in source
    assert "<h1>$title</h1>" in source and ".mine { color: red; }" in source
    assert "<script" not in source and "@import" not in source
    assert not re.search(r'\b(src|href)="(?!#)', source.replace("xlink:", ""))
    assert "url(" not in source.replace("url(#", "")
    parser = _Closed()
    parser.feed(source)
    assert not parser.open


def test_a_page_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileAccessError, match="file"):
        write_page(tmp_path / "file" / "page.html", "title")
