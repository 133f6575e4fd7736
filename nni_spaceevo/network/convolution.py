"""Convolutions while training, each in the way that takes least time on its device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import depthwise, fourier


def training_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int
) -> Tensor:
    """`torch.nn.functional.conv2d` with `k // 2` pixels of padding, up to rounding.

    Parameters
    ----------
    x : (n, cin, h, w)
    weight : (cout, cin / groups, k, k), k odd
    bias : (cout,)
    stride, groups : of the convolution

    Returns
    -------
    (n, cout, ceil(h / stride), ceil(w / stride))
    """
    kernel = weight.shape[-1]
    if stride > 1 and kernel == 1:
        # The same pixels. With a stride, oneDNN's gradient of these weights writes past its
        # buffer where channels lie last and are fewer than fill a vector (8 with AVX2, 16 with
        # AVX-512): wrong gradients, or a crash (uxlfoundation/oneDNN#6035).
        x, stride = x[..., ::stride, ::stride], 1
    if bias is None and fourier.saves_time(x, weight, stride, groups):
        return fourier.fourier_conv2d(x, weight)
    if bias is None and depthwise.saves_time(x, weight, stride, groups):
        return depthwise.depthwise_conv2d(x, weight)
    return F.conv2d(x, weight, bias, stride, kernel // 2, groups=groups)
