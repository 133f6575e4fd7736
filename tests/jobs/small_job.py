"""A job whose whole preparation takes seconds: a small hyperspace on a few settings."""

from __future__ import annotations

from pathlib import Path

from nni_spaceevo.files import to_yaml
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.testing import synthetic_hyperspace

# Of a training of a supernet that takes seconds, and one of its spaces.
SPACE = "synthetic-012-201"
SUPERNET = {
    "fp32": {"epochs": 1, "learning_rate": 0.1},
    "int8": {"epochs": 1, "learning_rate": 0.01},
    "batch_size": 448,
    "random_subnets": 1,
    "recalibration_batches": 1,
    "evaluated_subnets": 1,
}
# Of a search of its subnets.
SUBNETS = {
    "evolution": {"population": 4, "mutations": 1, "crossovers": 1, "generations": 1},
    "surrogate": {"first": 3, "rounds": 1, "candidates": 1},
}


def predictor_name() -> str:
    """A predictor that comes with the package, so that no test needs a quiet machine."""
    return "x86_vnni_ort_int8"


def write_small_job(folder: Path, stages: int = 3, **changes: object) -> Job:
    """Write hyperspace and job files into `folder`; nothing is prepared yet."""
    job = {
        "schema": 1,
        "hyperspace": "hyperspace.yaml",
        "dataset": "digits",
        "teacher": {"widths": [8] * (stages + 1), "epochs": 1, "min_accuracy": 0.01},
        "distill": {"epochs_fp32": 1, "epochs_int8": 1, "batch_size": 512},
        "lut": {"rows_per_cell": 6, "calibration_images": 32, "held_out_images": 32},
        "search": {"constraint_quantiles": [0.4], "samples": 2000},
        "predictor": predictor_name(),
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hyperspace.yaml").write_text(to_yaml(synthetic_hyperspace(stages)))
    (folder / "spaceevo.yaml").write_text(to_yaml(job))
    return Job(folder / "spaceevo.yaml")
