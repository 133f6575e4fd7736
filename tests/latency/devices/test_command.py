"""Programs and phones as devices; the phone is a folder, and its adb a script."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from nni_spaceevo.errors import ConfigError, DeviceError
from nni_spaceevo.latency import measure
from nni_spaceevo.latency.devices import get_device
from nni_spaceevo.latency.devices.command import (
    AdbDevice,
    CommandDevice,
    benchmark_model_us,
    told_latencies,
)
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.latency.profile import ProfileOptions, profile_device

KERNEL = RuntimeKernel("conv1x1", 7, 16, 24)
# A latency that grows with the model's size, by programs that start fast.
BY_SIZE = "wc -c < {model} | awk '{ printf \"avg=%.3f us\\n\", 5 + $1 / 100 }'"


# ---- a command -----------------------------------------------------------------------------------


def test_a_command_times_a_file(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"x" * 1500)
    assert get_device(f"command:{BY_SIZE}").time_file(model, 3, 7) == [20.0]


def test_a_kernel_is_handed_over_as_a_file_that_onnx_reads(tmp_path):
    kept = tmp_path / "kept.onnx"
    device = CommandDevice(f"cp {{model}} {kept} && echo 1 us {{warmup}} {{runs}}")
    timed = device.kernel(KERNEL, 2)
    assert timed.least_us(3, 7) == 1.0
    onnx = pytest.importorskip("onnx")
    assert len(onnx.load(kept).graph.output) == 2


def test_numbers_of_runs_and_braces_reach_the_command(tmp_path):
    device = CommandDevice("awk 'BEGIN { print {warmup} + {runs} \" ms\" }' # {model}")
    assert list(device.time_file(tmp_path / "any", 3, 7)) == [10_000.0]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("avg=123.4 us", [123.4]),
        ("1.23 ms\n", [1230.0]),
        ("5 µs", [5.0]),
        ("750ns", [0.75]),
        ("load 80 ms\nmin 1.5e+03 us\nruns 20\n", [1500.0]),
        ('{"latency_us": 12}', [12.0]),
        ('loaded in 3 ms\n{"latency_ms": [0.5, 0.25], "runs": 2}', [500.0, 250.0]),
        ('{\n  "latency_us": [7]\n}\n', [7.0]),
    ],
)
def test_latencies_are_told_with_a_unit_or_as_json(output, expected):
    assert told_latencies(output, "any") == pytest.approx(expected)


@pytest.mark.parametrize(
    "output",
    [
        "",
        "42",
        "took 3 s",
        "1,234 us",
        "-5 us",
        "5 usual",
        '{"latency": 3}',
        '{"latency_us": true}',
        '{"latency_us": 1, "latency_ms": 1}',
        '{"latency_us": []}',
        '{"latency_us": 3',
    ],
)
def test_other_outputs_are_shown(output):
    with pytest.raises(DeviceError, match="no latency in the output") as caught:
        told_latencies(output, "any")
    assert (output or "it said nothing") in str(caught.value)


def test_a_latency_of_nothing_is_refused():
    with pytest.raises(DeviceError, match="positive"):
        CommandDevice("echo 0 us # {model}").kernel(KERNEL, 1).least_us(1, 1)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-program {model}", "command not found.*no-such-program"),
        ("echo starting; echo wrong model >&2; exit 3 # {model}", "exit code 3: wrong model$"),
        ("echo only this; exit 4 # {model}", "exit code 4: only this$"),
        ("echo nothing # {model}", "no latency in the output.*nothing$"),
    ],
)
def test_what_goes_wrong_is_said(command, message, tmp_path):
    with pytest.raises(DeviceError, match=message):
        CommandDevice(command).time_file(tmp_path, 1, 1)


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    device = CommandDevice("sleep 60; echo 1 us # {model}", timeout_s=0.2)
    start = time.monotonic()
    with pytest.raises(DeviceError, match=r"no answer within 0\.2 s"):
        device.time_file(tmp_path, 1, 1)
    assert time.monotonic() - start < 10


def test_a_command_without_a_place_for_the_model_is_refused():
    with pytest.raises(ConfigError, match=r"expected \{model\}"):
        get_device("command:echo 1 us")


def test_the_format_is_chosen_by_a_prefix(tmp_path):
    assert CommandDevice("run {model}").format == "onnx-int8"
    device = CommandDevice("tflite-int8:run --graph={model}")
    assert (device.format, device.command, device.suffix) == (
        "tflite-int8",
        "run --graph={model}",
        ".tflite",
    )
    assert CommandDevice("onnx-fp32:run {model}").precision == "float32"
    # Other colons belong to the command.
    assert CommandDevice("ssh host:22 run {model}").command == "ssh host:22 run {model}"
    with pytest.raises(ConfigError, match=r"'tflite-int4'.*onnx-int8, onnx-fp32, tflite-int8"):
        CommandDevice("tflite-int4:run {model}")


def test_different_commands_are_different_machines():
    one, other = CommandDevice("a {model}").machine(), CommandDevice("b {model}").machine()
    assert one.runtime == "command: a {model}"
    assert one != other
    formats = ("onnx-fp32:a {model}", "onnx-int8:a {model}")
    assert len({repr(CommandDevice(spec).machine()) for spec in formats}) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nni_spaceevo.errors.PredictorWarning")
def test_a_predictor_comes_out_of_a_command(digits, tmp_path, monkeypatch):
    for name, value in {"_GATE": 1e9, "_TOO_NOISY": 1.0}.items():
        monkeypatch.setattr(measure, name, value)
    options = ProfileOptions(
        kernels_per_type=8,
        more_kernels=0,
        rounds=1,
        repeats=1,
        calibration_networks=4,
        validation_networks=2,
    )
    device = get_device(f"command:{BY_SIZE}")
    predictor = profile_device(device, digits, tmp_path / "mine", options, True, False)
    assert predictor.provenance.device == device.name
    measured = predictor.report["predicted_and_measured_ms"]["networks"]
    assert len(measured) == 2
    assert all(ms > 0 for pair in measured for ms in pair)


# ---- a phone -------------------------------------------------------------------------------------

FAKE_ADB = """#!/bin/sh
# Pushes into the folder $PHONE, and runs there what would run on the phone.
echo "$@" >> "$PHONE/calls"
[ -f "$PHONE/broken" ] && { cat "$PHONE/broken" >&2; exit 1; }
case "$1" in
push)
    case "$2" in *refused*) echo "adb: error: failed to copy '$2'" >&2; exit 1;; esac
    mkdir -p "$PHONE$(dirname "$3")" && cp "$2" "$PHONE$3"
    echo "1 file pushed" ;;
