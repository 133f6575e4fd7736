"""What is folded computes what it was folded from: exactly, but for the rounding of a bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nni_spaceevo.hyperspace import ConvStep, LinearStep
from nni_spaceevo.network.folding import folded_floats, folded_integers, settle_biases
from nni_spaceevo.network.layers import ConvLayer, LinearLayer
from nni_spaceevo.quant import FP32, INT8, ActivationQuantizer, set_precision

INPUT_SCALE = 0.0371


def conv_layer(seed: int, *, depthwise: bool, norm: bool) -> tuple[ConvLayer, ConvStep]:
    """A trained convolution whose BatchNorm keeps, turns or drops channels."""
    draw = torch.Generator().manual_seed(seed)
    step = ConvStep("c", 6, 6, 3, 1, depthwise, norm, "none", bias=not norm)
    layer = ConvLayer([step])
    layer.conv.weight.data = torch.randn(layer.conv.weight.shape, generator=draw)
    if not norm:
        layer.conv.bias.data = torch.randn(6, generator=draw)
    if norm:
        layer.norm.weight.data = torch.tensor([1.0, -0.8, 0.0, 1e-9, 3.0, -2e-4])
        layer.norm.bias.data = torch.randn(6, generator=draw)
        layer.norm.running_mean.copy_(torch.randn(6, generator=draw))
        layer.norm.running_var.copy_(torch.rand(6, generator=draw) + 0.1)
    set_precision(layer, INT8)
    layer.train()
    layer.weight_quantizer(layer.conv.weight, layer.conv.weight)
    return layer.eval(), step


class OneLayer(nn.Module):
    """Images on a grid, and a convolution on them."""

    def __init__(self, layer: ConvLayer, step: ConvStep) -> None:
        super().__init__()
        self.layer, self.step = layer, step
        self.image = ActivationQuantizer(unsigned=False)
        self.image.initialize(INPUT_SCALE * torch.arange(-128.0, 128.0))
        set_precision(self, INT8)
        # So that what the convolution itself gives is seen.
        layer.activations["none"].after.enabled = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Of images (n, 6, h, w)."""
        found: torch.Tensor = self.layer(self.image(images), self.step)
        return found


def in_units(network: OneLayer, x: torch.Tensor) -> torch.Tensor:
    """How far the integers are from the network, in units of the bias, but for float32's digits."""
    network.eval()
    with torch.no_grad():
        expected = network(x.float()).double()
    scale = float(network.image.scale.detach())
    found = folded_integers(network.layer, scale)
    assert found.weight.dtype == np.int8 and found.weight.min() >= -127
    integers, groups = torch.from_numpy(found.weight).double(), 6 if network.step.depthwise else 1
    product = F.conv2d((x / scale).round(), integers, padding=1, groups=groups)
    unit = (scale * torch.from_numpy(found.scales).double()).view(-1, 1, 1)
    bias = torch.from_numpy(found.bias).double().view(-1, 1, 1)
    error = ((product + bias) * unit - expected).abs() - 1e-6 * expected.abs().max()
    return error / unit


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), depthwise=st.booleans(), norm=st.booleans())
def test_a_convolution_in_integers_is_that_of_training(
    seed: int, depthwise: bool, norm: bool
) -> None:
    network = OneLayer(*conv_layer(seed, depthwise=depthwise, norm=norm))
    x = INPUT_SCALE * torch.randint(-128, 128, (2, 6, 5, 5)).double()
    assert 0.05 < in_units(network, x).max() <= 0.501
    before = {name: value.clone() for name, value in network.state_dict().items()}
    settle_biases(network, x[:1].float())
    assert in_units(network, x).max() <= 0.001
    once = network.state_dict()
    changed = {name for name, value in once.items() if not torch.equal(value, before[name])}
    assert changed == {"layer.norm.bias" if norm else "layer.conv.bias"}


def test_without_quantizers_biases_stay_as_they_are() -> None:
    network = OneLayer(*conv_layer(0, depthwise=False, norm=True))
    set_precision(network, FP32)
    before = network.layer.norm.bias.clone()
    settle_biases(network, torch.randn(1, 6, 5, 5))
    assert torch.equal(network.layer.norm.bias, before)


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_convolution_in_floats_is_that_of_training(depthwise: bool) -> None:
    layer, step = conv_layer(3, depthwise=depthwise, norm=True)
    for quantizer in (layer.weight_quantizer, layer.activations["none"].after):
        quantizer.enabled = False
    x = torch.randn(2, 6, 5, 5)
    weight, bias = folded_floats(layer)
    with torch.no_grad():
        expected = layer(x, step)
    found = F.conv2d(x, weight, bias, padding=1, groups=6 if depthwise else 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_matrix_product_has_no_batchnorm() -> None:
    step = LinearStep("l", 5, 3)
    layer = LinearLayer([step])
    set_precision(layer, INT8)
    layer.train()
    layer(torch.randn(2, 5, 1, 1), step)
    found = folded_integers(layer.eval(), INPUT_SCALE)
    scales = torch.from_numpy(found.scales)
    quantized = layer.weight_quantizer(layer.linear.weight, layer.linear.weight)
    torch.testing.assert_close(torch.from_numpy(found.weight) * scales[:, None], quantized)
    bias = torch.from_numpy(found.bias) * scales * INPUT_SCALE
    assert ((bias - layer.linear.bias).abs() <= 0.501 * scales * INPUT_SCALE).all()
