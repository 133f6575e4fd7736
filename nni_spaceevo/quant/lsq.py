"""LSQ+ quantizers: learned scale and zero point (Bhalgat et al., CVPR workshops 2020).

Two choices differ from the paper, both so that what is trained is exactly what is deployed:
the offset is an integer zero point, which ONNX and TFLite have, not a float; and the scale is
learned by its logarithm, so that Adam's steps are relative to it (Jain et al., MLSys 2020).
Activations become uint8, weights int8: on x86 only this pair runs wholly in INT8.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import parallel
from ..errors import QuantizationError
from .fake_quantize import (
    FUSED,
    Range,
    fake_quantize,
    fake_quantize_activated,
    fake_quantize_rows,
)

ACTIVATION_RANGE = (0, 255)
# Symmetric, for where BatchNorm turns a channel's sign the deployed integers are the negative ones.
WEIGHT_RANGE = (-127, 127)
_SMALLEST_SCALE = 1e-8


class Quantizer(nn.Module):
    """Base of both quantizers: a learned scale, and whether it has been initialized.

    Parameters
    ----------
    scales : number of scales, 1 for a whole tensor
    """

    initialized: Tensor

    def __init__(self, scales: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(scales))
        self.register_buffer("initialized", torch.tensor(False))
        self.enabled = False
        self.path = ""
        self._seen_range = False

    @property
    def has_range(self) -> bool:
        """Whether its range has been initialized."""
        # Asked of the tensor only until it is so: a GPU would have to be waited for each time.
        self._seen_range = self._seen_range or bool(self.initialized)
        return self._seen_range

    def take_range(self, other: Quantizer) -> None:
        """Have the range of another, which may have more scales."""
        self.log_scale.data.copy_(other.log_scale[: len(self.log_scale)])
        self.initialized.copy_(other.initialized)
        self._seen_range = False
        self.enabled = other.enabled

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._seen_range = False

    @property
    def scale(self) -> Tensor:
        """Scales, shape (scales,)."""
        return self.log_scale.exp()

    def _set_scale(self, scale: Tensor) -> None:
        self.log_scale.data.copy_(scale.detach().clamp_min(_SMALLEST_SCALE).log())
        self.initialized.fill_(True)
        self._seen_range = True

    def _require_training(self) -> None:
        if not self.training:
            raise QuantizationError(
                f"quantizer {self.path or type(self).__name__!r} has no range yet; "
                "run it in training mode on images first"
            )


class ActivationQuantizer(Quantizer):
    """Fake-quantize an activation tensor to uint8 with one scale and an integer zero point.

    Parameters
    ----------
    unsigned : for tensors that are never negative; the zero point stays 0, which lets a runtime
        fold the ReLU before it
    most : for tensors that are never above; nor is the range, which lets a runtime fold the ReLU6
        before it
    """

    zero_point: Tensor

    def __init__(self, *, unsigned: bool, most: float | None = None) -> None:
        super().__init__(1)
        self.unsigned = unsigned
        steps = ACTIVATION_RANGE[1]
        # Below by more than float32 rounds, so that all steps together do not exceed it.
        self._largest_scale = None if most is None else (1 - 1e-6) * most / steps
        if unsigned:
            self.register_buffer("zero_point", torch.zeros(1))
        else:
            self.zero_point = nn.Parameter(torch.zeros(1))

    def take_range(self, other: Quantizer) -> None:
        """As of any quantizer, the zero point included."""
        super().take_range(other)
        assert isinstance(other, ActivationQuantizer)
        self.zero_point.data.copy_(other.zero_point)

    def initialize(self, x: Tensor) -> None:
        """Take the range of `x`, any shape; of the whole batch if several processes share it."""
        least, greatest = parallel.extent(x)
        low = torch.zeros(()) if self.unsigned else least.clamp_max(0)
        high = greatest.clamp_min(0)
        scale = ((high - low) / ACTIVATION_RANGE[1]).clamp_min(_SMALLEST_SCALE)
        self.zero_point.data.copy_((-low / scale).reshape(1))
        self._set_scale(scale.reshape(1))
        self._keep_bound()

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized `x`, same shape; `x` itself while not enabled."""
        if not self.enabled:
            return x
        if x.dtype.itemsize < 4:
            # bfloat16, in which a convolution may have computed it, has no room for 256 levels.
            x = x.float()
        if not self.has_range:
            self._require_training()
            self.initialize(x)
        if not self.training:
            zero_point = self.zero_point.round().clamp(*ACTIVATION_RANGE).int()
            return torch.fake_quantize_per_tensor_affine(
                x, self.scale.detach(), zero_point, *ACTIVATION_RANGE
            )
        return fake_quantize(x, *self.learn(), ACTIVATION_RANGE, _factor(x))

    @property
    def scale(self) -> Tensor:
        """The scale, shape (1,)."""
        scale = super().scale
        return scale if self._largest_scale is None else scale.clamp_max(self._largest_scale)

    def learn(self) -> Range:
        """Scale and zero point, (1,) each, for a step of training."""
        self._keep_bound()
        return self.scale, self.zero_point

    def _keep_bound(self) -> None:
        if self._largest_scale is not None:
            # What a step takes beyond the bound would have no gradient to come back.
            self.log_scale.data.clamp_(max=math.log(self._largest_scale) - 1e-6)

    @property
    def is_learning(self) -> bool:
        """Whether it quantizes, has a range, and learns it."""
        return self.enabled and self.training and self.has_range


