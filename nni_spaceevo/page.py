"""HTML pages of one file, which need neither a network nor scripts: elements, pictures, the page.

Pictures are drawn with matplotlib's own canvases, without pyplot, so that any thread may draw;
equal data give equal pages.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from .files import read_text, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TEMPLATE = Path(__file__).with_suffix(".html")
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa0a6",
    "axes.grid": True,
    "grid.color": "#e8eaed",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    # Else the identifiers in the file are drawn anew each time.
    "svg.hashsalt": "spaceevo",
    "font.family": "sans-serif",
    # Names come from the user's files: a dollar sign is one.
    "text.parse_math": False,
    "figure.constrained_layout.hspace": 0.08,
}


def write_page(path: Path, title: str, *sections: Html, style: str = "") -> None:
    """Write a page.

    Parameters
    ----------
    path : the HTML file
    title : of the window
    sections : what is on it, in order
    style : CSS rules beside those of every page

    Raises
    ------
    FileAccessError
        The page cannot be written.
    """
    page = Template(read_text(_TEMPLATE))
    body = join(*sections)
    write_atomically(path, page.substitute(title=html.escape(title), style=style, body=body))


# ---- elements ------------------------------------------------------------------------------------


class Html(str):
    """Text that is HTML already; any other text is escaped on its way into the page."""

    __slots__ = ()


def tag(name: str, *content: str, **attributes: str) -> Html:
    """An element; a trailing underscore of an attribute's name is dropped, as in `class_`."""
    written = "".join(f' {k.rstrip("_")}="{html.escape(v)}"' for k, v in attributes.items())
    inner = "".join(c if isinstance(c, Html) else html.escape(c) for c in content)
    return Html(f"<{name}{written}>{inner}</{name}>")


def join(*parts: Html) -> Html:
    """Elements one after the other."""
    return Html("\n".join(part for part in parts if part))


def paragraph(*content: str) -> Html:
    """A paragraph."""
    return tag("p", *content)


def bullets(items: Iterable[str]) -> Html:
    """A list of items."""
    return tag("ul", *(tag("li", item) for item in items))


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1, caption: str = ""
) -> Html:
    """A table whose first `text` columns are text and whose others are numbers."""

    def line(name: str, cells: Sequence[str]) -> Html:
        made = (
            c if isinstance(c, Html) and c.startswith("<td") else _cell(name, c, i < text)
            for i, c in enumerate(cells)
        )
        return tag("tr", *made)

    head = line("th", headers) if headers else Html()
    title = tag("caption", caption) if caption else Html()
    return tag("table", title, head, *(line("td", row) for row in rows))


def _cell(name: str, content: str, is_text: bool) -> Html:
    return tag(name, content, class_="text") if is_text else tag(name, content)


def facts(rows: Iterable[tuple[str, str]]) -> Html:
    """A table of names and what they are."""
    lines = (tag("tr", tag("td", name), tag("td", value)) for name, value in rows)
    return tag("table", *lines, class_="facts")


# ---- pictures ------------------------------------------------------------------------------------


def drawing() -> Any:
    """A context in which figures are made and drawn in the pages' style."""
    from matplotlib import rc_context

    return rc_context(_STYLE)


def svg(figure: Figure, label: str) -> Html:
    """A figure as an `<svg>` element; `label` is what a screen reader says."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # Sized by the page; groups' identifiers would repeat from figure to figure.
    drawn = re.sub(r' (width|height)="[\d.]+pt"', "", drawn, count=2)
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
    return Html(drawn.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1))


def plain_ticks(axes: Axes) -> None:
    """Plain numbers at 1, 2 and 5 of each decade; powers of ten say little about latencies."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
