"""One root, one subclass by cause."""

from __future__ import annotations

import inspect

import pytest

import nni_spaceevo
from nni_spaceevo import errors
from nni_spaceevo.errors import CodeError, ConfigError, FileAccessError, LockedError, SpaceEvoError

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
ALL = [kind for kind in CLASSES if not issubclass(kind, Warning)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_has_the_root_and_says_its_cause(kind: type[Exception]) -> None:
    assert issubclass(kind, SpaceEvoError)
    assert kind.__name__.endswith("Error")
    assert kind.__dict__["__doc__"].endswith(".")


def test_warnings_are_user_warnings_that_say_their_cause() -> None:
    for kind in set(CLASSES) - set(ALL):
        assert issubclass(kind, UserWarning)
        assert kind.__name__.endswith("Warning")
        assert kind.__dict__["__doc__"]


def test_the_root_can_be_caught_from_the_package() -> None:
    assert nni_spaceevo.SpaceEvoError is SpaceEvoError
    assert not issubclass(SpaceEvoError, (ValueError, OSError)), "a cause, not a Python habit"


def test_a_lock_is_a_kind_of_file_access() -> None:
    assert issubclass(LockedError, FileAccessError)


@pytest.mark.parametrize("kind", [ConfigError, CodeError], ids=lambda kind: kind.__name__)
def test_errors_of_records_are_value_errors_so_that_files_can_say_where(
    kind: type[Exception],
) -> None:
    assert issubclass(kind, ValueError)
