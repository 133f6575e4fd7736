"""Devices behind a command line: any program that times a model file."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ...errors import ConfigError, DeviceError
from ..machine import Machine, describe_machine
from .file_device import FileDevice, FileFormat

_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
_US = {"ns": 1e-3, "us": 1.0, "µs": 1.0, "μs": 1.0, "ms": 1e3}
# Not inside a name or a longer number, such as "1,234 us", which would be taken for 234.
_LATENCY = re.compile(rf"(?<![\w.,+-])(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*({'|'.join(_US)})\b")
SECONDS = 60.0
# Enough of a program's words to see what is wrong.
_SHOWN_LINES, _SHOWN_CHARACTERS = 5, 400
_NOT_FOUND = 127


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

    def __init__(self, spec: str, timeout_s: float = SECONDS) -> None:
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


# ---- what other programs' devices share ----------------------------------------------------------


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
        raise DeviceError(f"{name}: command not found ({shown(err)})")
    if process.returncode:
        raise DeviceError(f"{name}: exit code {process.returncode}: {shown(err or out)}")
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
        f"JSON with latency_us or latency_ms; got: {shown(output)}"
    )


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


def shown(text: str) -> str:
    """The end of what a program said."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return "\n".join(lines[-_SHOWN_LINES:])[-_SHOWN_CHARACTERS:] or "it said nothing"
