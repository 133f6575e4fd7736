"""How a device runs a network: abstract kernels lowered to what its runtime really starts.

The answer is data, not code: a `Lowering` is detected on the device (`devices.detect`), kept in
the predictor's `device.yaml`, and read back where networks are priced. ONNX Runtime on x86, for
one, folds ReLU into an INT8 convolution, computes swish in INT8 by two operators of its own, and
falls back to float for hard swish.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from msgspec import field

from ..errors import PredictorError
from ..files import Record
from ..hyperspace import Kernel, PlacedBlock

# Kernels that an activation can follow, and those that stand alone.
ACTIVATED = ("conv1x1", "conv", "dwconv", "add")
PLAIN = ("pool", "linear", "se")
# Activations of recipes; "none" is the absence of one.
ACTIVATIONS = ("relu", "relu6", "swish", "hswish", "hsigmoid")
# Clipping is part of requantizing and of a convolution's last step, so where it starts no operator
# it costs nothing; other activations that are computed within a kernel still cost arithmetic.
_CLIPPING = ("relu", "relu6")
# Activations without negative results.
NEVER_NEGATIVE = ("relu", "relu6", "hsigmoid")
# In place of an activation: the residual sum is computed within the kernel.
SUM = "sum"
# Kernels that a sum can be computed within.
SUMMED = ("conv1x1", "conv")
FLOAT = "float32"
# End of the key of a kernel whose input is never negative.
_POSITIVE = "positive"
# Prefix of a block type that is one runtime kernel; some block types are named like kernels.
BLOCK = "block_"


@dataclass(frozen=True, slots=True, order=True)
class RuntimeKernel:
    """One unit that is measured and predicted, in the layout and precision of the runtime.

    Attributes
    ----------
    type : a kernel type such as "conv1x1", an activation that runs on its own such as "hswish",
        or, on devices that were measured by whole blocks, a block such as "block_mbv2_res"
    hw : input height and width in pixels
    cin, cout : input and output channels; equal for all but convolutions, linear and blocks
    kernel_size, stride : of convolutions and blocks
    squeezed : inner channels of an "se"
    activation : computed within the kernel and part of its price; "sum" for a residual sum; of an
        "se" what it reads
    expand : expand ratio of a block, 0 where it has none
    positive : its input is never negative, as after relu; told only where that makes a difference
    """

    type: str
    hw: int
    cin: int
    cout: int
    kernel_size: int = 1
    stride: int = 1
    squeezed: int = 0
    activation: str = "none"
    expand: float = 0.0
    positive: bool = False

    @property
    def unit(self) -> str:
        """Its kind in `Lowering.operators`: the type, and the activation computed within."""
        return self.type if self.activation == "none" else f"{self.type}+{self.activation}"

    @property
    def key(self) -> str:
        """Text that names it in the file of measurements."""
        numbers = (self.hw, self.cin, self.cout, self.kernel_size, self.stride, self.squeezed)
        key = "/".join((self.unit, *map(str, numbers)))
        if self.expand:
            key = f"{key}/{self.expand:g}"
        return f"{key}/{_POSITIVE}" if self.positive else key

    @property
    def weights(self) -> int:
        """Number of its weights; 0 of a whole block, whose kernels it does not tell."""
        if self.type == "se":
            return 2 * self.cin * self.squeezed
        if self.type not in ("conv1x1", "conv", "dwconv", "linear"):
            return 0
        return self.kernel_size**2 * self.cout * (1 if self.type == "dwconv" else self.cin)

    @property
    def hw_out(self) -> int:
        """Output height and width."""
        return 1 if self.type == "pool" else -(-self.hw // self.stride)


def kernel_of_key(key: str) -> RuntimeKernel:
    """The kernel of a `RuntimeKernel.key`.

    Raises
    ------
    PredictorError
        Text that names no kernel.
    """
    numbered = key.removesuffix(f"/{_POSITIVE}")
    unit, *numbers = numbered.split("/")
    kind, _, activation = unit.partition("+")
    try:
        hw, cin, cout, kernel_size, stride, squeezed = map(int, numbers[:6])
        (expand,) = map(float, numbers[6:] or ["0"])
    except ValueError as error:
        raise PredictorError(
            f"kernel {key!r}: expected <type>/<hw>/<cin>/<cout>/<kernel>/<stride>/<squeezed>"
        ) from error
    shape = (hw, cin, cout, kernel_size, stride, squeezed)
    return RuntimeKernel(kind, *shape, activation or "none", expand, numbered != key)


class Lowering(Record, frozen=True):
    """How a runtime runs each kind of kernel.

    Attributes
    ----------
    operators : operators that the runtime starts for a unit, each as "Name:precision"; a unit
        that is computed within the convolution before it starts none
    own_kernel : activations that run as kernels of their own, by the kernel type they follow
    free : activations that cost nothing, by the kernel type they follow
    unaligned : units that start other operators where channels do not fill the runtime's vectors
    sums_within : kernel types that a sum is computed within; there is then no "add" by itself
    sums_in_main : that is the last convolution of the main path, not the shortcut's; predictors
        older than this field were fitted with the latter
    within_se : activations that are computed for a squeeze-and-excite after them otherwise than
        for other kernels, and are priced as a part of it
    positive : kernel types that run otherwise on inputs that are never negative
    whole_blocks : a block is one unit; the rest is then empty
    """

    operators: dict[str, tuple[str, ...]] = field(default_factory=dict)
    own_kernel: dict[str, tuple[str, ...]] = field(default_factory=dict)
    free: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unaligned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sums_within: tuple[str, ...] = ()
    sums_in_main: bool = False
    within_se: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    whole_blocks: bool = False

    @property
    def by_neighbours(self) -> bool:
        """Whether how a kernel runs depends on those before it in its block."""
        return bool(self.sums_within or self.within_se or self.positive)

    def lower_block(self, block: PlacedBlock) -> tuple[RuntimeKernel, ...]:
        """Runtime kernels of one block; raises as `lower`."""
        if self.whole_blocks:
            return (whole_block(block),)
        return tuple(part for parts in self.lower_each(block.kernels) for part in parts)

    def lower_each(self, kernels: Sequence[Kernel]) -> list[tuple[RuntimeKernel, ...]]:
        """Runtime kernels of each kernel of a block; raises as `lower`, or for a lost sum.

        What the block reads may be negative, as it is after most blocks.
        """
        found = [self.lower(kernel) for kernel in kernels]
        for i, kernel in enumerate(kernels):
            if kernel.op == "add" and self.sums_within:
                self._sum_within(found, kernels, i)
            elif kernel.op == "se" and i:
                self._within_se(found, i)
            elif kernel.op in self.positive and i and kernel.kernel_size > 1:
                main, *rest = found[i]
                positive = kernels[i - 1].activation in NEVER_NEGATIVE
                found[i] = (replace(main, positive=positive), *rest)
        return found

    def _within_se(self, found: list[tuple[RuntimeKernel, ...]], at: int) -> None:
        """Move an activation that runs on its own into the squeeze-and-excite after it."""
        last = found[at - 1][-1] if found[at - 1] else None
        if last is not None and last.type in self.within_se:
            found[at - 1] = found[at - 1][:-1]
            found[at] = (replace(found[at][0], activation=last.type),)

    def _sum_within(
        self, found: list[tuple[RuntimeKernel, ...]], kernels: Sequence[Kernel], end: int
    ) -> None:
        """Move a sum into the last convolution before it."""
        passed = self.sums_in_main and end > 1 and not _in_a_row(*kernels[end - 2 : end])
        for i in reversed(range(end - passed)):
            last = found[i][-1] if found[i] else None
            if last is not None and last.unit in self.sums_within:
                found[i] = (*found[i][:-1], replace(last, activation=SUM))
                return
        raise PredictorError(
            "kernel 'add': this device computes sums within convolutions, and there is none "
            "before it that could"
        )

    def lower(self, kernel: Kernel) -> tuple[RuntimeKernel, ...]:
        """Runtime kernels of one abstract kernel; of a sum within another, its activation alone.

        Raises
        ------
        PredictorError
            An operator or activation whose runtime form is not known; it would have no latency.
        """
        main = _main_kernel(kernel)
        activation = kernel.activation
        if activation == "none" or activation in self.free.get(main.type, ()):
            parts: tuple[RuntimeKernel, ...] = (main,)
        elif activation in self.own_kernel.get(main.type, ()):
            size, width = kernel.hw_out, kernel.cout
            parts = (main, RuntimeKernel(activation, size, width, width))
        else:
            parts = (_main_kernel(kernel, activation),)
        if main.type == "add" and self.sums_within:
            parts = parts[1:]
        for part in parts:
            if part.unit not in self.operators:
                raise PredictorError(
                    f"kernel {part.unit!r}: this device has no lowering for it; known: "
                    + ", ".join(self.operators)
                )
        return parts

    def nodes(self, kernel: RuntimeKernel) -> int:
        """Operators that the runtime starts for a runtime kernel."""
        return len(self.operators.get(kernel.unit, ("block",)))

    def in_float(self, unit: str) -> tuple[str, ...]:
        """Those of a unit's operators that compute in float."""
        names = self.operators.get(unit, ())
        return tuple(name for name in names if name.endswith(f":{FLOAT}"))

    def runtime_ops(self, kernels: Iterable[Kernel]) -> Counter[str]:
        """How many of each operator, by name, the runtime starts for a network's kernels.

        What quantizes the input and brings the output back comes on top; it belongs to the
        network's constant.
        """
        counts: Counter[str] = Counter()
        for kernel in kernels:
            for part in self.lower(kernel):
                counts.update(name.partition(":")[0] for name in self.operators[part.unit])
        return counts


