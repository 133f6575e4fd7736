"""Fixtures of the distillation tests."""

import pytest

from .small_problem import Small, small_problem


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A problem small enough to distil in a second."""
    return small_problem(tmp_path_factory.mktemp("teacher"))
