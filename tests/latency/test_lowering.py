from __future__ import annotations

import pytest

from nni_spaceevo.errors import PredictorError
from nni_spaceevo.hyperspace import Kernel
from nni_spaceevo.latency.lowering import KERNEL_TYPES, RuntimeKernel, lower, runtime_ops


def test_relu_costs_nothing_of_its_own():
    plain = lower(Kernel("conv", 14, 16, 32, 3, 2))
    assert plain == (RuntimeKernel("conv", 14, 16, 32, 3, 2),)
    for activation in ("relu", "relu6"):
        assert lower(Kernel("conv", 14, 16, 32, 3, 2, activation)) == plain


@pytest.mark.parametrize("activation", ["swish", "hswish", "hsigmoid"])
def test_other_activations_are_kernels_at_the_output_size(activation):
    main, after = lower(Kernel("dwconv", 15, 24, 24, 5, 2, activation))
    assert main.type == "dwconv"
    assert after == RuntimeKernel(activation, 8, 24, 24)


def test_pointwise_convolution_is_a_kernel_of_its_own():
    assert lower(Kernel("conv", 7, 8, 16))[0].type == "conv1x1"
    assert lower(Kernel("conv", 7, 8, 16, 3))[0].type == "conv"


def test_squeeze_excite_keeps_its_inner_width():
    assert lower(Kernel("se", 7, 32, 32, squeezed=8)) == (
        RuntimeKernel("se", 7, 32, 32, squeezed=8),
    )


def test_unknown_operators_and_activations_are_refused_by_name():
    with pytest.raises(PredictorError, match=r"'lstm'.*known: conv, dwconv"):
        lower(Kernel("lstm", 7, 8, 8))
    with pytest.raises(PredictorError, match=r"'gelu' of conv.*hswish"):
        lower(Kernel("conv", 7, 8, 8, activation="gelu"))


def test_runtime_ops_count_every_node():
    kernels = [Kernel("conv", 7, 8, 16, activation="swish"), Kernel("add", 7, 16, 16)]
    assert runtime_ops(kernels) == {
        "QLinearConv": 1,
        "QLinearSigmoid": 1,
        "QLinearMul": 1,
        "QLinearAdd": 1,
    }
    nodes = sum(part.nodes for k in kernels for part in lower(k))
    assert nodes == sum(runtime_ops(kernels).values())


def test_keys_tell_all_kernels_apart():
    base = RuntimeKernel("conv", 1, 2, 3, 4, 5, 6)
    variants = [RuntimeKernel(kind, 1, 2, 3, 4, 5, 6) for kind in KERNEL_TYPES]
    assert len({k.key for k in variants}) == len(KERNEL_TYPES)
    assert base.key == "conv/1/2/3/4/5/6"
