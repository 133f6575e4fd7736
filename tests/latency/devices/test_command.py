"""Programs as devices."""

from __future__ import annotations

import time

import pytest

from nni_spaceevo.errors import ConfigError, DeviceError
from nni_spaceevo.latency import measure
from nni_spaceevo.latency.devices import get_device
from nni_spaceevo.latency.devices.command import CommandDevice, told_latencies
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
