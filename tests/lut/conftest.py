"""Fixtures of the LUT tests."""

from __future__ import annotations

import pytest

from .distilled_stages import Distilled, distilled


@pytest.fixture(scope="session")
def stage() -> Distilled:
    """A distilled stage."""
    return distilled(0)
