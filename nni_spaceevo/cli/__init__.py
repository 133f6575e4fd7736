"""`spaceevo`: one verb per step from a device and images to an INT8 file."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from ..errors import CacheWarning, PredictorWarning, SpaceEvoError
from . import deploy, environment, jobs, latency, lut, search, subnets


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code, 1 after an error."""
    options = _parser().parse_args(arguments)
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        return options.run(options) or 0
    except SpaceEvoError as error:
        print(f"spaceevo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("spaceevo: stopped; the same command continues", file=sys.stderr)
        return 130


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Our own warnings as one line, without the line of code that happened to meet them."""
    label = "" if category in (PredictorWarning, CacheWarning) else f"{category.__name__}: "
    print(f"spaceevo: warning: {label}{message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="spaceevo", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="verb")
    for group in (environment, latency, lut, search, jobs, subnets, deploy):
        group.add_verbs(verbs)
    return parser
