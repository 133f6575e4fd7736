"""Layers written plainly: values and gradients are the package's."""

from __future__ import annotations

import pytest
import torch

from nni_spaceevo.network.layers import ConvLayer
from nni_spaceevo.quant import ActivationQuantizer, WeightQuantizer


def gradients(quantize, x, quantizer):
    """Values, and gradients of what is quantized and of the quantizer."""
    quantizer.zero_grad()
    x = x.clone().requires_grad_()
    out = quantize(x)
    generator = torch.Generator().manual_seed(1)
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    return [out, x.grad, *(p.grad.clone() for p in quantizer.parameters())]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("unsigned", [True, False], ids=["unsigned", "with zero point"])
def test_plain_activations_have_the_packages_values_and_gradients(plain, unsigned):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 5)
    quantizer = ActivationQuantizer(unsigned=unsigned)
    quantizer.enabled = True
    quantizer.initialize(0.5 * x)  # so that some values are clipped
    ours = gradients(quantizer, x, quantizer)
    theirs = gradients(lambda v: plain.plain_activation(quantizer, v), x, quantizer)
    assert len(ours) == len(theirs) == (3 if unsigned else 4)
    assert_same(ours, theirs)


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 4)], ids=["convolution", "linear"])
def test_plain_weights_have_the_packages_values_and_gradients(plain, shape):
    torch.manual_seed(0)
    largest = torch.randn(shape)
    quantizer = WeightQuantizer(8)
    quantizer.enabled = True
    quantizer.initialize(0.5 * largest)
    ours = gradients(lambda v: quantizer(v, largest), largest[:6, :3], quantizer)
    theirs = gradients(
        lambda v: plain.plain_weight(quantizer, v, largest), largest[:6, :3], quantizer
    )
    assert_same(ours, theirs)


def test_layers_are_plain_within_and_as_before_afterwards(plain):
    before = ActivationQuantizer.forward, WeightQuantizer.forward, ConvLayer._weight
    with plain.plain_layers():
        assert ActivationQuantizer.forward is plain.plain_activation
        assert WeightQuantizer.forward is plain.plain_weight
        assert ConvLayer._weight is not before[2]
    assert (ActivationQuantizer.forward, WeightQuantizer.forward, ConvLayer._weight) == before
