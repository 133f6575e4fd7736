from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nni_spaceevo.quant.fake_quantize import (
    _PIECE,
    FUSED,
    _FakeQuantizeOnGPU,
    fake_quantize,
    fake_quantize_activated,
    fake_quantize_rows,
)

BOUNDS = (0, 255)
# What a GPU computes can be computed by a CPU too.
WAYS = [
    pytest.param(fake_quantize, id="cpu"),
    pytest.param(_FakeQuantizeOnGPU.apply, id="gpu"),
]
FUNCTIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hswish": F.hardswish,
    "hsigmoid": F.hardsigmoid,
}


def outcome(quantized: Tensor, *learned: Tensor) -> list[Tensor]:
    """Values and gradients, for a gradient that differs from element to element."""
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(quantized.shape, generator=generator)
    return [quantized.detach(), *torch.autograd.grad(quantized, learned, upstream)]


def check(ours: list[Tensor], torchs: list[Tensor]) -> None:
    """Values and the gradient of the tensor are equal, other gradients but for rounding."""
    for mine, other in zip(ours[:2], torchs[:2], strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(ours[2:], torchs[2:], strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-3, atol=1e-5)


def layouts() -> dict[str, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 12, 9, 9)
    return {
        "plain": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "a slice": torch.randn(4, 20, 9, 9)[:, :12],
        "turned": x.transpose(1, 3),
        "pieces and a rest": torch.randn(2 * _PIECE + 7),
        "a whole piece": torch.randn(_PIECE),
        "one": torch.randn(1),
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("zero_point", [0.0, 100.3, 255.0, 300.0])
@pytest.mark.parametrize("quantize", WAYS)
def test_a_tensor_is_quantized_as_by_torch(
    quantize: Callable[..., Tensor], layout: str, zero_point: float
) -> None:
    x = layouts()[layout].requires_grad_()
    scale = torch.tensor([0.013], requires_grad=True)
    zero = torch.tensor([zero_point], requires_grad=zero_point <= 255)
    learned = (x, scale, zero) if zero.requires_grad else (x, scale)
    ours = outcome(quantize(x, scale, zero, BOUNDS, 0.1), *learned)
    torchs = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, *BOUNDS, 0.1)
    check(ours, outcome(torchs, *learned))


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("activation", FUSED)
# Below and above 6, where a ReLU6 ends.
@pytest.mark.parametrize("reach", [2.5, 7.0])
def test_an_activation_and_its_quantizers_are_as_one_after_the_other(
    layout: str, activation: str, reach: float
) -> None:
    x = (4 * layouts()[layout]).requires_grad_()
    has_before, is_signed = activation.startswith("h"), activation == "hswish"
    scale = torch.tensor([reach / 255], requires_grad=True)
    zero = torch.tensor([20.2 if is_signed else 0.0], requires_grad=is_signed)
    after, before, quantized = (scale, zero), None, x
    if has_before:
        before = torch.tensor([0.03], requires_grad=True), torch.tensor([90.4], requires_grad=True)
        quantized = fake_quantize(x, *before, BOUNDS, 0.1)
    chain = fake_quantize(FUNCTIONS[activation](quantized), *after, BOUNDS, 0.1)
    learned = [t for t in (x, *after, *(before or ())) if t.requires_grad]
    ours = fake_quantize_activated(x, activation, after, before, BOUNDS, 0.1)
    check(outcome(ours, *learned), outcome(chain, *learned))


@pytest.mark.parametrize("shape", [(0,), (0, 12, 9, 9)])
@pytest.mark.parametrize("quantize", WAYS)
def test_of_no_elements_the_gradients_are_0(
    quantize: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    learned = torch.empty(shape), torch.tensor([0.013]), torch.tensor([100.3])
    x, scale, zero = (t.requires_grad_() for t in learned)
    quantized, *found = outcome(quantize(x, scale, zero, BOUNDS, 0.1), x, scale, zero)
    assert quantized.shape == found[0].shape == shape
    assert [float(g) for g in found[1:]] == [0, 0]


@pytest.mark.parametrize("shape", [(12, 5, 3, 3), (7, 1, 5, 5), (3, 4), (1, 1)])
def test_rows_are_quantized_as_by_torch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    scale = (0.01 + 0.01 * torch.rand(shape[0])).requires_grad_()
    ours = outcome(fake_quantize_rows(x, scale, (-128, 127), 0.1), x, scale)
    torchs = torch._fake_quantize_learnable_per_channel_affine(
        x, scale, torch.zeros(shape[0]), 0, -128, 127, 0.1
    )
    check(ours, outcome(torchs, x, scale))


def test_the_scales_gradient_is_that_of_double_precision() -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(8, 24, 28, 28), torch.randn(8, 24, 28, 28)
    scale = torch.tensor([0.012], requires_grad=True)
    fake_quantize(x, scale, torch.tensor([100.0]), BOUNDS, 1.0).backward(upstream)
    grid = x.double() / 0.012
    integers = grid.round().clamp(-100, 155)
    exact = torch.where(grid.round() == integers, integers - grid, integers)
    assert scale.grad is not None
    expected = float((upstream.double() * exact).sum())
    assert float(scale.grad) == pytest.approx(expected, rel=1e-3)


def test_what_is_not_a_number_stays_so() -> None:
    x = torch.tensor([1.0, float("nan"), 3.0])
    quantized = fake_quantize(x, torch.ones(1), torch.zeros(1), BOUNDS, 1.0)
    assert quantized.isnan().tolist() == [False, True, False]
