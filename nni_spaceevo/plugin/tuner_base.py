"""What our tuners share: errors that reach the user, and checks that NNI leaves to them."""

from __future__ import annotations

import abc
import contextlib
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nni.tuner import Tuner

from ..errors import ConfigError, LockedError, SpaceEvoError
from ..files import exclusive
from ..jobs.job import Job
from . import seam


class GuardedTuner(Tuner, abc.ABC):
    """A tuner whose errors reach the user.

    Everything that can be wrong with an experiment is checked in `_set_up` and not in NNI's
    validator, which `nnictl create` never calls. The message goes to standard error, which NNI
    keeps in `log/nnictl_stderr.log`, and to the terminal.

    Parameters
    ----------
    **class_args
        `classArgs` of the experiment's YAML.

    Raises
    ------
    SpaceEvoError
        Whatever `_set_up` raises.
    """

    def __init__(self, **class_args: Any) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._end_experiment: Callable[[str], None] | None = None
        try:
            self._set_up(class_args)
        except SpaceEvoError as error:
            print_error(error)
            tell_no_start(error)
            raise

    @abc.abstractmethod
    def _set_up(self, class_args: dict[str, Any]) -> None:
        """Check everything and get ready."""

    def _meet(self, callback: Any) -> None:
        """Remember how to end the experiment, given a method of NNI's dispatcher."""
        dispatcher = getattr(callback, "__self__", None)
        self._end_experiment = getattr(dispatcher, "report_error", None)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """One call at a time; an error ends the experiment instead of leaving it to wait for ever.

        NNI's dispatcher only logs what its threads raise, and the manager goes on waiting.
        """
        with self._lock:
            try:
                yield
            except Exception as error:
                print_error(error)
                if self._end_experiment:
                    self._end_experiment(f"SpaceEvo: {error}")
                raise


def own(held: contextlib.ExitStack, path: Path, job: Job, doing: str) -> None:
    """Take the only right to write `path`, kept by `held`.

    Raises
    ------
    LockedError
        Another experiment has it; the message says what it is doing.
    """
    try:
        held.enter_context(exclusive(path))
    except LockedError as error:
        raise LockedError(
            f"{job.path}: another experiment is {doing} with this job ({error}); "
            "`nnictl experiment list` names it and `nnictl stop` ends it, or give this "
            "experiment a job with another work_dir"
        ) from error


def check_choices(expected: dict[str, Any], given: Any, of: str) -> None:
    """Refuse a search space other than the expected one.

    Raises
    ------
    ConfigError
        Names the first key that differs, with the given and the expected value.
    """
    given = given if isinstance(given, dict) else {}
    for key in dict.fromkeys([*expected, *given]):
        if given.get(key) != expected.get(key):
            raise ConfigError(
                f"searchSpace, key {key!r}: given {given.get(key, 'nothing')}, "
                f"expected {expected.get(key, 'no such key')} as {of} has it"
            )


def check_trial_python(command: str) -> None:
    """Refuse a trial command whose Python cannot run our trials.

    Raises
    ------
    ConfigError
        No such program on PATH, or one without nni or nni_spaceevo.
    """
    words = shlex.split(command)
    if not words or not Path(words[0]).name.startswith("python"):
        return  # A user's own wrapper around the trial: cannot be judged from outside.
    program = shutil.which(words[0])
    remedy = f"activate the virtual environment first: source {Path(sys.prefix)}/bin/activate"
    if program is None:
        raise ConfigError(f"trialCommand: no {words[0]!r} on PATH; {remedy}")
    if program == sys.executable:
        return
    # Finding is enough, and a second faster than importing NNI.
    code = (
        "import importlib.util as u, sys; "
        "sys.exit(not all(map(u.find_spec, ('nni', 'nni_spaceevo'))))"
    )
    if subprocess.run([program, "-c", code], cwd="/", capture_output=True, check=False).returncode:
        raise ConfigError(
            f"trialCommand: {words[0]!r} is {program}, which cannot import nni_spaceevo; {remedy}"
        )


def print_error(error: object) -> None:
    """Say what is wrong where `experiment.create` and `follow` find it."""
    # NNI keeps it in log/nnictl_stderr.log.
    print(f"SpaceEvo: {error}", file=sys.stderr, flush=True)


def tell_no_start(error: object) -> None:
    """Say on the user's terminal that the experiment cannot start, and why."""
    if not sys.stderr.isatty():
        name = seam.experiment_id()
        seam.tell_terminal(
            f"SpaceEvo: experiment {name} cannot start: {error}\n"
            f"SpaceEvo: `nnictl stop {name}` clears it away"
        )


def last_words(trial: seam.Trial | None) -> str:
    """The end of a trial's standard error and where the rest is."""
    if trial is None:
        return "see the trial's log in NNI's web UI"
    log = seam.trial_log(trial.id)
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        return f"its last line is {lines[-1]!r}; see {log}" if lines else f"see {log}"
    return f"see {log}"
