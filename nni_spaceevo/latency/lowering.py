"""Abstract kernels lowered to what ONNX Runtime really runs on x86 INT8.

ReLU and ReLU6 vanish into the convolution or sum before them, because uint8 with zero point 0
clips anyway. Swish stays uint8 as two table and product operators. Hard swish has no quantized
operator: it is dequantized, computed in float by two operators, and quantized again. A test holds
these counts against ORT's own optimised graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import PredictorError
from ..hyperspace import Kernel

# Operators of ORT's optimised graph behind each kind of runtime kernel.
RUNTIME_OPS: dict[str, tuple[str, ...]] = {
    "conv1x1": ("QLinearConv",),
    "conv": ("QLinearConv",),
    "dwconv": ("QLinearConv",),
    "add": ("QLinearAdd",),
    "swish": ("QLinearSigmoid", "QLinearMul"),
    "hswish": ("DequantizeLinear", "HardSigmoid", "Mul", "QuantizeLinear"),
    "hsigmoid": ("DequantizeLinear", "HardSigmoid", "QuantizeLinear"),
    "se": (
        "QLinearGlobalAveragePool",
        "QLinearConv",
        "QLinearConv",
        "DequantizeLinear",
        "HardSigmoid",
        "QuantizeLinear",
        "QLinearMul",
    ),
    "pool": ("QLinearGlobalAveragePool",),
    "linear": ("QGemm",),
}
KERNEL_TYPES = tuple(RUNTIME_OPS)
_OWN_KERNEL = ("swish", "hswish", "hsigmoid")
_FOLDED = ("none", "relu", "relu6")


@dataclass(frozen=True, slots=True, order=True)
class RuntimeKernel:
    """One unit that is measured and predicted, NHWC uint8 in and out.

    Attributes
    ----------
    type : one of `KERNEL_TYPES`
    hw : input height and width in pixels
    cin, cout : input and output channels; equal for all but convolutions and linear
    kernel_size, stride : of convolutions
    squeezed : inner channels of an "se"
    """

    type: str
    hw: int
    cin: int
    cout: int
    kernel_size: int = 1
    stride: int = 1
    squeezed: int = 0

    @property
    def nodes(self) -> int:
        """Operators that the runtime starts for it."""
        return len(RUNTIME_OPS[self.type])

    @property
    def key(self) -> str:
        """Text that names it in the file of measurements."""
        numbers = (self.hw, self.cin, self.cout, self.kernel_size, self.stride, self.squeezed)
        return "/".join((self.type, *map(str, numbers)))


def lower(kernel: Kernel) -> tuple[RuntimeKernel, ...]:
    """Runtime kernels of one abstract kernel.

    Raises
    ------
    PredictorError
        An operator or activation whose runtime form is not known; it would have no latency.
    """
    match kernel.op:
        case "conv":
            dense = kernel.kernel_size == 1
            main = _convolution("conv1x1" if dense else "conv", kernel)
        case "dwconv":
            main = _convolution("dwconv", kernel)
        case "se":
            main = RuntimeKernel("se", kernel.hw, kernel.cin, kernel.cin, squeezed=kernel.squeezed)
        case "add" | "pool" | "linear":
            main = RuntimeKernel(kernel.op, kernel.hw, kernel.cin, kernel.cout)
        case _:
            raise PredictorError(
                f"kernel {kernel.op!r}: no lowering to ONNX Runtime; known: conv, dwconv, se, add, "
                "pool, linear"
            )
    if kernel.activation in _FOLDED:
        return (main,)
    if kernel.activation in _OWN_KERNEL:
        return main, RuntimeKernel(kernel.activation, kernel.hw_out, kernel.cout, kernel.cout)
    raise PredictorError(
        f"activation {kernel.activation!r} of {kernel.op}: no lowering to ONNX Runtime; known: "
        + ", ".join((*_FOLDED, *_OWN_KERNEL))
    )


def _convolution(kind: str, k: Kernel) -> RuntimeKernel:
    return RuntimeKernel(kind, k.hw, k.cin, k.cout, k.kernel_size, k.stride)


def runtime_ops(kernels: Iterable[Kernel]) -> Counter[str]:
    """How many of each operator ORT's optimised graph has for a network's kernels.

    The input's QuantizeLinear, the output's DequantizeLinear, Flatten and Transposes come on top;
    they belong to the network's constant.
    """
    counts: Counter[str] = Counter()
    for kernel in kernels:
        for runtime_kernel in lower(kernel):
            counts.update(RUNTIME_OPS[runtime_kernel.type])
    return counts
