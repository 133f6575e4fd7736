from __future__ import annotations

import contextlib
import sys
import weakref
from collections import Counter

import numpy as np
import pytest

from nni_spaceevo.errors import DeviceError, LockedError
from nni_spaceevo.latency import measure
from nni_spaceevo.latency.devices import get_device
from nni_spaceevo.latency.journal import Journal, Slot
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.latency.measure import (
    Job,
    Noise,
    cold_mb,
    copies_on,
    idle_job,
    kernel_job,
    kernel_key,
    measure_all,
    measuring,
)
from nni_spaceevo.latency.sampling import random_network


def slot(key: str, us: float, reference_us: float) -> Slot:
    return Slot(key=key, us=us, reference_us=reference_us, seconds=0.0)


def test_slow_moments_are_counted_and_the_least_time_wins():
    slots = [slot("a", 5, 20), slot("a", 4, 20.1), slot("b", 9, 26), slot("other", 1, 10)]
    noise = Noise.of(slots, ["a", "b"])
    assert (noise.quiet("a"), noise.quiet("b")) == (2, 0)
    assert noise.least_us() == {"a": 4, "b": 9}
    slow = pytest.approx(100 / 3)
    assert noise.report() == {"slots": 3, "slow_slots": slow, "reference_us": 20.01}


def test_one_lucky_visit_does_not_make_a_network_fast(digits):
    network = random_network(digits, np.random.default_rng(0))
    slots = [slot(network.key, us, 20) for us in (5, 11, 10, 12, 13, 10, 14, 10, 15, 16, 17)]
    noise = Noise.of(slots, [network.key])
    assert noise.network_us([network]).tolist() == [10]


def test_models_are_built_twice_and_kept_while_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "free_memory_mb", lambda: 100.0)
    monkeypatch.setattr(measure, "_TOO_NOISY", 1.0)
    built, alive, most = [], weakref.WeakSet(), 0

    class Model(Alternating):
        def least_us(self, warmup, runs):
            nonlocal most
            most = max(most, len(alive))
            return 7.0

    def job(key, mb, visits):
        def build():
            built.append(key)
            model = Model()
            alive.add(model)
            return model

        return Job(key, build, keep_mb=mb, visits=visits)

    # Room for 40 MB: three at a time, and the large one alone.
    jobs = [*(job(key, 13.0, 1 + (key in "defg")) for key in "abcdefg"), job("large", 60.0, 1)]
    noise = measure_all(Alternating(), jobs, Journal(tmp_path / "j"), 2, 3, 0, progress=False)
    assert Counter(built) == dict.fromkeys([*"abcdefg", "large"], 2)
    assert most == 3
    assert all(len(noise.slots[job.key]) >= 2 * job.visits for job in jobs)


@pytest.mark.parametrize("visits", [1, 8])
def test_a_model_that_is_slow_as_long_as_it_lives_is_found_out(digits, tmp_path, visits):
    """The one built first takes five times as long at every visit."""
    built = []

    class Model(Alternating):
        def least_us(self, warmup, runs):
            return self.us

    def build():
        model = Model()
        model.us = 7.0 if built else 35.0
        built.append(model)
        return model

    network = random_network(digits, np.random.default_rng(0))
    jobs = [Job(network.key, build, visits=visits)]
    noise = measure_all(Alternating(), jobs, Journal(tmp_path / "j"), 5, 3, 0, progress=False)
    assert noise.least_us() == {network.key: 7.0}
    assert noise.network_us([network]).tolist() == [7.0]


def test_a_noisy_device_is_refused_with_figures():
    slots = [slot("a", 5, 20)] * 2 + [slot(key, 5, 30) for key in "bcd"]
    with pytest.raises(DeviceError, match=r"75 % of 4 models .* 50 % over its best"):
        Noise.of(slots, list("abcd")).check()


def test_a_few_unlucky_models_are_accepted():
    slots = [slot(key, 5, 20) for key in "abcdefg"] + [slot("h", 5, 30)]
    Noise.of(slots, list("abcdefgh")).check()


def test_measuring_is_resumed_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "_WAIT_AT_START_S", 0.0)
    kernel = RuntimeKernel("add", 4, 16, 16)
    device = get_device("ort-x86-int8")
    jobs = [idle_job(device, 2), kernel_job(device, kernel, 2)]
    path = tmp_path / "journal.jsonl"
    first = Journal(path)
    # Enough quiet visits to one of the two already: only the other is measured again.
    with first.writing() as pen:
        for _ in range(30):
            pen.add(slot("idle2", 3.0, 1e-3))
    # The invented reference makes every real visit look slow; only the visits matter here.
    with contextlib.suppress(DeviceError):
        measure_all(device, jobs, Journal(path), 2, 2, 0, progress=False)
    visited = [s.key for s in Journal(path).slots[30:]]
    assert set(visited) == {kernel_key(kernel, 2)}
    assert len(visited) == 4


