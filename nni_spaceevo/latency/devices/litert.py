"""LiteRT (TensorFlow Lite) with XNNPACK on this machine's CPU, INT8, one thread."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from ...errors import DeviceError
from ...hyperspace import BlockConfig
from ..lowering import Lowering, RuntimeKernel, lowering_of
from ..machine import Machine, describe_machine
from ..tflite_graph import (
    TFLITE_OPERATORS,
    idle_flatbuffer,
    kernel_flatbuffer,
    kernel_operators,
    subnet_flatbuffer,
)
from .device import VISITS, Device, Repeated, Timed

_OPTIONS = {"num_threads": "1", "delegate": "XNNPACK (default)"}
_PROTOCOL = f"batch 1, 1 thread, pinned to one core, inputs set once; {VISITS}"


class TimedInterpreter(Repeated):
    """An interpreter on fixed random inputs, int8 or float."""

    def __init__(self, interpreter: Interpreter) -> None:
        rng = np.random.default_rng(0)
        for given in interpreter.get_input_details():
            kind, shape = given["dtype"], given["shape"]
            floating = np.issubdtype(kind, np.floating)
            values = rng.normal(size=shape) if floating else rng.integers(-128, 128, shape)
            interpreter.set_tensor(given["index"], values.astype(kind))
        interpreter.invoke()
        super().__init__(interpreter.invoke)


def interpreter_of(content: bytes, name: str = "model", threads: int = 1) -> Interpreter:
    """An interpreter of a TFLite model, XNNPACK's kernels where there are some.

    Parameters
    ----------
    content : the model
    name : of it, for messages
    threads : to compute on

    Raises
    ------
    DeviceError
        LiteRT cannot read the model; names it.
    """
    try:
        found = Interpreter(model_content=content, num_threads=threads)
        found.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise DeviceError(f"{name}: LiteRT cannot read it ({error})") from error
    return found


class LiteRTDevice(Device):
    """LiteRT's interpreter; kernels are int8 in NHWC inside a network and alone."""

    name = "litert-x86-int8"

    @property
    def runs_here(self) -> bool:
        """They do."""
        return True

    def machine(self) -> Machine:
        """This machine with its LiteRT."""
        runtime = f"ai-edge-litert {version('ai-edge-litert')}"
        return describe_machine(runtime, _OPTIONS, _OPTIONS, _PROTOCOL)

    def kernel(self, kernel: RuntimeKernel, copies: int) -> Timed:
        """Parallel copies of a kernel."""
        return TimedInterpreter(interpreter_of(kernel_flatbuffer(kernel, copies)))

    def idle(self, copies: int) -> Timed:
        """A model that does next to nothing."""
        return TimedInterpreter(interpreter_of(idle_flatbuffer(copies)))

    def network(self, blocks: Sequence[BlockConfig], resolution: int) -> Timed:
        """A whole network, int8 in and out."""
        content = subnet_flatbuffer(blocks, resolution, np.random.default_rng(0))
        return TimedInterpreter(interpreter_of(content))

    def operators(self, kernel: RuntimeKernel) -> tuple[str, ...]:
        """Operators of the model: LiteRT runs what the file has."""
        return kernel_operators(kernel)

    def lowering(self) -> Lowering:
        """What the converter writes, and so what runs."""
        return lowering_of(TFLITE_OPERATORS)
