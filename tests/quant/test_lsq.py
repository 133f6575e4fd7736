"""LSQ+ quantizers against a hand-written reference."""

import math

import pytest
import torch
from torch import nn

from nni_spaceevo.errors import QuantizationError
from nni_spaceevo.quant import (
    INT8,
    ActivationQuantizer,
    WeightQuantizer,
    set_precision,
    uninitialized,
)


def enabled(quantizer):
    quantizer.enabled = True
    return quantizer


class Round(torch.autograd.Function):
    """Rounding whose gradient is the identity: the straight-through estimator."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Clip(torch.autograd.Function):
    """Clipping that passes the gradient wherever it changes nothing, the ends included."""

    @staticmethod
    def forward(ctx, x, low, high):
        ctx.inside = (x >= low) & (x <= high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.inside, None, None


class ScaleGradient(torch.autograd.Function):
    """The identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def reference(x, scale, zero_point, low, high, factor):
    """LSQ+ written with plain operations; gradients of scale and offset are scaled by `factor`."""
    scale = ScaleGradient.apply(scale, factor)
    zero_point = ScaleGradient.apply(zero_point, factor)
    offset = Round.apply(zero_point)
    integers = Clip.apply(Round.apply(x / scale) + offset, low, high)
    return (integers - offset) * scale


@pytest.mark.parametrize("unsigned", [True, False], ids=["unsigned", "with zero point"])
def test_activation_values_and_gradients_equal_the_reference(unsigned):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5) * 2 + 0.5
    quantizer = enabled(ActivationQuantizer(unsigned=unsigned))
    quantizer.initialize(x * 0.5)  # a narrower range, so that some values are clipped
    a = x.clone().requires_grad_()
    out = quantizer(a)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()

    b = x.clone().requires_grad_()
    log_scale = quantizer.log_scale.detach().clone().requires_grad_()
    zero_point = quantizer.zero_point.detach().clone().requires_grad_()
    factor = 1 / math.sqrt(x.numel() * 255)
    expected = reference(b, log_scale.exp(), zero_point, 0, 255, factor)
    (expected * weights).sum().backward()

    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(quantizer.log_scale.grad, log_scale.grad, rtol=1e-3, atol=1e-5)
    if not unsigned:
        torch.testing.assert_close(quantizer.zero_point.grad, zero_point.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
def test_weight_values_and_gradients_equal_the_reference(per_channel):
    torch.manual_seed(0)
    w = torch.randn(6, 3, 3, 3) * torch.rand(6, 1, 1, 1)
    quantizer = enabled(WeightQuantizer(6, per_channel=per_channel))
    a = w.clone().requires_grad_()
    out = quantizer(a, a)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()

    b = w.clone().requires_grad_()
    log_scale = quantizer.log_scale.detach().clone().requires_grad_()
    shape = (-1, 1, 1, 1) if per_channel else (1,)
    factor = 1 / math.sqrt((w[0] if per_channel else w).numel() * 127)
    zero = torch.zeros(1)
    expected = reference(b, log_scale.exp().view(shape), zero, -127, 127, factor)
    (expected * weights).sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(quantizer.log_scale.grad, log_scale.grad, rtol=1e-3, atol=1e-5)


def test_values_are_the_same_in_training_and_in_evaluation():
    x = torch.randn(8, 4, 6, 6)
    activation, weight = enabled(ActivationQuantizer(unsigned=False)), enabled(WeightQuantizer(8))
    trained = activation(x), weight(x, x)
    assert torch.equal(trained[0], activation.eval()(x))
    assert torch.equal(trained[1], weight.eval()(x, x))


def test_activations_take_at_most_256_levels_and_zero_stays_zero():
    x = torch.randn(1, 1, 100, 100)
    x[0, 0, 0, 0] = 0
    out = enabled(ActivationQuantizer(unsigned=False))(x)
    assert len(out.unique()) <= 256
    assert out[0, 0, 0, 0] == 0


def test_an_unsigned_quantizer_keeps_zero_point_0_so_that_relu_folds():
    quantizer = enabled(ActivationQuantizer(unsigned=True))
    quantizer(torch.randn(2, 2, 4, 4).relu())
    assert quantizer.zero_point.item() == 0
    assert "zero_point" not in dict(quantizer.named_parameters())


def test_a_range_stays_within_what_a_relu6_gives_and_comes_back_from_there():
    quantizer = enabled(ActivationQuantizer(unsigned=True, most=6))
    x = torch.cat([torch.rand(999) * 12, torch.tensor([12.0])]).clamp_max(6).reshape(1, 1, 20, 50)
    quantizer(x)
    assert 5.999 < quantizer.scale * 255 <= 6
    quantizer.log_scale.data += 1
    for training in (False, True):
        quantizer.train(training)
        assert 5.999 < quantizer(x).max() <= 6
    assert 5.999 < quantizer.log_scale.exp() * 255 <= 6
    quantizer(x / 2).sum().backward()
    assert quantizer.log_scale.grad.item() != 0


def test_per_channel_scales_slice_with_the_width():
    w = torch.randn(8, 4, 3, 3) * torch.arange(1, 9).view(-1, 1, 1, 1)
    quantizer = enabled(WeightQuantizer(8))
    whole = quantizer(w, w)
    assert torch.equal(quantizer(w[:5], w), whole[:5])


def test_without_precision_a_quantizer_is_the_identity():
    x = torch.randn(3, 3)
    assert ActivationQuantizer(unsigned=False)(x) is x
    assert WeightQuantizer(3)(x, x) is x


def test_evaluation_before_a_range_is_known_names_the_quantizer():
    module = nn.ModuleDict({"stage1": nn.ModuleDict({"out": ActivationQuantizer(unsigned=True)})})
    set_precision(module, INT8)
    module.eval()
    with pytest.raises(QuantizationError, match=r"stage1\.out"):
        module["stage1"]["out"](torch.ones(1))


def test_initialized_is_a_buffer_that_travels_with_the_state():
    source, target = (enabled(ActivationQuantizer(unsigned=False)) for _ in range(2))
    assert uninitialized(source) == [""]
    source(torch.randn(10))
    target.load_state_dict(source.state_dict())
    assert uninitialized(target) == []
    x = torch.randn(20)
    assert torch.equal(source.eval()(x), target.eval()(x))


def test_a_constant_tensor_gives_a_usable_scale():
    quantizer = enabled(ActivationQuantizer(unsigned=True))
    assert torch.equal(quantizer(torch.zeros(5)), torch.zeros(5))
    assert quantizer.scale.item() > 0


def test_lsq_learns_a_smaller_error_than_its_start():
    torch.manual_seed(0)
    x = torch.randn(4000)
    x[0] = 60.0  # an outlier makes the first range far too wide
    quantizer = enabled(ActivationQuantizer(unsigned=False))
    start = (quantizer(x) - x)[1:].square().mean().item()
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (quantizer(x) - x)[1:].square().mean().backward()
        optimizer.step()
    assert (quantizer.eval()(x) - x)[1:].square().mean().item() < start / 2


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_covering_scale_clips_no_weight(per_channel):
    weight = torch.randn(6, 40)
    weight[:, 0] = torch.tensor([9.0, -9.0, 5.0, -5.0, 1.0, 0.0])
    quantizer = enabled(WeightQuantizer(6, per_channel=per_channel))
    quantizer.cover(weight)
    step = quantizer.scale.detach().view(-1, 1)
    assert ((quantizer(weight, weight) - weight).abs() <= step / 2 + 1e-6).all()
