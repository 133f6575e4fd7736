"""Phones as devices; the phone is a folder, and its adb a script."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_phone import calls, executable

from nni_spaceevo.errors import ConfigError, DeviceError
from nni_spaceevo.latency.devices import get_device
from nni_spaceevo.latency.devices.adb import AdbDevice, benchmark_model_us

# As TFLite's: a line of figures of the warm-up, one of the runs, and a summary.
FAKE_BENCHMARK = """#!/bin/sh
for argument; do case "$argument" in --graph=*) model=${argument#--graph=};; esac; done
size=$(wc -c < "$model") || exit 1
echo "INFO: count=1 curr=99999"
echo "INFO: count=50 first=900 curr=800 min=$((size / 10)) max=950 avg=850 std=9"
echo "INFO: Inference timings in us: Init: 9, First inference: 99, Warmup (avg): 9, \
Inference (avg): 850"
echo "$@" > "$(dirname "$model")/arguments"
"""


@pytest.fixture
def benchmark(tmp_path) -> Path:
    return executable(tmp_path / "benchmark_model", FAKE_BENCHMARK)


def model_of(folder: Path, size: int) -> Path:
    path = folder / f"{size}.tflite"
    path.write_bytes(b"x" * size)
    return path


def test_a_phone_runs_the_pushed_program_on_the_pushed_model(phone, benchmark, tmp_path):
    device = get_device(f"adb:{benchmark} --use_xnnpack=true")
    assert device.format == "tflite-int8"
    assert device.time_file(model_of(tmp_path, 1230), 3, 7) == [123.0]
    arguments = (phone / "data/local/tmp/arguments").read_text()
    for text in ("--num_threads=1 --warmup_runs=3 --num_runs=7", "--use_xnnpack=true"):
        assert text in arguments


def test_program_and_models_are_pushed_once_and_old_models_removed(phone, benchmark, tmp_path):
    device = AdbDevice(str(benchmark))
    models = [model_of(tmp_path, size) for size in range(100, 1100, 100)]
    for model in models:
        for _ in range(2):
            device.time_file(model, 1, 1)
        device.time_file(models[0], 1, 1)
    pushed = [call for call in calls(phone) if call.startswith("push")]
    assert len(pushed) == 1 + len(models)
    left = {p.stat().st_size for p in (phone / "data/local/tmp").glob("*.tflite")}
    assert left == {100, *range(400, 1100, 100)}


def test_own_arguments_with_the_model_replace_the_usual_ones(phone, tmp_path):
    program = executable(tmp_path / "timer", "#!/bin/sh\necho $1 took 2 ms; shift 2; echo $*")
    device = get_device(f"adb:onnx-int8:{program} -m {{model}} -n {{runs}}")
    assert device.arguments == "-m {model} -n {runs}"
    assert device.suffix == ".onnx"
    assert list(device.time_file(model_of(tmp_path, 10), 1, 1)) == [2000.0]


def test_the_phone_is_described(phone, benchmark):
    machine = AdbDevice(str(benchmark)).machine()
    assert machine.cpu == "Acme Phone 7 (A123)"
    assert (machine.cores, machine.flags, machine.vnni) == (2, ("asimd", "asimddp"), True)
    assert machine.runtime.startswith("adb: benchmark_model ")
    other = AdbDevice(f"{benchmark} --use_xnnpack=false").machine()
    assert other != machine


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("adb: no devices/emulators found", "no devices/emulators found; connect a phone"),
        ("adb: more than one device/emulator", "more than one.*; say which by ANDROID_SERIAL"),
        ("adb: device unauthorized.", "unauthorized.*; allow USB debugging"),
        ("adb: device offline", "exit code 1: adb: device offline$"),
    ],
)
def test_a_phone_that_cannot_be_used_is_said(phone, benchmark, said, message):
    (phone / "state").write_text(said)
    with pytest.raises(DeviceError, match=message):
        AdbDevice(str(benchmark)).machine()


def test_a_push_that_fails_is_said(phone, tmp_path):
    program = executable(tmp_path / "refused", FAKE_BENCHMARK)
    with pytest.raises(DeviceError, match=r"failed to copy.*refused"):
        AdbDevice(str(program)).time_file(model_of(tmp_path, 10), 1, 1)


def test_a_program_that_fails_on_the_phone_is_said(phone, tmp_path):
    program = executable(tmp_path / "failing", "#!/bin/sh\necho no such delegate >&2; exit 2")
    with pytest.raises(DeviceError, match="exit code 2: no such delegate"):
        AdbDevice(str(program)).time_file(model_of(tmp_path, 10), 1, 1)


def test_without_adb_it_is_said_what_to_install(benchmark, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(DeviceError, match="adb is not on PATH; install"):
        AdbDevice(str(benchmark)).machine()


def test_a_program_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="nowhere/benchmark_model is not a file"):
        get_device("adb:nowhere/benchmark_model")
    with pytest.raises(ConfigError, match="nothing is not a file"):
        get_device("adb:")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("count=1 curr=7\ncount=5 first=9 curr=8 min=6 max=9 avg=7\nInference (avg): 7.5", [6]),
        ("count=1 curr=70 p5=70 median=70\nInference (avg): 2.95034e+06", [70]),
        ("Inference timings in us: Init: 1, Inference (avg): 2.5e+03", [2500]),
        ("count=1 curr=7", []),
        ("segmentation fault", []),
    ],
)
def test_the_least_run_after_warm_up_is_read_from_benchmark_model(output, expected):
    assert benchmark_model_us(output) == expected
