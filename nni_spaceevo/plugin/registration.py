"""Telling NNI about our tuners: `nnictl algo register`, kept per virtual environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def tuners() -> dict[str, str]:
    """Names and class paths of this package's tuners."""
    meta = yaml.safe_load(read_text(META))
    return {tuner["builtinName"]: tuner["className"] for tuner in meta["algorithms"]}


def registered_classes() -> dict[str, str | None]:
    """Class paths that NNI has for the names of our tuners; None where it has none."""
    from nni.tools.package_utils import get_algo_meta

    found = {name: get_algo_meta(name) for name in tuners()}
    return {name: None if meta is None else str(meta.class_name) for name, meta in found.items()}


def is_registered() -> bool:
    """Whether `tuner: name: SpaceEvo` and the others reach this package's tuners."""
    return registered_classes() == tuners()


def register() -> str:
    """Register the tuners with NNI; does nothing where they already are.

    Returns
    -------
    message : one line for the user

    Raises
    ------
    ExperimentError
        `nnictl` failed; carries what it said.
    """
    names, before = _listed(), registered_classes()
    if is_registered():
        return f"tuners {names} are already registered with NNI"
    result = nnictl("algo", "register", "--meta", str(META))
    if result.returncode or not is_registered():
        raise ExperimentError(f"nnictl could not register tuners {names}: {result.stdout.strip()}")
    stale = [
        f"{name} was {before[name]}"
        for name, path in tuners().items()
        if before[name] not in (None, path)
    ]
    anew = f" anew ({', '.join(stale)})" if stale else ""
    return f"tuners {names} are registered with NNI{anew}"


def unregister() -> str:
    """Take the tuners out of NNI's list; returns one line for the user."""
    names, before = _listed(), registered_classes()
    if not any(before.values()):
        return f"tuners {names} are not registered with NNI"
    said = [nnictl("algo", "unregister", name).stdout for name, path in before.items() if path]
    if any(registered_classes().values()):
        reason = " ".join("".join(said).split())
        raise ExperimentError(f"nnictl could not unregister tuners {names}: {reason}")
    return f"tuners {names} are no longer registered with NNI"


def _listed() -> str:
    return " and ".join(tuners())
