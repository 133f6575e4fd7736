"""LiteRT (TensorFlow Lite) with XNNPACK on this machine's CPU, INT8, one thread."""

from __future__ import annotations

import time
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
from .device import Device, Timed

_OPTIONS = {"num_threads": "1", "delegate": "XNNPACK (default)"}
_PROTOCOL = (
    "batch 1, 1 thread, pinned to one core, inputs set once; least time of all runs of rounds "
    "spread over the session, each round after warm-up runs"
)


class TimedInterpreter:
    """A TFLite model ready to be timed on fixed random inputs.

    Parameters
    ----------
    content : the model; all inputs int8

    Raises
    ------
    DeviceError
        LiteRT refuses the model.
    """

    def __init__(self, content: bytes) -> None:
        try:
            self._interpreter = Interpreter(model_content=content, num_threads=1)
            self._interpreter.allocate_tensors()
            rng = np.random.default_rng(0)
            for given in self._interpreter.get_input_details():
                data = rng.integers(-128, 128, given["shape"]).astype(given["dtype"])
                self._interpreter.set_tensor(given["index"], data)
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise DeviceError(f"LiteRT refuses a model: {error}") from error

    def least_us(self, warmup: int, runs: int) -> float:
        """Shortest of `runs` runs after `warmup` runs, in microseconds."""
        run, clock = self._interpreter.invoke, time.perf_counter_ns
        for _ in range(warmup):
            run()
        least = float("inf")
        for _ in range(runs):
            start = clock()
            run()
            least = min(least, clock() - start)
        return least / 1e3


class LiteRTDevice(Device):
    """LiteRT's interpreter; kernels are int8 in NHWC inside a network and alone."""

    name = "litert-x86-int8"

    def machine(self) -> Machine:
        """This machine with its LiteRT."""
        runtime = f"ai-edge-litert {version('ai-edge-litert')}"
        return describe_machine(runtime, _OPTIONS, _OPTIONS, _PROTOCOL)

    def kernel(self, kernel: RuntimeKernel, copies: int) -> Timed:
        """Parallel copies of a kernel."""
        return TimedInterpreter(kernel_flatbuffer(kernel, copies))

    def idle(self, copies: int) -> Timed:
        """A model that does next to nothing."""
        return TimedInterpreter(idle_flatbuffer(copies))

    def network(self, blocks: Sequence[BlockConfig], resolution: int) -> Timed:
        """A whole network, int8 in and out."""
        return TimedInterpreter(subnet_flatbuffer(blocks, resolution, np.random.default_rng(0)))

    def operators(self, kernel: RuntimeKernel) -> tuple[str, ...]:
        """Operators of the model: LiteRT runs what the file has."""
        return kernel_operators(kernel)

    def lowering(self) -> Lowering:
        """What the converter writes, and so what runs."""
        return lowering_of(TFLITE_OPERATORS)
