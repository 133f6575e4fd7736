"""ONNX files opened by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..latency.devices.device import Repeated
from ..latency.devices.onnx_runtime import TimedSession, exact_sums, opened
from .sessions import Given, Session


class OnnxRuntimeSession(Session):
    """An ONNX file, all graph optimisations on; see `open_session`."""

    title = "ONNX Runtime"

    def __init__(self, path: Path, threads: int) -> None:
        self._session = opened(path, threads=threads)
        self._threads = threads
        inputs = [
            Given(v.name, v.type, v.type == "tensor(float)", tuple(v.shape))
            for v in self._session.get_inputs()
        ]
        answer = self._session.get_outputs()[0].shape
        super().__init__(path, inputs, answer[-1] if answer else None)

    @property
    def runtime(self) -> str:
        """ONNX Runtime and its version."""
        return f"onnxruntime {ort.__version__}"

    @property
    def options(self) -> dict[str, str]:
        """Optimisation, threads, and how sums are added."""
        return {
            "graph_optimization_level": "ORT_ENABLE_ALL",
            "intra_op_num_threads": str(self._threads),
            **exact_sums(),
        }

    def timed(self) -> Repeated:
        """It on random inputs; raises `DeviceError` where it does not run."""
        return TimedSession(self._session, str(self.path))

    def _answers(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._session.run(None, {self.inputs[0].name: images})[0]
        return found
