"""One recipe, three readings: elastic modules equal static ones, and ONNX graphs equal kernels."""

import io

import numpy as np
import onnx
import pytest
import torch

from nni_spaceevo.errors import CodeError
from nni_spaceevo.hyperspace import (
    BlockConfig,
    ElasticStage,
    block_kernels,
    chain_kernels,
    load_hyperspace,
    mparams,
)
from nni_spaceevo.network import StageNet, StaticBlock, StaticNetwork, recalibrate_batch_norm
from nni_spaceevo.quant import FP32, INT8, set_precision, uninitialized

PRESETS = [(p, o.type) for p in ("onnxw", "mobilew") for o in load_hyperspace(p).block_types]
OTHERS = [("onnxw", "stage0"), ("mobilew", "stage0")]


def elastic_stage(preset, block_type, stage="stage1"):
    hyperspace = load_hyperspace(preset)
    where = hyperspace.stage(stage)
    option = where.block or hyperspace.option(block_type)
    elastic = ElasticStage(stage=where, option=option, widths=where.widths)
    return elastic, hyperspace.input_widths(where)


def trained(preset, block_type, precision, stage="stage1", seed=0, per_channel=True):
    """A stage whose statistics and ranges come from a few random sub-stages."""
    torch.manual_seed(seed)
    elastic, cins = elastic_stage(preset, block_type, stage)
    net = StageNet(elastic, cins, per_channel=per_channel)
    set_precision(net, precision)
    rng = np.random.default_rng(seed)
    for _ in range(30):
        net(torch.randn(4, int(rng.choice(cins)), 12, 12), elastic.random(rng))
    return net.eval(), elastic, cins, rng


@pytest.mark.parametrize("precision", [FP32, INT8], ids=lambda p: p.name)
@pytest.mark.parametrize(
    ("preset", "block_type", "stage"),
    [(p, b, "stage1") for p, b in PRESETS] + [(p, None, s) for p, s in OTHERS],
    ids=lambda v: str(v),
)
def test_elastic_output_equals_the_extracted_static_output(preset, block_type, stage, precision):
    net, elastic, cins, rng = trained(preset, block_type, precision, stage)
    for _ in range(8):
        cin, chain = int(rng.choice(cins)), elastic.random(rng)
        x = torch.randn(3, cin, 11, 11)
        static = net.extract(cin, chain)
        assert torch.equal(static(x), net(x, chain))


def test_per_tensor_weight_scales_extract_as_well():
    net, elastic, cins, rng = trained("onnxw", "resnet_se", INT8, per_channel=False)
    cin, chain = int(cins[0]), elastic.random(rng)
    x = torch.randn(2, cin, 8, 8)
    assert torch.equal(net.extract(cin, chain)(x), net(x, chain))


@pytest.mark.parametrize(("preset", "block_type"), PRESETS)
def test_random_substages_reach_every_quantizer(preset, block_type):
    net, *_ = trained(preset, block_type, INT8)
    assert uninitialized(net) == []


def test_an_extracted_stage_owns_its_parameters():
    net, elastic, cins, _ = trained("onnxw", "mbv2_res", FP32)
    chain, x = elastic.smallest(), torch.randn(1, cins[0], 8, 8)
    static = net.extract(cins[0], chain)
    before = net(x, chain)
    with torch.no_grad():
        for parameter in static.parameters():
            parameter.zero_()
    assert torch.equal(net(x, chain), before)


@pytest.mark.parametrize(("preset", "block_type"), PRESETS)
@pytest.mark.parametrize("precision", [FP32, INT8], ids=lambda p: p.name)
def test_gradients_reach_every_active_parameter(preset, block_type, precision):
    elastic, cins = elastic_stage(preset, block_type)
    net = StageNet(elastic, cins)
    set_precision(net, precision)
    static = net.extract(cins[-1], elastic.largest()).train()
    static(torch.randn(4, cins[-1], 8, 8)).square().mean().backward()
    quiet = [
        name
        for name, p in static.named_parameters()
        if p.grad is None
        and (precision is INT8 or "quantizer" not in name)
        and not (precision is FP32 and name.endswith(("log_scale", "zero_point")))
    ]
    assert quiet == []


def onnx_convolutions(module, x):
    buffer = io.BytesIO()
    torch.onnx.export(module, (x,), buffer, opset_version=17, dynamo=False)
    graph = onnx.load_from_string(buffer.getvalue()).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "Conv":
            cout, cin, kernel, _ = shapes[node.input[1]]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            depthwise = attributes["group"] > 1
            found.append(
                (cin * attributes["group"], cout, kernel, attributes["strides"][0], depthwise)
            )
        if node.op_type == "Gemm":
            cout, cin = shapes[node.input[1]]
            found.append((cin, cout, 1, 1, False))
    return sorted(found)


def kernel_convolutions(kernels):
    convolutions = [c for k in kernels for c in k.convolutions()]
    linear = [(k.cin, k.cout, 1, 1, False) for k in kernels if k.op == "linear"]
    return sorted(
        [(c.cin, c.cout, c.kernel_size, c.stride, c.op == "dwconv") for c in convolutions] + linear
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("preset", "block_type"), PRESETS)
def test_a_recipes_kernels_are_the_exported_graphs_convolutions(preset, block_type, stride):
    option = load_hyperspace(preset).option(block_type)
    expand = max(option.expand_choices) or None
    config = BlockConfig(block_type, 24, 32, 5, expand, stride, option.activation)
    block = StaticBlock(config).eval()
    found = onnx_convolutions(block, torch.randn(1, 24, 16, 16))
    assert found == kernel_convolutions(block_kernels(config, 16))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("preset", ["onnxw", "mobilew"])
def test_a_whole_networks_kernels_and_parameters_are_the_modules(preset):
    hyperspace = load_hyperspace(preset)
    rng = np.random.default_rng(3)
    space = hyperspace.random_space(rng)
    subnet = hyperspace.random_subnet(space, rng)
    network = StaticNetwork(hyperspace, space, subnet).eval()
    blocks = [b for _, stage in hyperspace.subnet_blocks(space, subnet) for b in stage]
    kernels = chain_kernels(blocks, subnet.resolution)
    x = torch.randn(1, 3, subnet.resolution, subnet.resolution)
    assert network(x).shape == (1, 1000)
    assert onnx_convolutions(network, x) == kernel_convolutions(kernels)
    learned = [
        p.numel()
        for name, p in network.named_parameters()
        if not name.endswith(("log_scale", "zero_point"))
    ]
    assert sum(learned) / 1e6 == pytest.approx(mparams(kernels), abs=1e-9)


def test_a_static_block_refuses_another_configuration():
    config = BlockConfig("mbv2_res", 16, 16, 3, 4.0)
    with pytest.raises(CodeError, match="cannot be"):
        StaticBlock(config)(torch.randn(1, 16, 4, 4), BlockConfig("mbv2_res", 16, 16, 5, 4.0))


def test_recalibration_sets_the_statistics_of_one_batch_and_keeps_the_momentum():
    net, elastic, cins, _ = trained("onnxw", "resnet", FP32)
    norm = net.blocks[0].layers["reduce"].norm
    momentum, x = norm.momentum, torch.randn(16, cins[0], 8, 8) * 5 + 2
    chain = elastic.smallest()
    recalibrate_batch_norm(net, x, chain)
    first = norm.running_mean.clone()
    recalibrate_batch_norm(net, x, chain)
    assert torch.equal(norm.running_mean, first)
    assert norm.momentum == momentum
    assert not net.training
