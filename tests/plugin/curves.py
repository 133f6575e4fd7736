"""Curves of trials as NNI's web page shows them."""

from __future__ import annotations

from pathlib import Path

from .browser import browser

OUTPUT = Path(__file__).parents[1] / "output"
_OPEN = "[...document.querySelectorAll('button')].find(b => b.innerText.includes({!r})).click()"
# A trial that failed has no curve.
_FIRST_CURVE = """
[...document.querySelectorAll('.ms-DetailsRow')].find(r => r.innerText.includes('(FINAL)'))
  .querySelector('button.detail-button-operation').click()
"""


def curve_keys(port: int, picture: str, profile: Path) -> set[str]:
    """What the page offers to draw of the first result's curve.

    Parameters
    ----------
    port : of an experiment with results
    picture : name of the screenshots: of all trials' curves, and of the first result
    profile : folder for the browser
    """
    with browser(profile) as page:
        page.open(f"http://127.0.0.1:{port}/detail")
        page.wait_for("(FINAL)")
        page.evaluate(_OPEN.format("Intermediate result"))
        before = set(page.wait_for("Intermediate").split())
        page.screenshot(OUTPUT / f"{picture}.png")
        # The first button of a trial opens its curve, and a list of what else there is to draw.
        page.evaluate(_FIRST_CURVE)
        page.wait_for("Intermediate results")
        page.click(".ms-Modal .ms-Dropdown")
        text = page.wait_for("largest")
        page.screenshot(OUTPUT / f"{picture}_curve.png")
        return {*text.split()} - before