def _in_a_row(first: Kernel, second: Kernel) -> bool:
    """Whether the second can read what the first writes; a shortcut cannot, or it were none."""
    return (first.hw_out, first.cout) == (second.hw, second.cin)


def _main_kernel(kernel: Kernel, activation: str = "none") -> RuntimeKernel:
    if kernel.op not in ("conv", *ACTIVATED, *PLAIN):
        raise PredictorError(
            f"kernel {kernel.op!r}: no lowering; known: conv, dwconv, add, pool, linear, se"
        )
    kind = "conv1x1" if kernel.op == "conv" and kernel.kernel_size == 1 else kernel.op
    return RuntimeKernel(
        kind,
        kernel.hw,
        kernel.cin,
        kernel.cout,
        kernel.kernel_size,
        kernel.stride,
        kernel.squeezed,
        activation,
    )


def whole_block(block: PlacedBlock) -> RuntimeKernel:
    """A block as the one unit of a device that was measured by blocks."""
    c = block.config
    return RuntimeKernel(
        f"{BLOCK}{c.type}",
        block.hw,
        c.cin,
        c.cout,
        c.kernel_size,
        c.stride,
        activation=c.activation,
        expand=c.expand or 0.0,
    )


def lowering_of(operators: dict[str, tuple[str, ...]]) -> Lowering:
    """Work out which activations are free, own kernels or computed within, from operators.

    Parameters
    ----------
    operators : operators of every plain and activated unit ("conv", "conv+swish", …) as the
        runtime was seen to start them; "conv+swish" includes those of "conv"
    """
    kept = {name: ops for name, ops in operators.items() if "+" not in name}
    own: dict[str, list[str]] = {}
    free: dict[str, list[str]] = {}
    for name, ops in operators.items():
        kind, _, activation = name.partition("+")
        if not activation:
            continue
        extra = Counter(ops)
        extra.subtract(operators[kind])
        if activation == SUM:
            kept[name] = ops
        elif not any(extra.values()) and activation in _CLIPPING:
            free.setdefault(kind, []).append(activation)
        elif any(extra.values()) and min(extra.values()) >= 0:
            own.setdefault(kind, []).append(activation)
            kept.setdefault(activation, tuple(_in_order(ops, extra)))
        else:
            kept[name] = ops
    return Lowering(
        operators=kept,
        own_kernel={kind: tuple(names) for kind, names in own.items()},
        free={kind: tuple(names) for kind, names in free.items()},
    )


def _in_order(ops: tuple[str, ...], wanted: Counter[str]) -> list[str]:
    """The wanted operators in the order in which they run, which is last to first here."""
    left, found = Counter(wanted), []
    for name in reversed(ops):
        if left[name] > 0:
            left[name] -= 1
            found.append(name)
    return found[::-1]
