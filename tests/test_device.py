"""Where networks are trained. There need not be a GPU."""

import pytest
import torch

from nni_spaceevo.device import training_device
from nni_spaceevo.errors import ConfigError


def gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("wanted", "count", "number", "found"),
    [
        ("auto", 0, "0", "cpu"),
        ("auto", 2, "0", "cuda:0"),
        ("cuda", 2, "1", "cuda:1"),
        ("cpu", 2, "1", "cpu"),
        ("auto", 0, "7", "cpu"),
    ],
)
def test_each_process_has_its_gpu_if_there_is_one(monkeypatch, wanted, count, number, found):
    gpus(monkeypatch, count)
    monkeypatch.setenv("LOCAL_RANK", number)
    assert training_device(wanted, "distill") == torch.device(found)


def test_a_gpu_that_is_not_there_is_one_error(monkeypatch):
    gpus(monkeypatch, 0)
    with pytest.raises(ConfigError, match=r"supernet: device is cuda, but .* sees no GPU;"):
        training_device("cuda", "supernet")


def test_more_processes_than_gpus_are_one_error(monkeypatch):
    gpus(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 3 of a machine that has 2 GPUs; start at most"):
        training_device("auto", "distill")
