"""Devices behind a command line: any program that times a model file, and phones through adb."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ...errors import ConfigError, DeviceError
from ...files import digest
from ..machine import Machine, describe_machine
from .file_device import FileDevice, FileFormat

_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
_US = {"ns": 1e-3, "us": 1.0, "µs": 1.0, "μs": 1.0, "ms": 1e3}
# Not inside a name or a longer number, such as "1,234 us", which would be taken for 234.
_LATENCY = re.compile(rf"(?<![\w.,+-])(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*({'|'.join(_US)})\b")
_SECONDS = 60.0
# Enough of a program's words to see what is wrong.
_SHOWN_LINES, _SHOWN_CHARACTERS = 5, 400
_NOT_FOUND = 127

_PHONE_FOLDER = "/data/local/tmp"
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


class CommandDevice(FileDevice):
    """A program that is given a model file and prints how long it runs.

    Parameters
    ----------
    spec : `[format:]command`, a shell command with `{model}` where the model's path goes, and with
        `{warmup}` and `{runs}` where the numbers of runs go, if it takes them; put no quotes around
        them. `format` is "onnx-int8" (the default), "onnx-fp32" or "tflite-int8"
    timeout_s : seconds that one call may take

    The command's output says the latency in one of two ways: text, of which the last number with a
    unit (ns, us, µs, ms) counts, such as "avg=123.4 us"; or a JSON object, on the last line or as
    the whole output, with `latency_us` or `latency_ms`, a number or a list of single runs'.

    Raises
    ------
    ConfigError
        A format that is not known, or a command without `{model}`.
    """

    def __init__(self, spec: str, timeout_s: float = _SECONDS) -> None:
        self.name = f"command:{spec}"
        self.format, self.command = split_format(spec, "onnx-int8")
        self.timeout_s = timeout_s
        if "{model}" not in self.command:
            raise ConfigError(
                f"device {self.name!r}: expected {{model}} in the command, where the path of the "
                "model file goes"
            )

    def machine(self) -> Machine:
        """This machine; measurements of different commands are not mixed."""
        options: dict[str, str] = {"format": self.format}
        protocol = "batch 1; least of the latencies that the command tells in all its calls"
        return describe_machine(f"command: {self.command}", options, options, protocol)

    def time_file(self, path: Path, warmup: int, runs: int) -> Sequence[float]:
        """What the command tells, in microseconds.

        Raises
        ------
        DeviceError
            It is not found, fails, takes too long, or tells no latency.
        """
        command = filled(self.command, shlex.quote(str(path)), warmup, runs)
        return told_latencies(output_of(command, self.name, self.timeout_s), self.name)


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

    def __init__(self, spec: str, timeout_s: float = _SECONDS) -> None:
        self.name = f"adb:{spec}"
        self.format, rest = split_format(spec, "tflite-int8")
        self.timeout_s = timeout_s
        binary, _, arguments = rest.strip().partition(" ")
        self.binary = Path(binary)
        self.arguments = (
            arguments if "{model}" in arguments else f"{_BENCHMARK_MODEL} {arguments}".strip()
        )
        if not self.binary.is_file():
            raise ConfigError(
                f"device {self.name!r}: {binary or 'nothing'} is not a file; expected the path of "
                "a benchmark program built for the phone, such as TFLite's benchmark_model"
            )
        self._program: str | None = None
        self._models: OrderedDict[str, None] = OrderedDict()
        self._machine: Machine | None = None

    def machine(self) -> Machine:
        """The phone, and the program by its content; raises `DeviceError` without one."""
        if self._machine is None:
            self._machine = self._described()
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
        output = self._shell(f"{shlex.quote(program)} {arguments}")
        return benchmark_model_us(output) or told_latencies(output, self.name)

    def _install(self) -> str:
        program = f"{_PHONE_FOLDER}/{self.binary.name}"
        self._adb("push", str(self.binary), program)
        self._shell(f"chmod 755 {shlex.quote(program)}")
        self._program = program
        return program

    def _pushed(self, path: Path) -> str:
        """Where a model is on the phone; it is copied there unless it still is."""
        model = f"{_PHONE_FOLDER}/spaceevo-{digest(path.read_bytes())}{self.suffix}"
        if model not in self._models:
            self._adb("push", str(path), model)
        self._models[model] = None
        self._models.move_to_end(model)
        if len(self._models) > _KEPT_MODELS:
            oldest, _ = self._models.popitem(last=False)
            self._shell(f"rm -f {shlex.quote(oldest)}")
        return model

    def _described(self) -> Machine:
        asked = ("ro.product.manufacturer", "ro.product.model", "ro.soc.model")
        maker, model, chip = (self._shell(f"getprop {name}").strip() for name in asked)
        cpuinfo = self._shell("cat /proc/cpuinfo")
        flags = cpu_flags(cpuinfo)
        options = {"format": self.format, "arguments": self.arguments}
        return Machine(
            cpu=f"{maker} {model} ({chip or 'unknown chip'})".strip(),
            cores=max(1, len(re.findall(r"^processor\s*:", cpuinfo, re.M))),
            flags=flags,
            vnni=any(flag in _PHONE_DOT_PRODUCTS for flag in flags),
            governor=None,
            runtime=f"adb: {self.binary.name} {digest(self.binary.read_bytes())}",
            threads=1,
            kernel_options=options,
            network_options=options,
            protocol="batch 1; least of the latencies that the program tells in all its calls",
        )

    def _shell(self, command: str) -> str:
        return self._adb("shell", command)

    def _adb(self, *arguments: str) -> str:
        if shutil.which("adb") is None:
            raise DeviceError(f"{self.name}: adb is not on PATH; install Android's platform-tools")
        try:
            return output_of(["adb", *arguments], self.name, self.timeout_s, errors_too=True)
        except DeviceError as error:
            hint = next((text for sign, text in _ADB_HINTS.items() if sign in str(error)), "")
            raise DeviceError(f"{error}{hint}") from error


_ADB_HINTS = {
    "more than one device": "; say which by ANDROID_SERIAL, `adb devices` lists them",
    "no devices": "; connect a phone with USB debugging, `adb devices` must list it",
    "unauthorized": "; allow USB debugging on the phone's screen",
}


# ---- what both share -----------------------------------------------------------------------------


def split_format(spec: str, default: FileFormat) -> tuple[FileFormat, str]:
    """Format and rest of `[format:]rest`.

    Raises
    ------
    ConfigError
        The format is not known.
    """
    first, colon, rest = spec.partition(":")
    for known in _FORMATS:
        if colon and first == known:
            return known, rest
    if colon and re.fullmatch(r"(onnx|tflite)-\w+", first):
        raise ConfigError(f"format {first!r}: expected one of {', '.join(_FORMATS)}")
    return default, spec


def filled(command: str, model: str, warmup: int, runs: int) -> str:
    """A command with its placeholders replaced; other braces, such as awk's, stay."""
    values = {"{model}": model, "{warmup}": str(warmup), "{runs}": str(runs)}
    for placeholder, value in values.items():
        command = command.replace(placeholder, value)
    return command


