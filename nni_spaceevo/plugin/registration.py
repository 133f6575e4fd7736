"""Telling NNI about the tuner: `nnictl algo register`, kept per virtual environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from ..files import read_text
from .seam import ExperimentError

META = Path(__file__).with_name("meta.yml")


def environment() -> dict[str, str]:
    """This process's environment with the interpreter's own programs first on PATH.

    NNI's trials start `python3` from PATH, also where the user has not activated the virtual
    environment whose `spaceevo` is running.
    """
    programs = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")])}


def program(name: str) -> str:
    """A program of this environment as a user can type it from here, activated or not."""
    here = Path(sys.executable).parent / name
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)


def nnictl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter's `nnictl`; standard error is in `stdout`, in order."""
    command = [sys.executable, "-m", "nni.tools.nnictl.nnictl", *arguments]
    return subprocess.run(
        command,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def _meta() -> dict[str, Any]:
    meta: dict[str, Any] = yaml.safe_load(read_text(META))
    return meta


def registered_class() -> str | None:
    """Class path that NNI has for the tuner's name; None where it has none."""
    from nni.tools.package_utils import get_algo_meta

    found = get_algo_meta(_meta()["builtinName"])
    return None if found is None else str(found.class_name)


def is_registered() -> bool:
    """Whether `tuner: name: SpaceEvo` reaches this package's tuner."""
    return registered_class() == _meta()["className"]


def register() -> str:
    """Register the tuner with NNI; does nothing where it already is.

    Returns
    -------
    message : one line for the user

    Raises
    ------
    ExperimentError
        `nnictl` failed; carries what it said.
    """
    name, before = _meta()["builtinName"], registered_class()
    if before == _meta()["className"]:
        return f"tuner {name} is already registered with NNI"
    result = nnictl("algo", "register", "--meta", str(META))
    if result.returncode or not is_registered():
        raise ExperimentError(f"nnictl could not register tuner {name}: {result.stdout.strip()}")
    if before is not None:
        return f"tuner {name} is registered with NNI anew (it was {before})"
    return f"tuner {name} is registered with NNI"


def unregister() -> str:
    """Take the tuner out of NNI's list; returns one line for the user."""
    name = _meta()["builtinName"]
    if registered_class() is None:
        return f"tuner {name} is not registered with NNI"
    result = nnictl("algo", "unregister", name)
    if registered_class() is not None:
        raise ExperimentError(f"nnictl could not unregister tuner {name}: {result.stdout.strip()}")
    return f"tuner {name} is no longer registered with NNI"
