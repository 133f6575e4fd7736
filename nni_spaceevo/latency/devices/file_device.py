"""Devices that time model files: all that an own device has to say is how to time one."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ...errors import DeviceError
from ...files import write_atomically
from ...hyperspace import BlockConfig
from ..graph import Precision, subnet_model
from ..kernel_graph import idle_model, kernel_model
from ..lowering import Lowering, RuntimeKernel, lowering_of
from .device import Device, Timed

FileFormat = Literal["onnx-int8", "onnx-fp32", "tflite-int8"]


class FileDevice(Device):
    """A device that is handed model files; subclasses define `machine` and `time_file`.

    Attributes
    ----------
    format : "onnx-int8" (QuantizeLinear / DequantizeLinear), "onnx-fp32" or "tflite-int8"
    """

    format: FileFormat = "onnx-int8"

    @abstractmethod
    def time_file(self, path: Path, warmup: int, runs: int) -> Sequence[float]:
        """Latencies of single runs of a model file after warm-up runs, in microseconds.

        A device that only tells an average or a minimum returns that one value.
        """

    @property
    def suffix(self) -> str:
        """File name extension of the format."""
        return ".tflite" if self.format.startswith("tflite") else ".onnx"

    def kernel(self, kernel: RuntimeKernel, copies: int) -> Timed:
        """Parallel copies of a kernel as a file with inputs and outputs in NHWC."""
        if self.format == "tflite-int8":
            from ..tflite_graph import kernel_flatbuffer

            return self._file(kernel_flatbuffer(kernel, copies))
        model = kernel_model(kernel, copies, self.precision)
        return self._file(model.SerializeToString())

    def idle(self, copies: int) -> Timed:
        """A file that does nothing and has `copies` outputs."""
        if self.format == "tflite-int8":
            from ..tflite_graph import idle_flatbuffer

            return self._file(idle_flatbuffer(copies))
        return self._file(idle_model(copies, self.precision).SerializeToString())

    def network(self, blocks: Sequence[BlockConfig], resolution: int) -> Timed:
        """A whole network as a file."""
        rng = np.random.default_rng(0)
        if self.format == "tflite-int8":
            from ..tflite_graph import subnet_flatbuffer

            return self._file(subnet_flatbuffer(blocks, resolution, rng))
        model = subnet_model(blocks, resolution, rng, self.precision)
        return self._file(model.SerializeToString())

    def operators(self, kernel: RuntimeKernel) -> tuple[str, ...] | None:
        """Those of a TFLite file, of which a runtime runs what it has; not told of ONNX files."""
        if self.format != "tflite-int8":
            return None
        from ..tflite_graph import kernel_operators

        return kernel_operators(kernel)

    def lowering(self) -> Lowering:
        """What is in TFLite files; what a class of its own, or `operators` of ONNX files, tells."""
        own = type(self).operators is not FileDevice.operators
        if own or self.format != "tflite-int8":
            return super().lowering()
        from ..tflite_graph import TFLITE_OPERATORS

        return lowering_of(TFLITE_OPERATORS)

    @property
    def precision(self) -> Precision:
        """The precision of the format."""
        return "float32" if self.format == "onnx-fp32" else "int8"

    def _file(self, content: bytes) -> Timed:
        return _TimedFile(self, content)


class _TimedFile:
    """A model file; it lasts as long as this object."""

    def __init__(self, device: FileDevice, content: bytes) -> None:
        self._device = device
        self._folder = tempfile.TemporaryDirectory(prefix="spaceevo-")
        self._path = Path(self._folder.name) / f"model{device.suffix}"
        write_atomically(self._path, content)

    def least_us(self, warmup: int, runs: int) -> float:
        """Least of the latencies that the device tells, in microseconds."""
        latencies = [float(us) for us in self._device.time_file(self._path, warmup, runs)]
        if not latencies or not all(0 < us < float("inf") for us in latencies):
            raise DeviceError(
                f"{self._device.name}: expected latencies of single runs in microseconds, all "
                f"positive; got {latencies[:5]}"
            )
        return min(latencies)
