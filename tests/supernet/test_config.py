"""Settings of a supernet's training."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nni_spaceevo.errors import ConfigError
from nni_spaceevo.files import convert, plain
from nni_spaceevo.supernet.config import PhaseConfig, SupernetConfig


def test_the_defaults_are_the_published_recipe():
    c = SupernetConfig()
    assert (c.fp32.epochs, c.fp32.learning_rate, c.fp32.warmup_epochs) == (360, 0.1, 5)
    assert (c.int8.epochs, c.int8.learning_rate, c.int8.warmup_epochs) == (50, 0.01, 3)
    assert (c.batch_size, c.random_subnets, c.label_smoothing, c.dropout) == (64, 2, 0.1, 0.2)
    assert (c.weight_decay, c.momentum, c.gradient_limit) == (1e-5, 0.9, 1.0)
    assert (c.distillation, c.alphas, c.ratio_limit) == ("alpha", (-1.0, 1.0), 5.0)
    assert c.label_share == 0
    assert (c.recalibration_batches, c.evaluate_every) == (20, 5)


def test_it_survives_plain_data():
    config = SupernetConfig(int8=PhaseConfig(epochs=0, learning_rate=1.0), alphas=(-2.0, 1.5))
    assert convert(plain(config), SupernetConfig, "here") == config


def test_supernets_from_before_labels_could_be_shared_are_of_the_same_settings():
    assert "label_share" not in SupernetConfig().deciding
    assert SupernetConfig(label_share=0.5).deciding["label_share"] == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "unknown field `epoch`.*allowed keys: fp32, int8, batch_size"),
        ({"batch_size": 1}, "batch_size must be at least 2, given 1"),
        ({"random_subnets": -1}, "random_subnets must be at least 0"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1, given 1.0"),
        ({"alphas": [1.0, -1.0]}, "alphas must be one below 0 and one above 0"),
        ({"distillation": "mse"}, "Invalid enum value 'mse'"),
        ({"ratio_limit": 0.5}, "ratio_limit must be above 1"),
        ({"label_share": 1.5}, "label_share must be from 0 to 1, given 1.5"),
        ({"gradient_limit": 0.0}, "gradient_limit must be above 0"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1"),
        ({"fp32": {"epochs": -1, "learning_rate": 0.1}}, "epochs must be at least 0"),
        ({"fp32": {"epochs": 1, "learning_rate": 0}}, "learning_rate above 0"),
        (
            {"int8": {"epochs": 2, "learning_rate": 0.1, "warmup_epochs": 3}},
            "warmup_epochs must be 0 to 2, the epochs of the phase, given 3",
        ),
        (
            {p: {"epochs": 0, "learning_rate": 0.1} for p in ("fp32", "int8")},
            "no epochs in either phase",
        ),
    ],
)
def test_a_mistake_is_refused_by_name(given, message):
    with pytest.raises(ConfigError, match=f"job: .*{message}"):
        convert(given, SupernetConfig, "job")


def test_phases_follow_each_other_and_end_with_an_evaluation():
    config = SupernetConfig(
        fp32=PhaseConfig(epochs=3, learning_rate=1.0),
        int8=PhaseConfig(epochs=2, learning_rate=1.0),
        evaluate_every=2,
    )
    assert [config.phase(epoch)[1] for epoch in range(config.epochs)] == [0, 1, 2, 0, 1]
    assert [config.is_quantized(epoch) for epoch in range(5)] == [False] * 3 + [True] * 2
    assert [config.is_evaluated(epoch) for epoch in range(5)] == [False, True, True, False, True]


def test_settings_are_read_without_torch():
    code = "import sys, nni_spaceevo.supernet.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
