"""Convolutions by way of frequencies are torch's, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_spaceevo.hyperspace import ConvStep
from nni_spaceevo.network.fourier import fourier_conv2d, saves_time
from nni_spaceevo.network.layers import ConvLayer

LARGE = ConvStep("conv", 96, 96, 7, norm=False)
sides = st.integers(1, 9)
widths = st.integers(1, 4)


def images(n, channels, *size, dtype=torch.float32):
    x = torch.randn(n, channels, *size, dtype=dtype)
    return x.to(memory_format=torch.channels_last).requires_grad_()


@settings(deadline=None, max_examples=60)
@given(widths, widths, widths, sides, sides, st.sampled_from([1, 3, 5, 7]))
def test_values_and_gradients_are_those_of_conv2d(n, cin, cout, height, width, kernel):
    x = images(n, cin, height, width, dtype=torch.float64)
    weight = images(cout, cin, kernel, kernel, dtype=torch.float64)
    expected = F.conv2d(x, weight, padding=kernel // 2)
    found = fourier_conv2d(x, weight)
    torch.testing.assert_close(found, expected)
    of_result = torch.randn_like(expected)
    gradients = (torch.autograd.grad(y, (x, weight), of_result) for y in (found, expected))
    for ours, torchs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, torchs)


def test_in_floats_it_rounds_no_worse():
    x, weight = images(8, 96, 10, 10), images(96, 96, 7, 7)
    exact = F.conv2d(x.double(), weight.double(), padding=3)
    ours, torchs = (f - exact for f in (fourier_conv2d(x, weight), F.conv2d(x, weight, padding=3)))
    assert ours.norm() < max(2 * torchs.norm(), 1e-6 * exact.norm())


@pytest.mark.parametrize("needed", ["images", "weight"])
def test_a_gradient_that_nobody_needs_is_not_computed(needed):
    x, weight = images(2, 3, 5, 5), images(4, 3, 5, 5)
    (x if needed == "weight" else weight).requires_grad_(False)
    fourier_conv2d(x, weight).sum().backward()
    assert (x.grad is not None, weight.grad is not None) == (needed == "images", needed == "weight")


@pytest.mark.parametrize(
    ("shape", "kernel", "cout", "faster"),
    [
        # onnxw's stage3 with ResNet blocks; 14x14 of a batch of 64.
        ((16, 216, 10, 10), 7, 216, True),
        ((16, 216, 10, 10), 5, 216, True),
        ((64, 216, 14, 14), 7, 216, True),
        # A small kernel, a large map, little to compute.
        ((16, 216, 10, 10), 3, 216, False),
        ((16, 32, 80, 80), 7, 32, False),
        ((2, 16, 10, 10), 7, 16, False),
    ],
)
def test_it_is_for_large_kernels_on_small_maps(shape, kernel, cout, faster):
    x = torch.empty(shape)
    weight = torch.empty(cout, shape[1], kernel, kernel)
    assert saves_time(x, weight, stride=1, groups=1) == faster


def test_it_is_for_dense_convolutions_in_floats_on_a_cpu():
    x, weight = torch.empty(16, 216, 10, 10), torch.empty(216, 216, 7, 7)
    assert saves_time(x, weight, stride=1, groups=1)
    assert not saves_time(x, weight, stride=2, groups=1)
    assert not saves_time(x, weight[:, :1], stride=1, groups=216)
    assert not saves_time(x.to("meta"), weight, stride=1, groups=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert not saves_time(x, weight, stride=1, groups=1)


def test_a_layer_trains_by_it_and_is_evaluated_by_torch():
    layer = ConvLayer([LARGE]).to(memory_format=torch.channels_last)
    x, weight = images(16, 96, 8, 8), layer.conv.weight
    assert saves_time(x, weight, stride=1, groups=1)
    assert torch.equal(layer.train()(x, LARGE), fourier_conv2d(x, weight))
    assert torch.equal(layer.eval()(x, LARGE), F.conv2d(x, weight, padding=3))


def test_elastic_and_extracted_layers_train_by_the_same_bits():
    small = ConvStep("conv", 56, 64, 5, norm=False)
    elastic = ConvLayer([ConvStep("conv", 72, 72, 7, norm=False), small])
    static = ConvLayer([small])
    elastic.copy_to(static, small)
    x, of_result = images(32, 56, 8, 8), torch.randn(32, 64, 8, 8)
    assert saves_time(x, static.conv.weight, stride=1, groups=1)
    results = []
    for layer in (elastic, static):
        y = layer(x, small)
        of_x, of_weight = torch.autograd.grad(y, (x, layer.conv.weight), of_result)
        results.append((y, of_x, of_weight))
    (y, of_x, of_weight), expected = results
    for found, same in zip((y, of_x, of_weight[:64, :56, 1:6, 1:6]), expected, strict=True):
        assert torch.equal(found, same)
