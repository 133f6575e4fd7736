"""Settings of the Q-T score and its result."""

from dataclasses import replace

import pytest

from nni_spaceevo.errors import ConfigError
from nni_spaceevo.hyperspace import SpaceCode
from nni_spaceevo.search import QTConfig, SpaceScore


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"constraints_ms": ()}, "constraints_ms"),
        ({"constraints_ms": (float("nan"),)}, "constraints_ms"),
        ({"samples": 10}, "samples"),
        ({"top": 0}, "top"),
        ({"t": 0.0}, "t must"),
        ({"a": -1.0}, "a at least"),
        ({"a": float("inf")}, "a at least"),
        ({"constraints_ms": (1.0, 1.0)}, "must differ"),
        ({"estimator": "guessed"}, "estimator"),
    ],
    ids=lambda v: str(v),
)
def test_wrong_settings_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        QTConfig(**{"constraints_ms": (1.0,), **wrong})


def test_scores_are_records_that_compare():
    score = SpaceScore(SpaceCode("s", (0,), (0,)), (1.0, 0.5), (0.5, 0.1), (2.0, 3.0), 0.1, 0.2)
    assert replace(score, scores=(1.0, 0.5)) == score
    assert score.score == 1.5
