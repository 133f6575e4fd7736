"""Phones and boards through Android's adb, and the programs that time models there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from ...errors import ConfigError, DeviceError
from ...files import digest
from ..machine import Machine
from .command import SECONDS, filled, output_of, split_format, told_latencies
from .file_device import FileDevice

PHONE_FOLDER = "/data/local/tmp"
# Models that stay on the phone, which has little room there; the reference kernel is one of them.
_KEPT_MODELS = 8
# It would otherwise go on for a second a call.
_BENCHMARK_MODEL = (
    "--graph={model} --num_threads=1 --warmup_runs={warmup} --num_runs={runs} "
    "--warmup_min_secs=0 --min_secs=0"
)
_NUMBER = r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?)"
# Its line of figures; where all runs took the same time, it tells only the last.
_TIMING_LINE = re.compile(rf"\bcount=\d+ .*?\b(?:min|curr)={_NUMBER}(?!.*\bmin=)")
_AVERAGE = re.compile(rf"\bInference \(avg\): {_NUMBER}")
# What decides which INT8 kernels a runtime picks; the second group are INT8 dot products.
_PHONE_FLAGS = ("asimd", "asimdhp", "sve", "sve2", "avx2", "avx512f")
_PHONE_DOT_PRODUCTS = ("asimddp", "i8mm", "svei8mm", "avx_vnni", "avx512_vnni")
_HINTS = {
    "more than one device": "; say which by ANDROID_SERIAL, `adb devices` lists them",
    "no devices": "; connect a phone with USB debugging, `adb devices` must list it",
    "' not found": "; connect it with USB debugging, `adb devices` must list it",
    "unauthorized": "; allow USB debugging on the phone's screen",
}


class Phone:
    """What adb can do with one phone; every call raises `DeviceError` where it fails.

    Parameters
    ----------
    name : for messages
    serial : which phone, as `adb devices` lists it; None for the only one, or $ANDROID_SERIAL's
    timeout_s : seconds that one call may take
    """

    def __init__(self, name: str, serial: str | None = None, timeout_s: float = SECONDS) -> None:
        self.name, self.serial, self.timeout_s = name, serial, timeout_s

    def adb(self, *arguments: str) -> str:
        """What one command of adb says."""
        if shutil.which("adb") is None:
            raise DeviceError(f"{self.name}: adb is not on PATH; install Android's platform-tools")
        chosen = [] if self.serial is None else ["-s", self.serial]
        try:
            command = ["adb", *chosen, *arguments]
            return output_of(command, self.name, self.timeout_s, errors_too=True)
        except DeviceError as error:
            hint = next((text for sign, text in _HINTS.items() if sign in str(error)), "")
            raise DeviceError(f"{error}{hint}") from error

    def shell(self, command: str) -> str:
        """What a command says that runs on the phone."""
        return self.adb("shell", command)

    def push(self, path: Path, target: str) -> None:
        """Copy a file to the phone."""
        self.adb("push", str(path), target)

    def push_program(self, path: Path, target: str) -> None:
        """Copy a program to the phone, where it can be run then."""
        self.push(path, target)
        self.shell(f"chmod 755 {shlex.quote(target)}")

    def machine(
        self, program: Path, options: dict[str, str], protocol: str, threads: int = 1
    ) -> Machine:
        """The phone, and a program that runs there by its content."""
        asked = ("ro.product.manufacturer", "ro.product.model", "ro.soc.model")
        maker, model, chip = (self.shell(f"getprop {name}").strip() for name in asked)
        cpuinfo = self.shell("cat /proc/cpuinfo")
        flags = cpu_flags(cpuinfo)
        return Machine(
            cpu=f"{maker} {model} ({chip or 'unknown chip'})".strip(),
            cores=max(1, len(re.findall(r"^processor\s*:", cpuinfo, re.M))),
            flags=flags,
            vnni=any(flag in _PHONE_DOT_PRODUCTS for flag in flags),
            governor=None,
            runtime=f"adb: {program.name} {digest(program.read_bytes())}",
            threads=threads,
            kernel_options=options,
            network_options=options,
            protocol=protocol,
        )


class AdbDevice(FileDevice):
    """A phone or board that `adb` reaches, and a benchmark program that runs there.

    Parameters
    ----------
    spec : `[format:]binary[ arguments]`: the program's path on this machine, which is copied to
        the phone once, and further arguments for it. It is called as TFLite's `benchmark_model`;
        arguments with `{model}` in them replace that call, and its output may then be as for
        `CommandDevice`. `format` as there, but "tflite-int8" by default
    timeout_s : seconds that one call may take

    `ANDROID_SERIAL` says which phone, where there are several.

    Raises
    ------
    ConfigError
        A format that is not known, or no such program.
    """

    def __init__(self, spec: str, timeout_s: float = SECONDS) -> None:
        self.name = f"adb:{spec}"
        self.format, rest = split_format(spec, "tflite-int8")
        binary, _, arguments = rest.strip().partition(" ")
        self.binary = existing_program(Path(binary), f"device {self.name!r}")
        self.arguments = (
            arguments if "{model}" in arguments else f"{_BENCHMARK_MODEL} {arguments}".strip()
        )
        self._phone = Phone(self.name, timeout_s=timeout_s)
        self._program: str | None = None
        self._models: OrderedDict[str, None] = OrderedDict()
        self._machine: Machine | None = None

    @property
    def place(self) -> str:
        """The phone."""
        return f"phone {os.environ.get('ANDROID_SERIAL', '')}".strip()

    def machine(self) -> Machine:
        """The phone, and the program by its content; raises `DeviceError` without one."""
        if self._machine is None:
            options = {"format": self.format, "arguments": self.arguments}
            protocol = "batch 1; least of the latencies that the program tells in all its calls"
            self._machine = self._phone.machine(self.binary, options, protocol)
        return self._machine

    def time_file(self, path: Path, warmup: int, runs: int) -> Sequence[float]:
        """Least time of the program's runs, or their mean where it tells no more, in microseconds.

        Raises
        ------
        DeviceError
            adb is missing, there is no phone or more than one, or the program fails.
        """
        program, model = self._program or self._install(), self._pushed(path)
        arguments = filled(self.arguments, shlex.quote(model), warmup, runs)
        output = self._phone.shell(f"{shlex.quote(program)} {arguments}")
        return benchmark_model_us(output) or told_latencies(output, self.name)

    def _install(self) -> str:
        self._program = f"{PHONE_FOLDER}/{self.binary.name}"
        self._phone.push_program(self.binary, self._program)
        return self._program

    def _pushed(self, path: Path) -> str:
        """Where a model is on the phone; it is copied there unless it still is."""
        model = f"{PHONE_FOLDER}/spaceevo-{digest(path.read_bytes())}{self.suffix}"
        if model not in self._models:
            self._phone.push(path, model)
        self._models[model] = None
        self._models.move_to_end(model)
        if len(self._models) > _KEPT_MODELS:
            oldest, _ = self._models.popitem(last=False)
            self._phone.shell(f"rm -f {shlex.quote(oldest)}")
        return model


def existing_program(path: Path, wanted_by: str) -> Path:
    """The path of a program for the phone; raises `ConfigError` where there is no such file."""
    if not path.is_file():
        raise ConfigError(
            f"{wanted_by}: {path if path.name else 'nothing'} is not a file; expected the path of "
            "a benchmark program built for the phone, such as TFLite's benchmark_model"
        )
    return path


def benchmark_model_us(output: str) -> list[float]:
    """Latency in microseconds told by TFLite's `benchmark_model`, empty if there is none.

    The least run of its last line of figures, which is that of the runs after warm-up, else the
    mean.
    """
    lines, mean = _TIMING_LINE.findall(output), benchmark_model_mean_us(output)
    # Warm-up has a line of figures too: without a summary, there is nothing after it.
    return [] if mean is None else [float(lines[-1]) if lines else mean]


def benchmark_model_mean_us(output: str) -> float | None:
    """Mean latency in microseconds of the runs of TFLite's `benchmark_model`; None if not told."""
    averages = _AVERAGE.findall(output)
    return float(averages[-1]) if averages else None


def cpu_flags(cpuinfo: str) -> tuple[str, ...]:
    """Those flags in the text of /proc/cpuinfo that matter for INT8."""
    found = set(" ".join(re.findall(r"^(?:Features|flags)\s*:(.*)$", cpuinfo, re.M)).split())
    return tuple(f for f in (*_PHONE_FLAGS, *_PHONE_DOT_PRODUCTS) if f in found)