def test_names_of_copies_differ():
    kernel = RuntimeKernel("add", 4, 16, 16)
    assert kernel_key(kernel, 2) != kernel_key(kernel, 3)


def test_weights_that_a_network_would_not_keep_are_cold_in_every_run(tmp_path, monkeypatch):
    """Other megabytes pass through the caches before each run, and one copy has all weights."""
    events = []

    class Model(Alternating):
        def kernel(self, kernel, copies):
            return self

        def least_us(self, warmup, runs):
            events.append((warmup, runs))
            return 7.0

    monkeypatch.setattr(measure._Visitor, "_pass_by", lambda self: events.append("passed"))
    monkeypatch.setattr(measure, "_REFERENCE_RUNS", 1000)
    model = Model()
    measure_all(
        model, [Job("a", lambda: model, cold=True)], Journal(tmp_path / "j"), 1, 9, 0, False
    )
    timed = [i for i, e in enumerate(events) if e != "passed" and e[1] < 1000]
    assert len(timed) > 1
    assert all(events[i] == (0, 1) and events[i - 1] == "passed" for i in timed)


def test_kernels_are_cold_where_four_megabytes_of_weights_run_in_this_process(phone):
    small, large = (RuntimeKernel("conv", 1, 1000, n, 1) for n in (999, 1000))
    there, floats = get_device(f"adb:{sys.executable}"), get_device("ort-x86-fp32")
    assert (
        cold_mb(there) is None and cold_mb(floats) == 1 and cold_mb(get_device("ort-x86-int8")) == 4
    )
    for device, kernel, cold in (
        (floats, small, False),
        (floats, large, True),
        (there, large, False),
    ):
        assert kernel_job(device, kernel, 1).cold == cold
    short, linear = (RuntimeKernel(kind, 1, 1000, 1000) for kind in ("conv1x1", "linear"))
    assert copies_on(floats, short) == 1 < copies_on(there, short)
    assert copies_on(floats, linear) == copies_on(there, linear) > 1


class Alternating:
    """A device whose reference kernel is slow at first, and then every fourth time."""

    def __init__(self):
        self.times = 0

    def kernel(self, kernel, copies):
        return self

    def least_us(self, warmup, runs):
        if runs < measure._REFERENCE_RUNS:
            return 7.0
        self.times += 1
        return 30.0 if self.times % 4 == 1 else 20.0


def test_a_visit_waits_for_a_quiet_moment_but_not_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "_PAUSE_S", 0.001)
    device = Alternating()
    jobs = [Job(key, lambda: device) for key in "abcdef"]
    noise = measure_all(device, jobs, Journal(tmp_path / "quiet"), 1, 3, 0, progress=False)
    slow = [s for group in noise.slots.values() for s in group if s.reference_us > 20]
    # Only the very first visit, before anything is known, may come at a bad time.
    assert len(slow) <= 1
    assert noise.least_us() == dict.fromkeys("abcdef", 7.0)


def test_a_machine_that_stays_busy_is_measured_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "_LONGEST_WAIT_S", 0.0)
    monkeypatch.setattr(measure, "_TOO_NOISY", 1.0)
    journal = Journal(tmp_path / "busy")
    with journal.writing() as pen:
        pen.add(slot("earlier", 7.0, 20.0))
    device = Alternating()
    monkeypatch.setattr(device, "least_us", lambda warmup, runs: 7.0 if runs < 10 else 30.0)
    jobs = [Job(key, lambda: device) for key in "abc"]
    noise = measure_all(device, jobs, journal, 1, 3, 0, progress=False)
    assert {s.reference_us for group in noise.slots.values() for s in group} == {30.0}


def test_networks_that_never_met_a_quiet_moment_are_refused_too(tmp_path):
    journal = Journal(tmp_path / "j")
    with journal.writing() as pen:
        for number in range(8):
            pen.add(slot("quiet", 5, 20))
            for key in "abc":
                pen.add(slot(key, 5, 30 + number))
    jobs = [Job(key, Alternating, visits=8) for key in "abc"] + [Job("quiet", Alternating)]
    with pytest.raises(DeviceError, match="75 % of 4 models never met a quiet moment"):
        measure_all(Alternating(), jobs, journal, 1, 1, 0, progress=False)


def test_two_processes_do_not_measure_on_one_place_at_a_time(phone):
    here, there = get_device("ort-x86-int8"), get_device("ort-x86-fp32")
    refused = pytest.raises(LockedError, match="another process measures on this machine")
    with measuring(here), refused, measuring(there):
        pass
    with measuring(here), measuring(get_device(f"adb:{sys.executable}")):
        pass
    with measuring(there):
        pass