def quantized_activation(
    x: Tensor, activation: str, after: ActivationQuantizer, before: ActivationQuantizer | None
) -> Tensor | None:
    """`after(activation(before(x)))` in one pass through memory, while all of them learn.

    Returns
    -------
    None where they do not, or where there is no such pass
    """
    quantizers = (after,) if before is None else (before, after)
    is_plain = x.device.type == "cpu" and x.dtype == torch.float32
    if activation not in FUSED or not is_plain or not all(q.is_learning for q in quantizers):
        return None
    seen_before = None if before is None else before.learn()
    factor = _factor(x)
    return fake_quantize_activated(
        x, activation, after.learn(), seen_before, ACTIVATION_RANGE, factor
    )


def _factor(x: Tensor) -> float:
    """LSQ's scale of the gradients of an activation's range."""
    return 1 / math.sqrt(parallel.elements(x) * ACTIVATION_RANGE[1])


class WeightQuantizer(Quantizer):
    """Fake-quantize a weight tensor to symmetric int8.

    Parameters
    ----------
    channels : output channels of the largest weight
    per_channel : one scale an output channel, sliced with elastic widths; else one for all
    """

    def __init__(self, channels: int, *, per_channel: bool = True) -> None:
        super().__init__(channels if per_channel else 1)
        self.per_channel = per_channel

    def initialize(self, weight: Tensor) -> None:
        """LSQ+'s start, the larger end of mean +- 3 deviations, over the largest weight."""
        rows = weight.detach().flatten(1) if self.per_channel else weight.detach().reshape(1, -1)
        mean, deviation = rows.mean(1), rows.std(1, unbiased=False)
        reach = torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs())
        self._set_scale(reach / WEIGHT_RANGE[1])

    def cover(self, weight: Tensor) -> None:
        """Start from the range of the largest weight instead, so that nothing is clipped.

        For weights trained without a quantizer: a few far outside 3 deviations carry much.
        """
        rows = weight.detach().flatten(1) if self.per_channel else weight.detach().reshape(1, -1)
        self._set_scale(rows.abs().amax(1) / WEIGHT_RANGE[1])

    def forward(self, weight: Tensor, largest: Tensor) -> Tensor:
        """Fake-quantized `weight`, same shape.

        Parameters
        ----------
        weight : the active slice, its output channels the first of `largest`
        largest : the whole weight, from which the scales start
        """
        if not self.enabled:
            return weight
        if not self.has_range:
            self._require_training()
            self.initialize(largest)
        if not self.per_channel:
            return self._per_tensor(weight)
        scale = self.scale[: len(weight)]
        if not self.training:
            zero_point = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
            return torch.fake_quantize_per_channel_affine(
                weight, scale.detach(), zero_point, 0, *WEIGHT_RANGE
            )
        factor = 1 / math.sqrt(weight[0].numel() * WEIGHT_RANGE[1])
        return fake_quantize_rows(weight, scale, WEIGHT_RANGE, factor)

    def _per_tensor(self, weight: Tensor) -> Tensor:
        zero = torch.zeros(1, device=weight.device)
        if not self.training:
            return torch.fake_quantize_per_tensor_affine(
                weight, self.scale.detach(), zero.int(), *WEIGHT_RANGE
            )
        factor = 1 / math.sqrt(weight.numel() * WEIGHT_RANGE[1])
        return fake_quantize(weight, self.scale, zero, WEIGHT_RANGE, factor)
