"""Model files that a runtime on this machine has opened: to be timed, and to answer images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..latency.devices import runtime_module
from ..latency.devices.device import Repeated

TFLITE = ".tflite"
# What runs an ONNX file; the first one if nothing else is asked for.
ONNX_RUNTIMES = ("onnxruntime", "openvino")
# Where each runtime's session is, its class, and what must be installed for it.
_SESSIONS = {
    "onnxruntime": ("onnxruntime_session", "OnnxRuntimeSession", ""),
    "openvino": ("openvino_session", "OpenVinoSession", "openvino"),
    "litert": ("litert_session", "LiteRTSession", "litert"),
}


@dataclass(frozen=True)
class Given:
    """An input of a file.

    Attributes
    ----------
    name, kind : as the runtime tells them
    is_float : whether it is float32
    shape : of one image or more; a text where any number is taken
    """

    name: str
    kind: str
    is_float: bool
    shape: tuple[int | str, ...]


class Session(ABC):
    """A model file ready to run on the CPU.

    Parameters
    ----------
    path : the file
    inputs : what it takes
    classes : the size of its first output's last dimension, where it is known

    Attributes
    ----------
    title : the runtime in words
    channels_last : whether images are (n, h, w, c), not (n, c, h, w)

    Raises
    ------
    ConfigError
        An input is not float, or of open size but for the number of images; or that is not 1.
    """

    title: ClassVar[str]
    channels_last: ClassVar[bool] = False

    def __init__(self, path: Path, inputs: Sequence[Given], classes: int | str | None) -> None:
        for given in inputs:
            fixed = all(isinstance(n, int) for n in given.shape[1:])
            if not given.is_float or not fixed:
                raise ConfigError(
                    f"{path}: input {given.name!r} is {given.kind} {list(given.shape)}; expected "
                    "floats of fixed size, but for the number of images"
                )
            # An input of another kind than images may be anything.
            if len(given.shape) == 4 and given.shape[0] != 1 and isinstance(given.shape[0], int):
                raise ConfigError(
                    f"{path}: input {given.name!r} takes {given.shape[0]} at a time, "
                    f"{list(given.shape)}; expected one image, or any number of them"
                )
        self.path, self.inputs, self.classes = path, tuple(inputs), classes

    @property
    @abstractmethod
    def runtime(self) -> str:
        """The runtime and its version."""

    @property
    @abstractmethod
    def options(self) -> dict[str, str]:
        """How the runtime is asked to run it."""

    @abstractmethod
    def timed(self) -> Repeated:
        """It on fixed random inputs, one image at a time."""

    @abstractmethod
    def _answers(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of as many images as it takes at a time, in its own order of dimensions."""

    @property
    def image(self) -> tuple[int, int] | None:
        """Channels and height of the square images that it takes; None if it takes others."""
        if len(self.inputs) != 1 or len(self.inputs[0].shape) != 4:
            return None
        _, *sizes = self.inputs[0].shape
        *channels, height, width = sizes if not self.channels_last else (sizes[-1], *sizes[:-1])
        return (int(channels[0]), int(height)) if height == width else None

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (n, classes) of images (n, c, r, r), one at a time if the file takes no more."""
        size = 1 if self.inputs[0].shape[0] == 1 else len(images)
        if self.channels_last:
            images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        parts = [images[i : i + size] for i in range(0, len(images), size)]
        return np.concatenate([self._answers(part) for part in parts])


def runtimes_of(path: Path, onnx_runtimes: Sequence[str] = ONNX_RUNTIMES[:1]) -> tuple[str, ...]:
    """Those that run a file: LiteRT a `.tflite`, each of `onnx_runtimes` any other."""
    return ("litert",) if path.suffix == TFLITE else tuple(dict.fromkeys(onnx_runtimes))


def open_session(path: Path, runtime: str | None = None, threads: int = 1) -> Session:
    """A file opened by a runtime, or by the first one that runs such a file.

    Raises
    ------
    ConfigError
        An input is not float, or of open size but for the number of images.
    DeviceError
        The file is not there, damaged, or nothing that the runtime runs; or the runtime is not
        installed, and the message says what to install.
    """
    module, name, extra = _SESSIONS[runtime or runtimes_of(path)[0]]
    found = runtime_module(f"{__package__}.{module}", str(path), extra)
    opened: Session = getattr(found, name)(path, threads)
    return opened
