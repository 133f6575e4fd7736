"""Timing ONNX Runtime sessions: one thread, one core, inputs and outputs bound beforehand."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort

from ..errors import DeviceError
from .machine import Machine, describe_machine

PROTOCOL = (
    "batch 1, 1 thread, pinned to one core, inputs and outputs bound; least time of all runs of "
    "rounds spread over the session, each round after warm-up runs"
)
KERNEL_OPTIONS = {"graph_optimization_level": "ORT_DISABLE_ALL", "intra_op_num_threads": "1"}
NETWORK_OPTIONS = {"graph_optimization_level": "ORT_ENABLE_ALL", "intra_op_num_threads": "1"}
_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


def onnxruntime_machine() -> Machine:
    """This machine with its ONNX Runtime."""
    return describe_machine(
        f"onnxruntime {ort.__version__}", KERNEL_OPTIONS, NETWORK_OPTIONS, PROTOCOL
    )


class TimedSession:
    """A model ready to be timed on fixed random inputs.

    Parameters
    ----------
    model : the model; all input shapes must be static
    optimize : run it as a network (all graph optimisations) or as it stands
    """

    def __init__(self, model: onnx.ModelProto, optimize: bool) -> None:
        options = ort.SessionOptions()
        wanted = NETWORK_OPTIONS if optimize else KERNEL_OPTIONS
        options.graph_optimization_level = getattr(
            ort.GraphOptimizationLevel, wanted["graph_optimization_level"]
        )
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # Warnings about unusual but intended graphs would bury the progress bar.
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ORT's errors share no base class.
            raise DeviceError(f"ONNX Runtime refuses {model.graph.name}: {error}") from error
        self._binding = self._session.io_binding()
        rng = np.random.default_rng(0)
        for value in self._session.get_inputs():
            data = rng.integers(0, 256, value.shape).astype(_TYPES[value.type])
            self._binding.bind_cpu_input(value.name, data)
        for value in self._session.get_outputs():
            self._binding.bind_output(value.name)

    def least_us(self, warmup: int, runs: int) -> float:
        """Shortest of `runs` runs after `warmup` runs, in microseconds."""
        run, binding, clock = self._session.run_with_iobinding, self._binding, time.perf_counter_ns
        for _ in range(warmup):
            run(binding)
        least = float("inf")
        for _ in range(runs):
            start = clock()
            run(binding)
            least = min(least, clock() - start)
        return least / 1e3


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core, at raised priority where allowed; restored afterwards."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed, priority = os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)
    os.sched_setaffinity(0, {max(allowed)})
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, priority - 10)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, priority)
