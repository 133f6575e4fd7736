"""A job whose LUT is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs.small_job import write_small_job

from nni_spaceevo.jobs.job import Job
from nni_spaceevo.testing import synthetic_lut


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A small job with a synthetic LUT."""
    job = write_small_job(tmp_path, search={"constraints_ms": [1.5], "samples": 1000})
    synthetic_lut(job.hyperspace, job.hyperspace.space("synthetic-120-201")).save(job.lut_path)
    return job
