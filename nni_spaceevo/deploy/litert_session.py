"""TFLite files opened by LiteRT."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError
from ..latency.devices.device import Repeated
from ..latency.devices.litert import TimedInterpreter, interpreter_of
from .sessions import Given, Session


class LiteRTSession(Session):
    """A TFLite file with XNNPACK's kernels where there are some; see `open_session`."""

    title = "LiteRT"
    channels_last = True

    def __init__(self, path: Path, threads: int) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DeviceError(f"{path}: LiteRT cannot read it ({error.strerror})") from error
        self._threads = threads
        self._interpreter = interpreter_of(content, str(path), threads)
        inputs = [
            Given(
                found["name"],
                np.dtype(found["dtype"]).name,
                found["dtype"] == np.float32,
                tuple(map(int, found["shape"])),
            )
            for found in self._interpreter.get_input_details()
        ]
        self._result = self._interpreter.get_output_details()[0]
        super().__init__(path, inputs, int(self._result["shape"][-1]))

    @property
    def runtime(self) -> str:
        """LiteRT and its version."""
        return f"ai-edge-litert {version('ai-edge-litert')}"

    @property
    def options(self) -> dict[str, str]:
        """Threads and kernels."""
        return {"num_threads": str(self._threads), "delegate": "XNNPACK (default)"}

    def timed(self) -> Repeated:
        """It on random inputs."""
        return TimedInterpreter(self._interpreter)

    def _answers(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self._interpreter.set_tensor(self._interpreter.get_input_details()[0]["index"], images)
        self._interpreter.invoke()
        found: NDArray[np.float32] = self._interpreter.get_tensor(self._result["index"])
        return found
