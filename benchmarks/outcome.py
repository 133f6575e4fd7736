"""Writing what a study came to, as all studies do: raw output, table and picture side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nni_spaceevo.files import to_json, write_atomically


def write_outcome(path: Path, result: dict[str, Any], shown: str, png: bytes | None = None) -> None:
    """Write and print it.

    Parameters
    ----------
    path : the JSON file; `.md` and `.png` lie beside it
    result : raw output, which `provenance` begins
    shown : the tables for people, Markdown
    png : the picture, if there is one
    """
    write_atomically(path, to_json(result))
    write_atomically(path.with_suffix(".md"), f"{shown}\n")
    if png is not None:
        write_atomically(path.with_suffix(".png"), png)
    print(shown)
