"""What our trials share: the command line, and errors that reach the user."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import SpaceEvoError
from ..jobs.job import Job


def trial_main(
    module: str,
    description: str | None,
    work: Callable[[Job], str | None],
    arguments: Sequence[str] | None,
) -> int:
    """Entry point of a trial's module, which takes `--job`.

    Parameters
    ----------
    module, description : of the trial, for `--help`
    work : what the trial does; returns a line for its log, or nothing to say
    arguments : those of the process by default

    Returns
    -------
    the exit code, 1 after an error that the user can mend
    """
    parser = argparse.ArgumentParser(prog=module, description=description)
    parser.add_argument("--job", type=Path, required=True, help="job file (YAML)")
    options = parser.parse_args(arguments)
    try:
        line = work(Job(options.job))
    except SpaceEvoError as error:
        print(f"SpaceEvo: {error}", file=sys.stderr, flush=True)
        return 1
    if line is not None:
        print(line, flush=True)
    return 0
