"""How fast TFLite files are on an Android phone, by a benchmark program that runs there."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DeviceError
from ..latency.devices.adb import PHONE_FOLDER, Phone, benchmark_model_mean_us, existing_program
from .bench import SCHEMA, Bench, Entrant, by_turns, check_rounds
from .sessions import TFLITE

PREFIX = "adb:"
# The program runs a second at least, and half a second of warm-up, unless models are slow.
_SECONDS_A_CALL = 200.0
# Enough of the program's words to see what is wrong.
_SHOWN = 200


def time_files_on_phone(
    paths: Sequence[Path], device: str, program: Path | None, rounds: int = 20, threads: int = 1
) -> Bench:
    """Time files by turns on a phone, batch 1, on the random inputs that the program makes.

    Whatever is copied to the phone is removed again, unless the phone is gone by then.

    Parameters
    ----------
    paths : TFLite files
    device : "adb:" and the phone's serial number, as `adb devices` lists it
    program : TFLite's `benchmark_model` built for the phone, on this machine
    rounds : how often each file has its turn; a turn is one start of the program
    threads : of the program

    Raises
    ------
    ConfigError
        No file, fewer than one round or thread, a file that is not TFLite, or no such program.
    DeviceError
        adb is missing; the phone is not connected, does not allow it, or goes away midway; the
        program fails, or says something else than expected.
    """
    serial, program = check_phone_files(paths, device, program, rounds, threads)
    phone = Phone(device, serial, _SECONDS_A_CALL)
    # Says at once what is wrong with a phone that is missing or does not allow it.
    phone.adb("get-state")
    protocol = (
        f"batch 1, {threads} thread(s), {rounds} rounds of the files by turns, each one start of "
        "the program: its mean after warm-up"
    )
    options = {"num_threads": str(threads)}
    machine = phone.machine(program, options, protocol, threads)
    with _pushed(phone, program, paths) as targets:
        entrants = [
            _OnPhone(phone, path, machine.runtime, f"{command} --num_threads={threads}")
            for path, command in zip(paths, targets, strict=True)
        ]
        found = by_turns(entrants, rounds)
    return Bench(SCHEMA, machine, found)


def check_phone_files(
    paths: Sequence[Path], device: str, program: Path | None, rounds: int, threads: int
) -> tuple[str, Path]:
    """The phone's serial number and the program, if `time_files_on_phone` can take all of it.

    Raises
    ------
    ConfigError
        As `time_files_on_phone`.
    """
    check_rounds(paths, rounds, threads)
    serial = device.removeprefix(PREFIX)
    if not device.startswith(PREFIX) or not serial:
        raise ConfigError(f"device {device!r}: expected adb:<serial>, as `adb devices` lists it")
    if program is None:
        raise ConfigError(
            f"device {device!r}: expected --benchmark-binary, TFLite's benchmark_model built for "
            "the phone"
        )
    existing_program(program, f"device {device!r}")
    for path in paths:
        if path.suffix != TFLITE or not path.is_file():
            reason = "is not there" if path.suffix == TFLITE else f"is not a {TFLITE} file"
            raise ConfigError(
                f"{path}: {reason}; a phone runs TFLite files alone (`spaceevo export --output "
                f"x{TFLITE}` writes one)"
            )
    return serial, program


@contextmanager
def _pushed(phone: Phone, program: Path, paths: Sequence[Path]) -> Iterator[list[str]]:
    """For each file the command that times it, as long as all of them are on the phone."""
    folder = f"{PHONE_FOLDER}/spaceevo-{os.getpid()}"
    try:
        phone.shell(f"mkdir -p {folder}")
        there = f"{folder}/{program.name}"
        phone.push_program(program, there)
        commands = []
        for i, path in enumerate(paths):
            phone.push(path, f"{folder}/{i}{TFLITE}")
            commands.append(f"{shlex.quote(there)} --graph={folder}/{i}{TFLITE}")
        yield commands
    except BaseException:
        with suppress(DeviceError):
            phone.shell(f"rm -rf {folder}")
        raise
    phone.shell(f"rm -rf {folder}")


class _OnPhone(Entrant):
    """A file on the phone and the command that times it."""

    def __init__(self, phone: Phone, path: Path, runtime: str, command: str) -> None:
        self.path, self.runtime = path, runtime
        self._phone, self._command = phone, command

    def round_ms(self) -> NDArray[np.float64]:
        """What one start of the program says is the mean, shape (1,)."""
        try:
            output = self._phone.shell(self._command)
        except DeviceError as error:
            try:
                self._phone.adb("get-state")
            except DeviceError as gone:
                raise DeviceError(f"{self.path}: the phone went away midway ({gone})") from error
            raise DeviceError(f"{self.path}: {error}") from error
        us = benchmark_model_mean_us(output)
        if us is None:
            raise DeviceError(
                f"{self.path}: expected 'Inference (avg): <microseconds>' of the program, as "
                f"TFLite's benchmark_model says; got: {output.strip()[-_SHOWN:] or 'nothing'}"
            )
        return np.array([us / 1e3])
