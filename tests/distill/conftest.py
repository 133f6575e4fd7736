"""Fixtures of the distillation tests."""

import pytest
import torch

from .small_problem import Small, small_problem

# Small networks are no faster on two threads, and far slower on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A problem small enough to distil in a second."""
    return small_problem(tmp_path_factory.mktemp("teacher"))
