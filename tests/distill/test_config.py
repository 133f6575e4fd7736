"""Settings of teacher and distillation."""

import pytest

from nni_spaceevo.distill.config import DistillConfig, TeacherConfig
from nni_spaceevo.errors import ConfigError


@pytest.mark.parametrize(
    ("record", "wrong"),
    [
        (TeacherConfig, {"widths": (8,), "epochs": 0}),
        (TeacherConfig, {"widths": (), "epochs": 1}),
        (TeacherConfig, {"widths": (8,), "epochs": 1, "learning_rate": float("nan")}),
        (DistillConfig, {"epochs_int8": 0}),
        (DistillConfig, {"learning_rate_int8": -1.0}),
        (DistillConfig, {"batch_size": 1}),
        (DistillConfig, {"random_substages": -1}),
    ],
    ids=str,
)
def test_values_that_cannot_train_are_refused(record, wrong):
    with pytest.raises(ConfigError, match="must be"):
        record(**wrong)
