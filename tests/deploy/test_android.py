"""TFLite files timed on a phone; the phone is a folder, and its adb a script."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_phone import SERIAL, calls, executable

from nni_spaceevo.cli import main
from nni_spaceevo.deploy.android import time_files_on_phone
from nni_spaceevo.errors import ConfigError, DeviceError

DEVICE = f"adb:{SERIAL}"
# As TFLite's: a line of figures of the warm-up, one of the runs, and a summary. A file takes as
# many microseconds as it has bytes.
FAKE_BENCHMARK = """#!/bin/sh
for argument; do case "$argument" in --graph=*) model=${argument#--graph=};; esac; done
size=$(wc -c < "$model") || exit 1
echo "STARTED $*" >> "$PHONE/calls"
echo "INFO: count=1 curr=99999"
echo "INFO: count=50 first=900 curr=800 min=7 max=950 avg=850 std=9"
echo "INFO: Inference timings in us: Init: 9, First inference: 99, Warmup (avg): 9, \
Inference (avg): $size" >&2
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return executable(tmp_path / "benchmark model", FAKE_BENCHMARK)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "a.tflite", tmp_path / "b.tflite"]
    for path, size in zip(found, (1500, 4500), strict=True):
        path.write_bytes(b"x" * size)
    return found


def left(phone: Path) -> list[Path]:
    return list((phone / "data/local/tmp").iterdir())


def test_files_take_turns_on_the_phone_and_nothing_stays_there(
    phone: Path, program: Path, files: list[Path]
) -> None:
    found = time_files_on_phone(files, DEVICE, program, rounds=3, threads=2)
    first, second = found.files
    assert (first.rounds_ms, second.rounds_ms) == ((1.5,) * 3, (4.5,) * 3)
    assert (first.median_ms, second.size_kb, second.ratio_to(first)) == (1.5, 4.5, 3.0)
    started = [call for call in calls(phone) if call.startswith("STARTED")]
    assert len(started) == 6
    assert all(call.endswith(" --num_threads=2") for call in started)
    assert sum(" push " in call for call in calls(phone)) == 3
    assert left(phone) == []
    assert found.machine.cpu == "Acme Phone 7 (A123)"
    assert first.runtime == found.machine.runtime
    assert first.runtime.startswith("adb: benchmark model ")


def test_the_command_prints_the_table(
    phone: Path, program: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", *map(str, files), "--device", DEVICE, "--rounds", "1"]
    assert main([*arguments, "--benchmark-binary", str(program)]) == 0
    assert "| 4.500 (4.500 to 4.500) | 3.00x |" in capsys.readouterr().out
    assert main(arguments) == 1
    assert "expected --benchmark-binary" in capsys.readouterr().err
    assert main([*arguments, "--runtime", "openvino"]) == 1
    assert "for ONNX files on this machine; there are none" in capsys.readouterr().err
    assert main(["bench", str(files[0]), "--benchmark-binary", str(program)]) == 1
    assert "expected --device adb:<serial> too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("adb: device unauthorized.", "unauthorized.*; allow USB debugging on the phone's screen"),
        ("adb: no devices/emulators found", "no devices.*; connect a phone with USB debugging"),
        ("adb: device offline", "adb:R5CT: exit code 1: adb: device offline$"),
    ],
)
def test_a_phone_that_cannot_be_used_is_said_at_once(
    phone: Path, program: Path, files: list[Path], said: str, message: str
) -> None:
    (phone / "state").write_text(said)
    with pytest.raises(DeviceError, match=message):
        time_files_on_phone(files, DEVICE, program)
    assert calls(phone) == ["-s R5CT get-state"]


def test_another_serial_is_not_found(phone: Path, program: Path, files: list[Path]) -> None:
    with pytest.raises(DeviceError, match="device 'XYZ' not found; connect it with USB debugging"):
        time_files_on_phone(files, "adb:XYZ", program)


def test_without_adb_it_is_said_what_to_install(
    program: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "nowhere")
    with pytest.raises(DeviceError, match="adb is not on PATH; install Android's platform-tools"):
        time_files_on_phone(files, DEVICE, program)


def test_a_phone_that_goes_away_midway_is_said(
    phone: Path, tmp_path: Path, files: list[Path]
) -> None:
    program = executable(
        tmp_path / "unplugged",
        f"{FAKE_BENCHMARK}[ $size = 4500 ] || exit 0\n"
        'echo "adb: device \'R5CT\' not found" > "$PHONE/state"; exit 255\n',
    )
    with pytest.raises(DeviceError, match=r"b\.tflite: the phone went away midway .*'R5CT' not f"):
        time_files_on_phone(files, DEVICE, program, rounds=2)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ("echo Loaded model", r"a\.tflite: expected 'Inference \(avg\): .*; got: Loaded model"),
        ("true", r"a\.tflite: expected 'Inference .*; got: nothing"),
        ("echo no such delegate >&2; exit 2", r"a\.tflite: .*exit code 2: no such delegate"),
    ],
)
def test_a_program_that_says_no_time_is_an_error_and_is_removed(
    phone: Path, tmp_path: Path, files: list[Path], ends: str, message: str
) -> None:
    program = executable(tmp_path / "other", f"#!/bin/sh\n{ends}\n")
    with pytest.raises(DeviceError, match=message):
        time_files_on_phone(files, DEVICE, program)
    assert left(phone) == []


def test_what_a_phone_cannot_run_is_refused(program: Path, files: list[Path]) -> None:
    for paths, device, binary, words in (
        ([Path("x.onnx")], DEVICE, program, r"x\.onnx: is not a \.tflite file"),
        ([Path("x.tflite")], DEVICE, program, r"x\.tflite: is not there"),
        (files, "adb:", program, "'adb:': expected adb:<serial>"),
        (files, "ort-x86-int8", program, "'ort-x86-int8': expected adb:<serial>"),
        (files, DEVICE, Path("none"), "none is not a file; expected the path of a benchmark"),
        ([], DEVICE, program, "0 files, 20 rounds"),
    ):
        with pytest.raises(ConfigError, match=words):
            time_files_on_phone(paths, device, binary)
