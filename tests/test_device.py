"""Where networks are trained. There need not be a GPU."""

import subprocess
import sys
import threading

import pytest
import torch

from nni_spaceevo.device import ahead, one_thread, training_device
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


def test_one_thread_is_for_a_while():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


_STEPS = """
import resource
import torch
from nni_spaceevo.device import keep_memory
if {keep}:
    keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    kept = [torch.ones(n * 1_000_000) for n in (5, 10, 20, 3, 10)]
step()
step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_that_is_kept_is_not_cleared_again():
    cleared, kept = (
        int(subprocess.check_output([sys.executable, "-c", _STEPS.format(keep=keep)]))
        for keep in (False, True)
    )
    assert kept < cleared / 2


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("device", [CPU, GPU])
def test_what_is_read_ahead_comes_in_order(device):
    assert list(ahead(device, lambda n: n * n, range(7))) == [n * n for n in range(7)]
    assert list(ahead(device, str, ())) == []


@pytest.mark.parametrize("device", [CPU, GPU])
def test_what_reading_raises_comes_in_its_place(device):
    found = ahead(device, lambda n: 6 // (3 - n), range(9))
    assert [next(found) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_a_gpu_works_while_the_next_batches_are_read_and_no_more():
    read, second = [], threading.Event()

    def one(n):
        read.append(n)
        if n == 1:
            second.set()
        return n

    found = ahead(GPU, one, range(100))
    assert next(found) == 0
    assert second.wait(10)
    found.close()
    assert len(read) <= 3


def test_on_a_cpu_nothing_is_read_before_it_is_asked_for():
    read = []
    found = ahead(CPU, read.append, range(9))
    next(found)
    assert read == [0]
