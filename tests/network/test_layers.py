"""Layers: which tensors are quantized, and what a slice computes."""

import pytest
import torch
import torch.nn.functional as F

from nni_spaceevo.hyperspace import ConvStep, SqueezeExciteStep
from nni_spaceevo.network.layers import ConvLayer, QuantizedActivation, SqueezeExciteLayer
from nni_spaceevo.quant import INT8, ActivationQuantizer, set_precision


@pytest.mark.parametrize(
    ("activation", "quantizers"),
    [("none", 1), ("relu", 1), ("relu6", 1), ("hswish", 2), ("hsigmoid", 2), ("swish", 3)],
)
def test_activations_that_do_not_fold_are_quantized_on_both_sides(activation, quantizers):
    module = QuantizedActivation(activation)
    found = [m for m in module.modules() if isinstance(m, ActivationQuantizer)]
    assert len(found) == quantizers


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", F.relu),
        ("relu6", F.relu6),
        ("hswish", F.hardswish),
        ("swish", F.silu),
        ("hsigmoid", F.hardsigmoid),
    ],
)
def test_in_fp32_an_activation_is_torchs(activation, function):
    x = torch.randn(2, 3, 4, 4) * 4
    torch.testing.assert_close(QuantizedActivation(activation)(x), function(x))


def test_a_slice_is_the_first_channels_and_the_centre_of_the_kernel():
    large = ConvStep("conv", 8, 16, 5, norm=False)
    small = ConvStep("conv", 4, 6, 3, norm=False)
    layer = ConvLayer([large, small])
    x = torch.randn(2, 4, 7, 7)
    expected = F.conv2d(x, layer.conv.weight[:6, :4, 1:4, 1:4], padding=1)
    torch.testing.assert_close(layer(x, small), expected)


def test_a_depthwise_slice_keeps_one_input_channel_a_group():
    layer = ConvLayer([ConvStep("dw", 8, 8, 3, 2, depthwise=True)]).eval()
    assert layer(torch.randn(1, 5, 9, 9), ConvStep("dw", 5, 5, 3, 2, depthwise=True)).shape == (
        1,
        5,
        5,
        5,
    )


@pytest.mark.parametrize("channels", [1, 3, 8, 12, 24])
def test_gradients_do_not_depend_on_the_order_in_memory(channels):
    step = ConvStep("shortcut", channels, 8, 1, 2, norm=False)
    layer = ConvLayer([step])
    x = torch.randn(16, channels, 14, 14)
    gradients = []
    for order in (torch.contiguous_format, torch.channels_last):
        layer.to(memory_format=order).zero_grad()
        layer(x.to(memory_format=order), step).square().sum().backward()
        gradients.append(layer.conv.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    trained = layer(x, step)
    torch.testing.assert_close(layer.eval()(x, step), trained, rtol=1e-4, atol=1e-4)


def test_squeeze_and_excite_quantizes_pool_convolutions_gate_and_product():
    step = SqueezeExciteStep("se", 16, 8)
    layer = SqueezeExciteLayer([step])
    set_precision(layer, INT8)
    layer(torch.randn(2, 16, 4, 4), step)
    quantizers = [m for m in layer.modules() if isinstance(m, ActivationQuantizer)]
    assert len(quantizers) == 5  # pooled, ReLU, before and after the gate, product
    assert all(q.initialized for q in quantizers)


def test_batch_norm_statistics_of_unused_channels_stay():
    layer = ConvLayer([ConvStep("conv", 4, 8), ConvStep("conv", 4, 4)])
    layer(torch.randn(8, 4, 5, 5) + 3, ConvStep("conv", 4, 4))
    assert torch.equal(layer.norm.running_mean[4:], torch.zeros(4))
    assert layer.norm.running_mean[:4].abs().sum() > 0
