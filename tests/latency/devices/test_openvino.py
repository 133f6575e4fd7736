"""OpenVINO as a device: kernels alone show the operators that they have inside networks."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from nni_spaceevo.errors import DeviceError
from nni_spaceevo.hyperspace import BlockConfig, load_hyperspace, place
from nni_spaceevo.latency.devices import get_device
from nni_spaceevo.latency.graph import subnet_model
from nni_spaceevo.latency.kernel_graph import idle_model
from nni_spaceevo.latency.lowering import ACTIVATED, SUM, Lowering, RuntimeKernel

from .test_onnx_runtime import KERNELS as WITH_ADD
from .test_onnx_runtime import chain

pytest.importorskip("openvino", reason="an optional runtime: pip install 'nni_spaceevo[openvino]'")

from nni_spaceevo.latency.devices.openvino import (
    OpenVinoDevice,
    alone,
    compiled,
    executed,
)

DEVICE = OpenVinoDevice()
ONNXW = load_hyperspace("onnxw")
BLOCKS = [BlockConfig("conv", 3, 16, 3, 2, activation="relu"), BlockConfig("conv", 16, 16, 3)]
# Sums are written by the convolution before.
SUMMING = [
    RuntimeKernel("conv1x1", 14, 24, 16, activation=SUM),
    RuntimeKernel("conv", 14, 16, 24, 3, 2, activation=SUM),
]
# What they read has no zero point; squeeze-and-excite computes what it reads.
NEIGHBOURED = [
    RuntimeKernel("conv", 14, 16, 24, 3, 2, positive=True),
    RuntimeKernel("dwconv", 14, 24, 24, 5, positive=True),
    RuntimeKernel("se", 14, 32, 32, squeezed=8, activation="hswish"),
]
KERNELS = [kernel for kernel in WITH_ADD if kernel.type != "add"] + SUMMING + NEIGHBOURED
# In a chain without branches OpenVINO moves strides to the convolution before; in networks the
# input of a block has two readers, so strides stay where they are.
UNSTRIDED = [replace(kernel, stride=1) for kernel in KERNELS]


@pytest.fixture(scope="module")
def lowering() -> Lowering:
    return DEVICE.lowering()


def computing(operators) -> Counter[str]:
    """Operators by name, without moves and conversions, which come and go with neighbours."""
    return Counter(
        name.partition(":")[0] for name in operators if not name.endswith((":move", ":convert"))
    )


def test_it_is_found_by_name():
    device = get_device("openvino-x86-int8")
    assert (device.name, device.precision) == ("openvino-x86-int8", "int8")
    machine = device.machine()
    assert machine.runtime.startswith("openvino 20")
    assert machine.network_options["INFERENCE_PRECISION_HINT"] == "f32"
    assert machine.network_options["NUM_STREAMS"] == "1"


# ---- what it makes of kernels --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ACTIVATED)
def test_clipping_is_free_and_swish_runs_on_its_own(lowering, kind):
    assert set(lowering.free[kind]) == {"relu", "relu6"}
    assert {"swish", "hswish"} <= set(lowering.own_kernel[kind])


def test_convolutions_are_int8_and_sums_are_written_by_them(lowering):
    for kind in ("conv1x1", "conv", "dwconv"):
        assert lowering.operators[kind] == ("Convolution:int8",)
    assert lowering.operators["add"] == ()
    assert lowering.sums_within == ("conv1x1", "conv")


def test_swish_is_computed_in_float_by_generated_code(lowering):
    for activation in ("swish", "hswish"):
        assert lowering.in_float(activation) == ("Subgraph:float32",)


def test_what_depends_on_the_neighbours_is_told(lowering):
    assert lowering.positive == ("conv", "dwconv")
    assert lowering.within_se == ("swish", "hswish")
    for name in lowering.within_se:
        extra = Counter(lowering.operators[f"se+{name}"]) - Counter(lowering.operators["se"])
        assert extra == Counter(["Subgraph:float32"])


@pytest.mark.parametrize("kind", ["mbv2_res", "resnet", "mbv1_dual"])
def test_the_main_path_writes_the_sum_not_the_shortcut(lowering, kind):
    assert lowering.sums_in_main
    expand = None if kind == "mbv1_dual" else 2
    strided = BlockConfig(kind, 16, 32, 3, stride=2, expand=expand, activation="relu")
    model = subnet_model([BLOCKS[0], strided], 64, np.random.default_rng(0))
    nodes = compiled(model).get_runtime_model().get_ordered_ops()
    names = [str(n.get_rt_info()["originalLayersNames"].astype(str)).split(",") for n in nodes]
    (summing,) = (of for of in names if any(name.startswith("Add_") for name in of))
    (number,) = (int(name[5:]) for name in summing if re.fullmatch(r"Conv_\d+", name))
    # The shortcut is written last.
    convolutions = [n.name for n in model.graph.node if n.op_type == "Conv"]
    assert f"Conv_{number}" == convolutions[-2]


def test_before_squeeze_excite_hswish_is_written_twice():
    """As uint8 for the pool and in float for the product, which alone it is not."""

    def written(kernel: RuntimeKernel) -> int:
        nodes = compiled(alone(kernel, 1)).get_runtime_model().get_ordered_ops()
        (node,) = (
            n
            for n in nodes
            if "HardSwish" in str(n.get_rt_info()["originalLayersNames"].astype(str))
        )
        return len(node.outputs())

    assert written(RuntimeKernel("hswish", 14, 32, 32)) == 1
    assert written(RuntimeKernel("se", 14, 32, 32, squeezed=8, activation="hswish")) == 2


@pytest.mark.parametrize("option", ONNXW.block_types, ids=lambda o: o.type)
def test_networks_consist_of_kernels(lowering, option):
    blocks = chain(option, 64)
    model = compiled(subnet_model(blocks, 32, np.random.default_rng(0)))
    kernels = [part for block in place(blocks, 32) for part in lowering.lower_block(block)]
    lowered = [name for kernel in kernels for name in lowering.operators[kernel.unit]]
    assert computing(executed(model)) == computing(lowered)


# ---- kernels alone -------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", UNSTRIDED, ids=lambda k: k.unit)
@pytest.mark.parametrize("copies", [1, 3])
def test_alone_it_has_the_operators_that_it_has_in_a_network(kernel, copies):
    found = computing(executed(compiled(alone(kernel, copies))))
    around = DEVICE.contained(kernel)
    if around is not None:
        found.subtract(computing(executed(compiled(alone(around, copies)))))
    # What sums is the same operator as what does not.
    summing = kernel.activation == SUM
    expected = computing(
        DEVICE.operators(replace(kernel, activation="none") if summing else kernel)
    )
    assert +found == Counter({name: copies * count for name, count in expected.items()})
    assert not -found


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.unit)
def test_no_data_is_moved_that_is_not_moved_in_a_network(kernel):
    """Views are listed as Reorder; a Transpose would really run."""
    kinds = Counter(name.partition(":")[0] for name in executed(compiled(alone(kernel, 2))))
    assert kinds["Transpose"] == 0


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.unit)
def test_kernels_and_what_is_around_them_run(kernel):
    assert DEVICE.kernel(kernel, 2).least_us(1, 2) > 0
    around = DEVICE.contained(kernel)
    assert around is None or DEVICE.kernel(around, 2).least_us(1, 2) > 0


def test_an_activation_of_its_own_is_not_computed_within():
    plain, active = (RuntimeKernel("conv", 7, 16, 16, 3, activation=a) for a in ("none", "swish"))
    extra = Counter(DEVICE.operators(active)) - Counter(DEVICE.operators(plain))
    assert extra == Counter(["Subgraph:float32"])


# ---- running -------------------------------------------------------------------------------------


def test_networks_and_idle_models_run():
    idle_us = DEVICE.idle(3).least_us(5, 20)
    assert 0 < idle_us < DEVICE.network(BLOCKS, 64).least_us(5, 20)


def test_a_model_that_the_runtime_refuses_is_said():
    model = idle_model(1)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(DeviceError, match=r"subnet: OpenVINO cannot read it .*NoSuchOperator"):
        compiled(model)
