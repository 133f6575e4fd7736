"""What is folded computes what it was folded from: exactly, but for the rounding of a bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_spaceevo.deploy.folding import folded_floats, folded_integers
from nni_spaceevo.hyperspace import ConvStep, LinearStep
from nni_spaceevo.network.layers import ConvLayer, LinearLayer
from nni_spaceevo.quant import INT8, set_precision

INPUT_SCALE = 0.0371


def conv_layer(seed: int, *, depthwise: bool, norm: bool) -> tuple[ConvLayer, ConvStep]:
    """A trained convolution whose BatchNorm keeps, turns or drops channels."""
    draw = torch.Generator().manual_seed(seed)
    step = ConvStep("c", 6, 6, 3, 1, depthwise, norm, "none", bias=not norm)
    layer = ConvLayer([step])
    layer.conv.weight.data = torch.randn(layer.conv.weight.shape, generator=draw)
    if norm:
        layer.norm.weight.data = torch.tensor([1.0, -0.8, 0.0, 1e-9, 3.0, -2e-4])
        layer.norm.bias.data = torch.randn(6, generator=draw)
        layer.norm.running_mean.copy_(torch.randn(6, generator=draw))
        layer.norm.running_var.copy_(torch.rand(6, generator=draw) + 0.1)
    set_precision(layer, INT8)
    layer.train()
    layer.weight_quantizer(layer.conv.weight, layer.conv.weight)
    return layer.eval(), step


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), depthwise=st.booleans(), norm=st.booleans())
def test_a_convolution_in_integers_is_that_of_training(
    seed: int, depthwise: bool, norm: bool
) -> None:
    layer, step = conv_layer(seed, depthwise=depthwise, norm=norm)
    x = INPUT_SCALE * torch.randint(-128, 128, (2, 6, 5, 5)).double()
    with torch.no_grad():
        # Without the quantizer of its output.
        layer.activations["none"].after.enabled = False
        expected = layer(x.float(), step).double()
    found = folded_integers(layer, INPUT_SCALE)
    assert found.weight.dtype == np.int8 and found.weight.min() >= -127
    integers = torch.from_numpy(found.weight).double()
    product = F.conv2d((x / INPUT_SCALE).round(), integers, padding=1, groups=6 if depthwise else 1)
    unit = (INPUT_SCALE * torch.from_numpy(found.scales).double()).view(-1, 1, 1)
    bias = torch.from_numpy(found.bias).double().view(-1, 1, 1)
    error = ((product + bias) * unit - expected).abs()
    # Half a unit of the bias; scales are kept in float32.
    assert (error <= 0.501 * unit + 1e-5 * expected.abs().max()).all()


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
