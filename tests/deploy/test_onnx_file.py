"""An exported subnet is the trained one: in floats, in integers, and in what runs in integers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from supernet.tiny import OPTIONS, tiny_hyperspace, uniform, used_supernet

from nni_spaceevo.deploy.onnx_file import onnx_model, save_onnx
from nni_spaceevo.errors import QuantizationError
from nni_spaceevo.hyperspace import SubnetCode
from nni_spaceevo.latency.devices.onnx_runtime import opened, optimized
from nni_spaceevo.latency.graph import Precision
from nni_spaceevo.network.layers import ConvLayer
from nni_spaceevo.quant import FP32, INT8, ActivationQuantizer, set_precision
from nni_spaceevo.supernet.model import Subnet, Supernet
from nni_spaceevo.supernet.recalibration import recalibrate

each_option = pytest.mark.parametrize("name", OPTIONS)
RNG = torch.Generator().manual_seed(7)


def images(code: SubnetCode, count: int) -> torch.Tensor:
    size = code.resolution
    return torch.randn(count, 1, size, size, generator=RNG)


def trained(supernet: Supernet, code: SubnetCode) -> Subnet:
    """A subnet with statistics of its own, some of whose channels BatchNorm turns or drops."""
    for module in supernet.modules():
        if isinstance(module, ConvLayer) and hasattr(module, "norm"):
            weight = module.norm.weight.data
            weight[1::3] *= -0.7
            weight[2::7] = 0.0
    subnet = supernet.extract(code)
    recalibrate(subnet, [images(code, 32)])
    return subnet


def exported(subnet: Subnet, supernet: Supernet, precision: Precision) -> onnx.ModelProto:
    blocks = supernet.hyperspace.subnet_blocks(supernet.space, subnet.code)
    return onnx_model(subnet, blocks, subnet.code.resolution, precision, dynamic_batch=True)


def logits(model: onnx.ModelProto, x: torch.Tensor) -> torch.Tensor:
    (found,) = opened(model).run(["logits"], {"input": x.numpy()})
    return torch.from_numpy(found)


@each_option
def test_onnx_runtime_computes_what_torch_computes(name: str) -> None:
    hyperspace = tiny_hyperspace(OPTIONS[name])
    supernet = used_supernet(hyperspace, uniform(hyperspace), INT8)
    rng = np.random.default_rng(0)
    for code in (supernet.largest, hyperspace.random_subnet(supernet.space, rng)):
        subnet = trained(supernet, code)
        x = images(code, 64)
        with torch.no_grad():
            expected = subnet(x)
        found = logits(exported(subnet, supernet, "int8"), x)
        # torch adds in float32: once in 10,000 times an activation that lies between two integers
        # becomes the other one, and a network of random weights makes much of that.
        assert (found - expected).abs().mean() < 0.05 * expected.std()
        assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.95
        set_precision(subnet, FP32)
        with torch.no_grad():
            expected = subnet(x)
        found = logits(exported(subnet, supernet, "float32"), x)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@each_option
def test_convolutions_products_and_sums_run_in_integers(name: str) -> None:
    hyperspace = tiny_hyperspace(OPTIONS[name])
    supernet = used_supernet(hyperspace, uniform(hyperspace), INT8)
    model = exported(supernet.extract(supernet.largest), supernet, "int8")
    written = Counter(node.op_type for node in model.graph.node)
    found = Counter(node.op_type for node in optimized(model).graph.node)
    assert found["QLinearConv"] == written["Conv"]
    assert found["QGemm"] == written["Gemm"] == 1
    assert found["QLinearAdd"] == written["Add"]
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "Add"} & found.keys()


@each_option
def test_so_they_do_whatever_ranges_were_learned(name: str) -> None:
    hyperspace = tiny_hyperspace(OPTIONS[name])
    supernet = used_supernet(hyperspace, uniform(hyperspace), INT8)
    for module in supernet.modules():
        if isinstance(module, ActivationQuantizer):
            # Beyond the 6 of a ReLU6, which ONNX Runtime then would not fold into its convolution.
            module.log_scale.data += 4
    model = exported(supernet.extract(supernet.largest), supernet, "int8")
    found = Counter(node.op_type for node in optimized(model).graph.node)
    assert not {"Conv", "FusedConv", "Clip", "Gemm", "FusedGemm", "Add"} & found.keys()


def test_one_image_at_a_time_unless_any_number_is_asked_for(tmp_path: Path) -> None:
    hyperspace = tiny_hyperspace()
    supernet = used_supernet(hyperspace, uniform(hyperspace), INT8)
    subnet = supernet.extract(supernet.smallest)
    blocks = hyperspace.subnet_blocks(supernet.space, subnet.code)
    model = onnx_model(subnet, blocks, 8, about={"space": str(supernet.space)})
    save_onnx(model, tmp_path / "subnet.onnx")
    read = onnx.load(tmp_path / "subnet.onnx")
    shapes = [
        [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in (*read.graph.input, *read.graph.output)
    ]
    assert shapes == [[1, 1, 8, 8], [1, 4]]
    assert [(p.key, p.value) for p in read.metadata_props] == [("space", "tiny-00-00")]


def test_weights_that_were_never_quantized_are_refused_by_name() -> None:
    hyperspace = tiny_hyperspace()
    supernet = used_supernet(hyperspace, uniform(hyperspace), FP32)
    with pytest.raises(QuantizationError, match="quantizer image has no range; expected weights"):
        exported(supernet.extract(supernet.largest), supernet, "int8")
