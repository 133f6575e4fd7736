"""A user's own teachers, datasets and devices, by import path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import ConfigError


def import_own(name: str, folder: Path, what: str) -> Callable[[], Any]:
    """A function or class without arguments by its import path, `mymodule:name`.

    Parameters
    ----------
    name : import path; the module is on Python's path, or in `folder`
    folder : of the job file, or the current one where there is no job
    what : key of the job file or option, for errors

    Raises
    ------
    ConfigError
        There is no such module or name.
    """
    module, _, attribute = name.partition(":")
    place = str(folder.resolve())
    # Last, so that a file of that folder never hides a package.
    if place not in sys.path:
        sys.path.append(place)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{what} {name!r}: expected <module>:<function>, the module on Python's path or in "
            f"{place} ({error})"
        ) from error
