"""A supernet that several tests look at."""

from __future__ import annotations

import pytest

from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.supernets import TrainedSupernet, train_supernet

from .small_job import SPACE, SUPERNET, write_small_job


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, TrainedSupernet]:
    """A small job and its supernet of `SPACE`, trained once."""
    job = write_small_job(tmp_path_factory.mktemp("job"), supernet=SUPERNET)
    found = train_supernet(job, SPACE)
    assert found is not None
    return job, found


@pytest.fixture
def job(trained: tuple[Job, TrainedSupernet]) -> Job:
    """The job alone."""
    return trained[0]
