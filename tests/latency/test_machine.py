from __future__ import annotations

import os

import pytest

from nni_spaceevo.files import convert, plain
from nni_spaceevo.latency import machine
from nni_spaceevo.latency.machine import Machine, cpu_description, describe_machine, pinned

CPUINFO = (
    "processor\t: 0\nmodel name\t: Some  CPU @ 2GHz\nflags\t\t: fpu avx2 {vnni}\n\nprocessor: 1\n"
)


def with_cpuinfo(monkeypatch, text: str) -> None:
    files = {"/proc/cpuinfo": text}
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))


def test_model_and_telling_flags_are_read(monkeypatch):
    with_cpuinfo(monkeypatch, CPUINFO.format(vnni="avx512_vnni"))
    assert cpu_description() == ("Some CPU @ 2GHz", ("avx2", "avx512_vnni"))


def test_a_cpu_without_vnni_is_recorded_as_such(monkeypatch):
    with_cpuinfo(monkeypatch, CPUINFO.format(vnni=""))
    found = describe_machine("runtime 1", {}, {}, "protocol")
    assert (found.vnni, found.governor, found.flags) == (False, None, ("avx2",))


def test_a_system_without_proc_still_describes_itself(monkeypatch):
    with_cpuinfo(monkeypatch, "")
    model, flags = cpu_description()
    assert model
    assert flags == ()


def test_records_round_trip():
    found = describe_machine("runtime 1", {"a": "b"}, {}, "protocol")
    assert convert(plain(found), Machine, "here") == found


def test_the_local_device_name_tells_family_and_vnni(monkeypatch):
    from nni_spaceevo.latency import machine

    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "cpu_description", lambda: ("cpu", ("avx2", "avx512_vnni")))
    assert machine.local_device_name() == "x86_vnni_ort_int8"
    monkeypatch.setattr(machine, "cpu_description", lambda: ("cpu", ("avx2",)))
    assert machine.local_device_name() == "x86_ort_int8"
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine.local_device_name() == "aarch64_ort_int8"


def test_pinning_ends_with_the_block_even_on_errors():
    allowed = os.sched_getaffinity(0)
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    with pytest.raises(ZeroDivisionError), pinned() as cores:
        assert os.sched_getaffinity(0) == set(cores) == {max(allowed)}
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == allowed
    assert os.getpriority(os.PRIO_PROCESS, 0) == priority


def test_as_many_cores_as_there_are_can_be_pinned():
    allowed = os.sched_getaffinity(0)
    with pinned(len(allowed)) as cores:
        assert os.sched_getaffinity(0) == set(cores) == allowed
    with pinned(len(allowed) + 1) as cores:
        assert cores == ()
        assert os.sched_getaffinity(0) == allowed
