"""Quantized layers that are static and elastic at once.

A layer holds the parameters of the largest step that it must be; `forward(x, step)` uses the slice
that `step` asks for: the first channels, the centre of the kernel. A layer built for one step
alone is a static layer, and slicing changes nothing. Every tensor that the device computes in INT8
passes a quantizer, after activations that runtimes fold into the convolution (ReLU, ReLU6) and
both before and after those that they do not.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import parallel
from ..hyperspace import ConvStep, LinearStep, PoolStep, SqueezeExciteStep, Step
from ..quant import ActivationQuantizer, Quantizer, WeightQuantizer, quantized_activation
from .convolution import training_conv2d

FOLDED = ("none", "relu", "relu6")
_FUNCTIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hswish": F.hardswish,
    "hsigmoid": F.hardsigmoid,
}


class QuantizedActivation(nn.Module):
    """An activation with the quantizers that a device has around it.

    Parameters
    ----------
    activation : one of `nni_spaceevo.hyperspace.recipe.ACTIVATIONS`
    """

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation
        if activation not in FOLDED:
            self.before = ActivationQuantizer(unsigned=False)
        if activation == "swish":
            self.gate = ActivationQuantizer(unsigned=True)
        self.after = ActivationQuantizer(
            unsigned=activation in ("relu", "relu6", "hsigmoid"),
            most=6 if activation == "relu6" else None,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Activated and fake-quantized `x`, same shape."""
        before = getattr(self, "before", None)
        fused = quantized_activation(x, self.activation, self.after, before)
        if fused is not None:
            return fused
        if self.activation not in FOLDED:
            x = self.before(x)
        if self.activation == "swish":
            return self.after(x * self.gate(torch.sigmoid(x)))
        return self.after(_FUNCTIONS[self.activation](x))


