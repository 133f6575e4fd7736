"""Precision as a value that switches a whole module tree."""

import pytest
import torch
from torch import nn

from nni_spaceevo.errors import TrainingError
from nni_spaceevo.quant import FP32, INT8, ActivationQuantizer, set_precision, until_initialized


def test_int8_and_fp32_switch_every_quantizer_and_name_its_path():
    tree = nn.Sequential(nn.Sequential(ActivationQuantizer(unsigned=False)), nn.ReLU())
    x = torch.randn(1, 8)
    set_precision(tree, INT8)
    assert not torch.equal(tree[0](x), x)
    assert tree[0][0].path == "0.0"
    set_precision(tree, FP32)
    assert torch.equal(tree[0](x), x)


def test_sub_networks_are_run_until_every_quantizer_has_a_range():
    tree = nn.ModuleList(ActivationQuantizer(unsigned=False) for _ in range(3))
    set_precision(tree, INT8)
    left = list(tree)
    for _ in until_initialized(tree, "tree: none"):
        left.pop()(torch.randn(1, 8))
    assert not left
    tree.append(ActivationQuantizer(unsigned=True))
    set_precision(tree, INT8)
    runs = 0
    with pytest.raises(TrainingError, match="tree: none reaches quantizer 3"):
        for _ in until_initialized(tree, "tree: none"):
            runs += 1
    assert runs == 1000