shell)
    case "$2" in
    "getprop ro.product.manufacturer") echo Acme ;;
    "getprop ro.product.model") echo "Phone 7" ;;
    "getprop ro.soc.model") echo A123 ;;
    "cat /proc/cpuinfo") printf 'processor\\t: %s\\nFeatures\\t: fp asimd asimddp\\n' 0 1 ;;
    *) sh -c "$(echo "$2" | sed "s#/data/local/tmp#$PHONE/data/local/tmp#g")" ;;
    esac ;;
esac
"""
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


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def phone(tmp_path, monkeypatch) -> Path:
    """The folder that is the phone's root; `calls` in it lists what adb was asked."""
    folder, tools = tmp_path / "phone", tmp_path / "tools"
    folder.mkdir()
    tools.mkdir()
    executable(tools / "adb", FAKE_ADB)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PHONE", str(folder))
    return folder


@pytest.fixture
def benchmark(tmp_path) -> Path:
    return executable(tmp_path / "benchmark_model", FAKE_BENCHMARK)


def model_of(folder: Path, size: int) -> Path:
    path = folder / f"{size}.tflite"
    path.write_bytes(b"x" * size)
    return path


def calls(phone: Path) -> list[str]:
    return (phone / "calls").read_text().splitlines()


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
    (phone / "broken").write_text(said)
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
