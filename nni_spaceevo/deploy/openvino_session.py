"""ONNX files opened by OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ..latency.devices.device import Repeated
from ..latency.devices.openvino import TimedRequest, compiled, options_of
from .sessions import Given, Session


class OpenVinoSession(Session):
    """An ONNX file compiled for one image at a time; see `open_session`."""

    title = "OpenVINO"

    def __init__(self, path: Path, threads: int) -> None:
        self._threads = threads
        self._model = compiled(path, threads)
        inputs = [_given(port) for port in self._model.inputs]
        super().__init__(path, inputs, _sizes(self._model.outputs[0])[-1])

    @property
    def runtime(self) -> str:
        """OpenVINO and its version."""
        return f"openvino {ov.get_version().partition('-')[0]}"

    @property
    def options(self) -> dict[str, str]:
        """Hints, threads and streams."""
        return options_of(self._threads)

    def timed(self) -> Repeated:
        """It on random inputs."""
        return TimedRequest(self._model)

    def _answers(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        # A result lies in memory that the next one is written to.
        return np.array(self._model([images])[0])


def _given(port: ov.Output) -> Given:
    kind = port.element_type
    return Given(port.any_name, kind.get_type_name(), kind == ov.Type.f32, _sizes(port))


def _sizes(port: ov.Output) -> tuple[int | str, ...]:
    return tuple(n.get_length() if n.is_static else str(n) for n in port.partial_shape)
