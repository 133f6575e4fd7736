"""Wide depthwise convolutions that are trained by columns are torch's, values and gradients."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_spaceevo.hyperspace import ConvStep
from nni_spaceevo.network import depthwise
from nni_spaceevo.network.depthwise import depthwise_conv2d, saves_time
from nni_spaceevo.network.layers import ConvLayer

WIDE = ConvStep("conv", 96, 96, 5, depthwise=True, norm=False)
sides = st.integers(1, 9)


@pytest.fixture
def avx2():
    """As if on a processor with AVX2 alone."""
    with mock.patch.object(depthwise.cpu, "get_cpu_capability", lambda: "AVX2"):
        yield


def images(n, channels, *size, dtype=torch.float32):
    x = torch.randn(n, channels, *size, dtype=dtype)
    return x.to(memory_format=torch.channels_last).requires_grad_()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 7),
    st.integers(2, 6),
    sides,
    sides,
    st.sampled_from([3, 5, 7, 9]),
    st.integers(1, 700),
)
def test_values_and_gradients_are_those_of_conv2d(n, channels, height, width, kernel, numbers):
    x = images(n, channels, height, width, dtype=torch.float64)
    weight = images(channels, 1, kernel, kernel, dtype=torch.float64)
    expected = F.conv2d(x, weight, padding=kernel // 2, groups=channels)
    found = depthwise_conv2d(x, weight)
    assert torch.equal(found, expected)
    of_result = torch.randn_like(expected)
    # Any number of images at a time, the last fewer.
    with mock.patch.object(depthwise, "_NUMBERS", numbers):
        ours = torch.autograd.grad(found, (x, weight), of_result)
    torchs = torch.autograd.grad(expected, (x, weight), of_result)
    assert torch.equal(ours[0], torchs[0])
    torch.testing.assert_close(ours[1], torchs[1])


def test_in_floats_it_rounds_no_worse():
    x, weight = images(16, 96, 20, 20), images(96, 1, 5, 5)
    of_result = torch.randn(16, 96, 20, 20)

    def gradient(way, x, weight):
        return torch.autograd.grad(way(x, weight), weight, of_result.to(x))[0]

    def torchs(x, weight):
        return F.conv2d(x, weight, padding=2, groups=96)

    exact = gradient(torchs, x.double(), weight.double().detach().requires_grad_())
    ours, theirs = (gradient(way, x, weight) - exact for way in (depthwise_conv2d, torchs))
    assert ours.norm() < max(2 * theirs.norm(), 1e-6 * exact.norm())


def test_neighbours_in_memory_do_not_leak_into_each_other():
    """What is beside an image, whatever it is, is worth 0."""
    x, weight = images(3, 16, 4, 4), images(16, 1, 5, 5)
    gradients = []
    for other in (0.0, 1e6):
        padded = x.detach().clone()
        padded[1] = other
        of_result = torch.zeros_like(padded)
        of_result[[0, 2]] = 1
        y = depthwise_conv2d(padded, weight)
        gradients.append(torch.autograd.grad(y, weight, of_result)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("needed", ["images", "weight"])
def test_a_gradient_that_nobody_needs_is_not_computed(needed):
    x, weight = images(2, 3, 5, 5), images(3, 1, 5, 5)
    (x if needed == "weight" else weight).requires_grad_(False)
    depthwise_conv2d(x, weight).sum().backward()
    assert (x.grad is not None, weight.grad is not None) == (needed == "images", needed == "weight")


@pytest.mark.usefixtures("avx2")
def test_it_is_for_wide_kernels_of_large_maps_in_floats_on_a_cpu():
    x, weight = torch.empty(16, 96, 20, 20), torch.empty(96, 1, 5, 5)
    assert saves_time(x, weight, stride=1, groups=96)
    assert not saves_time(x, weight, stride=2, groups=96)
    assert not saves_time(x, torch.empty(96, 96, 5, 5), stride=1, groups=1)
    assert not saves_time(x, torch.empty(96, 1, 3, 3), stride=1, groups=96)
    assert not saves_time(x[:1, :, :4, :4], weight, stride=1, groups=96)
    assert not saves_time(x.to("meta"), weight, stride=1, groups=96)
    with torch.autocast("cpu", torch.bfloat16):
        assert not saves_time(x, weight, stride=1, groups=96)


@pytest.mark.parametrize("capability", ["AVX512", "DEFAULT"])
def test_other_processors_are_left_to_torch(capability):
    x, weight = torch.empty(16, 96, 20, 20), torch.empty(96, 1, 5, 5)
    with mock.patch.object(depthwise.cpu, "get_cpu_capability", lambda: capability):
        assert not saves_time(x, weight, stride=1, groups=96)


@pytest.mark.usefixtures("avx2")
def test_a_layer_trains_by_it_and_is_evaluated_by_torch():
    layer = ConvLayer([WIDE]).to(memory_format=torch.channels_last)
    x = images(16, 96, 20, 20)
    name = "nni_spaceevo.network.depthwise.depthwise_conv2d"
    with mock.patch(name, side_effect=depthwise_conv2d) as way:
        trained = layer.train()(x, WIDE)
        assert way.call_count == 1
        assert torch.equal(layer.eval()(x, WIDE), trained)
        assert way.call_count == 1


@pytest.mark.usefixtures("avx2")
def test_elastic_and_extracted_layers_train_by_the_same_bits():
    small = ConvStep("conv", 64, 64, 5, depthwise=True, norm=False)
    elastic = ConvLayer([ConvStep("conv", 72, 72, 7, depthwise=True, norm=False), small])
    static = ConvLayer([small])
    elastic.copy_to(static, small)
    x, of_result = images(16, 64, 16, 16), torch.randn(16, 64, 16, 16)
    assert saves_time(x, static.conv.weight, stride=1, groups=64)
    results = []
    for layer in (elastic, static):
        y = layer(x, small)
        of_x, of_weight = torch.autograd.grad(y, (x, layer.conv.weight), of_result)
        results.append((y, of_x, of_weight))
    (y, of_x, of_weight), expected = results
    for found, same in zip((y, of_x, of_weight[:64, :, 1:6, 1:6]), expected, strict=True):
        assert torch.equal(found, same)