def output_of(
    command: str | list[str], name: str, timeout_s: float, errors_too: bool = False
) -> str:
    """Standard output of a program, or of a shell command.

    Parameters
    ----------
    command : program with arguments, or text for the shell
    name : of the device, for messages
    timeout_s : seconds after which it is killed, with all that it started
    errors_too : add standard error

    Raises
    ------
    DeviceError
        It is not found, fails (with the end of what it said), or takes too long.
    """
    process = subprocess.Popen(
        command,
        shell=isinstance(command, str),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except BaseException as error:
        # What a shell has started would otherwise run on, and hold the pipes open.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise DeviceError(f"{name}: no answer within {timeout_s:g} s") from error
        raise
    if process.returncode == _NOT_FOUND:
        raise DeviceError(f"{name}: command not found ({_shown(err)})")
    if process.returncode:
        raise DeviceError(f"{name}: exit code {process.returncode}: {_shown(err or out)}")
    return f"{out}\n{err}" if errors_too else out


def told_latencies(output: str, name: str) -> list[float]:
    """Latencies in microseconds that a command's output tells; see `CommandDevice`.

    Raises
    ------
    DeviceError
        It tells none; the message shows the output.
    """
    for text in (output.strip(), output.strip().rpartition("\n")[2]):
        if text.startswith("{"):
            found = _from_json(text)
            if found is not None:
                return found
    numbers = _LATENCY.findall(output)
    if numbers:
        value, unit = numbers[-1]
        return [float(value) * _US[unit]]
    raise DeviceError(
        f"{name}: no latency in the output; expected a number with a unit ({', '.join(_US)}), or "
        f"JSON with latency_us or latency_ms; got: {_shown(output)}"
    )


def benchmark_model_us(output: str) -> list[float]:
    """Latency in microseconds told by TFLite's `benchmark_model`, empty if there is none.

    The least run of its last line of figures, which is that of the runs after warm-up, else the
    mean.
    """
    lines = _TIMING_LINE.findall(output)
    averages = _AVERAGE.findall(output)
    # Warm-up has a line of figures too: without a summary, there is nothing after it.
    return [float(lines[-1] if lines else averages[-1])] if averages else []


def cpu_flags(cpuinfo: str) -> tuple[str, ...]:
    """Those flags in the text of /proc/cpuinfo that matter for INT8."""
    found = set(" ".join(re.findall(r"^(?:Features|flags)\s*:(.*)$", cpuinfo, re.M)).split())
    return tuple(f for f in (*_PHONE_FLAGS, *_PHONE_DOT_PRODUCTS) if f in found)


def _from_json(text: str) -> list[float] | None:
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        return None
    keys = [key for key in ("latency_us", "latency_ms") if key in content]
    if len(keys) != 1:
        return None
    values = content[keys[0]] if isinstance(content[keys[0]], list) else [content[keys[0]]]
    if not values or not all(type(v) in (int, float) for v in values):
        return None
    return [v * _US[keys[0][-2:]] for v in values]


def _shown(text: str) -> str:
    """The end of what a program said."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return "\n".join(lines[-_SHOWN_LINES:])[-_SHOWN_CHARACTERS:] or "it said nothing"
