"""Precision as a value that switches a whole module tree."""

import torch
from torch import nn

from nni_spaceevo.quant import FP32, INT8, ActivationQuantizer, set_precision


def test_int8_and_fp32_switch_every_quantizer_and_name_its_path():
    tree = nn.Sequential(nn.Sequential(ActivationQuantizer(unsigned=False)), nn.ReLU())
    x = torch.randn(1, 8)
    set_precision(tree, INT8)
    assert not torch.equal(tree[0](x), x)
    assert tree[0][0].path == "0.0"
    set_precision(tree, FP32)
    assert torch.equal(tree[0](x), x)
