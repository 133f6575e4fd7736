"""Devices that time files: what they are handed, and what they may answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from nni_spaceevo.errors import DeviceError
from nni_spaceevo.hyperspace import BlockConfig, load_hyperspace
from nni_spaceevo.latency.devices import FileDevice
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.latency.sampling import kernel_pool, sample_kernels

from ..conftest import MACHINE

BLOCKS = [BlockConfig("conv", 3, 16, 3, 2, activation="relu")]
KERNEL = RuntimeKernel("conv1x1", 7, 16, 24)


class Recorder(FileDevice):
    """Keeps the content of the files that it is handed."""

    name = "recorder"

    def __init__(self, format="onnx-int8", answer=(3.0, 2.0, 4.0)):
        self.format, self.answer = format, answer
        self.seen: list[tuple[Path, bytes, int, int]] = []

    def machine(self):
        return MACHINE

    def time_file(self, path, warmup, runs):
        self.seen.append((path, path.read_bytes(), warmup, runs))
        return self.answer

    def models(self) -> list[onnx.ModelProto]:
        return [onnx.load_from_string(content) for _, content, _, _ in self.seen]


def time_all(device: Recorder) -> None:
    for timed in (device.kernel(KERNEL, 2), device.idle(3), device.network(BLOCKS, 32)):
        timed.least_us(1, 2)


def test_the_least_of_the_latencies_counts():
    device = Recorder()
    assert device.kernel(KERNEL, 1).least_us(3, 7) == 2.0
    assert device.seen[0][2:] == (3, 7)


@pytest.mark.parametrize(
    ("format", "element", "quantized"),
    [("onnx-int8", onnx.TensorProto.UINT8, True), ("onnx-fp32", onnx.TensorProto.FLOAT, False)],
)
def test_files_are_of_the_format(format, element, quantized):
    device = Recorder(format)
    time_all(device)
    kernel, idle, network = device.models()
    assert kernel.graph.input[0].type.tensor_type.elem_type == element
    assert (len(kernel.graph.output), len(idle.graph.output)) == (2, 3)
    assert any(n.op_type == "QuantizeLinear" for n in network.graph.node) is quantized
    assert {path.suffix for path, *_ in device.seen} == {".onnx"}


def test_tflite_files_are_flatbuffers():
    pytest.importorskip("ai_edge_litert", reason="its schema writes TFLite models")
    device = Recorder("tflite-int8")
    time_all(device)
    assert {path.suffix for path, *_ in device.seen} == {".tflite"}
    assert {content[4:8] for _, content, _, _ in device.seen} == {b"TFL3"}


@pytest.mark.parametrize("preset", ["onnxw", "mobilew"])
def test_tflite_files_can_be_made_of_every_kind_of_kernel_that_a_preset_has(preset):
    pytest.importorskip("ai_edge_litert", reason="TFLite needs the extra [litert]")
    device = Recorder("tflite-int8")
    rng = np.random.default_rng(0)
    pool = kernel_pool(load_hyperspace(preset), device.lowering(), rng)
    kernels = sample_kernels(pool, rng, 2)
    assert {"conv1x1", "dwconv"} < {kernel.type for kernel in kernels}
    for kernel in kernels:
        device.kernel(kernel, 1).least_us(0, 1)
    assert len(device.seen) == len(kernels)


def test_equal_requests_are_equal_files():
    device = Recorder()
    for _ in range(2):
        device.network(BLOCKS, 32).least_us(1, 1)
    assert device.seen[0][1] == device.seen[1][1]


def test_a_file_lasts_as_long_as_it_may_be_timed():
    device = Recorder()
    timed = device.kernel(KERNEL, 1)
    timed.least_us(1, 1)
    timed.least_us(1, 1)
    (path,) = {path for path, *_ in device.seen}
    assert path.is_file()
    del timed
    assert not path.exists()


@pytest.mark.parametrize("answer", [[], [0.0], [-1.0, 2.0], [float("nan")], [np.inf]])
def test_latencies_that_are_none_are_refused(answer):
    with pytest.raises(DeviceError, match=r"recorder: expected latencies .* in microseconds"):
        Recorder(answer=answer).kernel(KERNEL, 1).least_us(1, 1)