class ConvLayer(nn.Module):
    """Convolution, BatchNorm or bias, activation, for all of `steps`.

    Parameters
    ----------
    steps : what the layer must be able to be; they share stride and whether depthwise
    per_channel : whether weights have one scale an output channel
    """

    def __init__(self, steps: Iterable[ConvStep], *, per_channel: bool = True) -> None:
        super().__init__()
        steps = list(steps)
        cin, cout, kernel = (
            max(getattr(s, k) for s in steps) for k in ("cin", "cout", "kernel_size")
        )
        self.stride, self.depthwise = steps[0].stride, steps[0].depthwise
        groups = cout if self.depthwise else 1
        bias = any(s.bias for s in steps)
        self.conv = nn.Conv2d(cin, cout, kernel, self.stride, kernel // 2, groups=groups, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        if any(s.norm for s in steps):
            self.norm = nn.BatchNorm2d(cout)
        self.weight_quantizer = WeightQuantizer(cout, per_channel=per_channel)
        kinds = sorted({s.activation for s in steps})
        self.activations = nn.ModuleDict({kind: QuantizedActivation(kind) for kind in kinds})

    def _weight(self, step: ConvStep) -> Tensor:
        largest = self.conv.weight
        start = (largest.shape[-1] - step.kernel_size) // 2
        centre = slice(start, start + step.kernel_size)
        cin = 1 if self.depthwise else step.cin
        return largest[: step.cout, :cin, centre, centre]

    def forward(self, x: Tensor, step: ConvStep) -> Tensor:
        """Map (n, step.cin, h, w) to (n, step.cout, ceil(h / stride), ceil(w / stride))."""
        weight = self.weight_quantizer(self._weight(step), self.conv.weight)
        bias = self.conv.bias[: step.cout] if self.conv.bias is not None else None
        groups = step.cout if self.depthwise else 1
        if self.training:
            x = training_conv2d(x, weight, bias, self.stride, groups)
        else:
            x = F.conv2d(x, weight, bias, self.stride, step.kernel_size // 2, groups=groups)
        if step.norm:
            x = _batch_norm(self.norm, x)
        return self.activations[step.activation](x)

    def copy_to(self, other: ConvLayer, step: ConvStep) -> None:
        """Give a layer built for `step` alone this layer's active parameters."""
        other.conv.weight.data.copy_(self._weight(step))
        if other.conv.bias is not None:
            other.conv.bias.data.copy_(self.conv.bias[: step.cout])  # type: ignore[index]
        if step.norm:
            _copy_norm(self.norm, other.norm)
        copy_quantizers(self, other)


class SqueezeExciteLayer(nn.Module):
    """Squeeze and excite with every tensor quantized, for all of `steps`."""

    def __init__(self, steps: Iterable[SqueezeExciteStep], *, per_channel: bool = True) -> None:
        super().__init__()
        reduce, expand = zip(*(s.convs for s in steps), strict=True)
        self.pooled = ActivationQuantizer(unsigned=False)
        self.reduce = ConvLayer(reduce, per_channel=per_channel)
        self.expand = ConvLayer(expand, per_channel=per_channel)
        self.product = ActivationQuantizer(unsigned=False)

    def forward(self, x: Tensor, step: SqueezeExciteStep) -> Tensor:
        """Rescaled channels, same shape as `x`: (n, step.channels, h, w)."""
        reduce, expand = step.convs
        squeezed = self.reduce(self.pooled(F.adaptive_avg_pool2d(x, 1)), reduce)
        return self.product(x * self.expand(squeezed, expand))

    def copy_to(self, other: SqueezeExciteLayer, step: SqueezeExciteStep) -> None:
        """Give a layer built for `step` alone this layer's active parameters."""
        for name, conv in zip(("reduce", "expand"), step.convs, strict=True):
            getattr(self, name).copy_to(getattr(other, name), conv)
        copy_quantizers(self, other)


class PoolLayer(nn.Module):
    """Global average pool, quantized."""

    def __init__(self, steps: Iterable[PoolStep], *, per_channel: bool = True) -> None:
        super().__init__()
        self.pooled = ActivationQuantizer(unsigned=False)

    def forward(self, x: Tensor, step: PoolStep) -> Tensor:
        """Map (n, c, h, w) to (n, c, 1, 1)."""
        return self.pooled(F.adaptive_avg_pool2d(x, 1))

    def copy_to(self, other: PoolLayer, step: PoolStep) -> None:
        """Give another pool layer this one's range."""
        copy_quantizers(self, other)


class LinearLayer(nn.Module):
    """Fully connected layer with INT8 weights and float logits."""

    def __init__(self, steps: Iterable[LinearStep], *, per_channel: bool = True) -> None:
        super().__init__()
        steps = list(steps)
        self.linear = nn.Linear(max(s.cin for s in steps), max(s.cout for s in steps))
        self.weight_quantizer = WeightQuantizer(self.linear.out_features, per_channel=per_channel)

    def forward(self, x: Tensor, step: LinearStep) -> Tensor:
        """Map (n, step.cin, 1, 1) to logits (n, step.cout)."""
        weight = self.linear.weight[: step.cout, : step.cin]
        weight = self.weight_quantizer(weight, self.linear.weight)
        return F.linear(x.flatten(1), weight, self.linear.bias[: step.cout])

    def copy_to(self, other: LinearLayer, step: LinearStep) -> None:
        """Give a layer built for `step` alone this layer's active parameters."""
        other.linear.weight.data.copy_(self.linear.weight[: step.cout, : step.cin])
        other.linear.bias.data.copy_(self.linear.bias[: step.cout])
        copy_quantizers(self, other)


_LAYERS: dict[type, type] = {
    ConvStep: ConvLayer,
    SqueezeExciteStep: SqueezeExciteLayer,
    PoolStep: PoolLayer,
    LinearStep: LinearLayer,
}


def build_layer(steps: list[Step], *, per_channel: bool = True) -> nn.Module:
    """The layer that can be every one of `steps`, which share name and kind."""
    return _LAYERS[type(steps[0])](steps, per_channel=per_channel)


def _batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """BatchNorm over the first channels of `norm`, whose statistics are updated in place."""
    c = x.shape[1]
    assert norm.running_mean is not None and norm.running_var is not None
    return parallel.batch_norm(
        x,
        norm.running_mean[:c],
        norm.running_var[:c],
        norm.weight[:c],
        norm.bias[:c],
        training=norm.training,
        momentum=norm.momentum or 0.0,
        eps=norm.eps,
    )


def _copy_norm(source: nn.BatchNorm2d, target: nn.BatchNorm2d) -> None:
    c = target.num_features
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(target, name).data.copy_(getattr(source, name)[:c])


def copy_quantizers(source: nn.Module, target: nn.Module) -> None:
    """Copy ranges to the quantizers that `target` has at the same paths, scales sliced."""
    found = {p: m for p, m in source.named_modules() if isinstance(m, Quantizer)}
    for path, quantizer in target.named_modules():
        if isinstance(quantizer, Quantizer):
            quantizer.take_range(found[path])
