"""The device that a predictor was measured on, as far as it explains its latencies."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from ..files import Record

# What decides which INT8 kernels ONNX Runtime's MLAS picks.
_TELLING_FLAGS = ("avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8")


class Machine(Record, frozen=True):
    """A machine with its runtime.

    Attributes
    ----------
    cpu : model name
    cores : logical CPUs
    flags : the CPU's vector extensions that matter for INT8
    vnni : whether it has INT8 dot products
    governor : frequency governor, None where it cannot be read
    runtime : runtime and version
    threads : intra-operator threads
    kernel_options, network_options : session options of single kernels and of whole networks
    protocol : how a latency is taken
    """

    cpu: str
    cores: int
    flags: tuple[str, ...]
    vnni: bool
    governor: str | None
    runtime: str
    threads: int
    kernel_options: dict[str, str]
    network_options: dict[str, str]
    protocol: str


def cpu_description() -> tuple[str, tuple[str, ...]]:
    """CPU model name and those of its flags that matter for INT8."""
    model, flags = platform.processor() or platform.machine(), set()
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = " ".join(value.split())
        elif name.strip() == "flags":
            flags = set(value.split())
            break
    return model, tuple(f for f in _TELLING_FLAGS if f in flags)


def has_vnni() -> bool:
    """Whether this CPU has INT8 dot products."""
    return any("vnni" in flag for flag in cpu_description()[1])


def local_device_name(runtime: str = "ort", precision: str = "int8") -> str:
    """Name for predictors of this machine, such as `x86_vnni_ort_int8`."""
    family = "x86" if platform.machine() in ("x86_64", "AMD64") else platform.machine()
    vnni = "_vnni" if has_vnni() else ""
    return f"{family}{vnni}_{runtime}_{precision}"


def describe_machine(
    runtime: str,
    kernel_options: dict[str, str],
    network_options: dict[str, str],
    protocol: str,
    threads: int = 1,
) -> Machine:
    """Describe this machine for a runtime that is used on so many threads."""
    model, flags = cpu_description()
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    return Machine(
        cpu=model,
        cores=os.cpu_count() or 1,
        flags=flags,
        vnni=has_vnni(),
        governor=governor or None,
        runtime=runtime,
        threads=threads,
        kernel_options=kernel_options,
        network_options=network_options,
        protocol=protocol,
    )


@contextlib.contextmanager
def pinned(cores: int = 1) -> Iterator[tuple[int, ...]]:
    """Keep this thread on some cores, at raised priority where allowed; restored afterwards.

    Threads that it starts meanwhile stay on them too.

    Parameters
    ----------
    cores : how many, the last ones of those allowed

    Yields
    ------
    their numbers; none where the system cannot pin, or has not as many
    """
    can = hasattr(os, "sched_setaffinity")
    if not can or cores > len(os.sched_getaffinity(0)):
        yield ()
        return
    allowed, priority = os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)
    chosen = tuple(sorted(allowed)[-cores:])
    os.sched_setaffinity(0, chosen)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, priority - 10)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, allowed)
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, priority)


def free_memory_mb() -> float:
    """Megabytes of memory that are free or easily made so; 0 where that is not known."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1e3
    return 0.0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
