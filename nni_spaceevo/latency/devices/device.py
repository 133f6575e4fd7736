"""What a device is: something that builds kernels and networks and can time them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...hyperspace import BlockConfig
from ..graph import Precision
from ..lowering import (
    ACTIVATED,
    ACTIVATIONS,
    PLAIN,
    SUM,
    SUMMED,
    Lowering,
    RuntimeKernel,
    lowering_of,
)
from ..machine import Machine

# How times are taken on all devices (`measure`), for the protocols that they state.
VISITS = (
    "least of a visit's runs after warm-up runs; of a kernel's visits, which are spread over the "
    "session, the least counts, of a network's the lower quintile"
)
# Size and widths at which lowerings are probed: whole vectors, and channels that leave a rest.
_PROBE_HW, _PROBE_WIDTH, _UNALIGNED_WIDTH = 14, 64, 72


class Timed(Protocol):
    """A model that is ready to run."""

    def least_us(self, warmup: int, runs: int) -> float:
        """Shortest of `runs` runs after `warmup` runs, in microseconds."""


class Repeated:
    """A model on fixed inputs that is run again and again.

    Parameters
    ----------
    run : runs it once
    """

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run

    def times_us(self, warmup: int, runs: int) -> NDArray[np.float64]:
        """Microseconds of each of `runs` runs after `warmup` runs, shape (runs,)."""
        run, clock = self._run, time.perf_counter_ns
        for _ in range(warmup):
            run()
        found = np.empty(runs)
        for i in range(runs):
            start = clock()
            run()
            found[i] = clock() - start
        return found / 1e3

    def least_us(self, warmup: int, runs: int) -> float:
        """Shortest of `runs` runs after `warmup` runs, in microseconds."""
        return float(self.times_us(warmup, runs).min())


class Device(ABC):
    """A runtime on a machine. Subclasses say how to run; how long to run is not theirs.

    Attributes
    ----------
    name : what `spaceevo profile --device` takes
    """

    name: str

    @property
    def precision(self) -> Precision:
        """Precision of the networks that it runs."""
        return "int8"

    @property
    def place(self) -> str:
        """Where it runs: two processes do not measure on one place at a time."""
        return "this machine"

    @property
    def runs_here(self) -> bool:
        """Whether models run in this process, which can empty the caches between two runs."""
        return False

    @abstractmethod
    def machine(self) -> Machine:
        """The machine, its runtime and options; measurements of others are not mixed with it."""

    @abstractmethod
    def kernel(self, kernel: RuntimeKernel, copies: int) -> Timed:
        """Parallel copies of a kernel, in the layout that the runtime uses inside a network.

        Raises
        ------
        DeviceError
            The runtime refuses it.
        """

    @abstractmethod
    def idle(self, copies: int) -> Timed:
        """A model that does nothing and has `copies` outputs: the cost of the call itself."""

    @abstractmethod
    def network(self, blocks: Sequence[BlockConfig], resolution: int) -> Timed:
        """A whole network, as a user would run it; raises as `kernel`."""

    def operators(self, kernel: RuntimeKernel) -> tuple[str, ...] | None:
        """Operators that the runtime starts for a kernel inside a network, "Name:precision".

        None (the default) where the runtime does not tell; an activation is then measured within
        the kernel before it.
        """
        return None

    def contained(self, kernel: RuntimeKernel) -> RuntimeKernel | None:
        """A kernel that the model of `kernel` cannot do without; its time is subtracted."""
        return None

    def lowering(self) -> Lowering:
        """How the runtime runs every kind of kernel, detected by probing."""
        found = {p.unit: self.operators(p) for p in probes()}
        told = {unit: operators for unit, operators in found.items() if operators is not None}
        if len(told) < len(found):
            return Lowering(operators=dict.fromkeys(found, ("not told",)))
        sums_within = () if told["add"] else SUMMED
        told |= {f"{kind}+{SUM}": told[kind] for kind in sums_within}
        lowering = lowering_of(told)
        others = {p.unit: self.operators(p) or () for p in probes(_UNALIGNED_WIDTH)}
        unaligned = {
            unit: others[unit]
            for unit in lowering.operators
            if unit in others and sorted(others[unit]) != sorted(lowering.operators[unit])
        }
        return Lowering(
            operators=lowering.operators,
            own_kernel=lowering.own_kernel,
            free=lowering.free,
            unaligned=unaligned,
            sums_within=sums_within,
            sums_in_main=bool(sums_within),
        )


def probes(width: int = _PROBE_WIDTH) -> list[RuntimeKernel]:
    """One kernel of every unit that networks consist of."""
    kernels = []
    for kind in (*ACTIVATED, *PLAIN):
        hw = 1 if kind == "linear" else _PROBE_HW
        size = 3 if kind in ("conv", "dwconv") else 1
        squeezed = width // 4 if kind == "se" else 0
        activations = ("none", *ACTIVATIONS) if kind in ACTIVATED else ("none",)
        kernels += [
            RuntimeKernel(kind, hw, width, width, size, 1, squeezed, activation)
            for activation in activations
        ]
    return kernels
