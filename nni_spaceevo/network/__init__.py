"""Torch modules: elastic and static layers, blocks, stages and networks."""

from .blocks import ElasticBlock, StageNet, StaticBlock, StaticNetwork, recalibrate_batch_norm
from .layers import QuantizedActivation

__all__ = [
    "ElasticBlock",
    "QuantizedActivation",
    "StageNet",
    "StaticBlock",
    "StaticNetwork",
    "recalibrate_batch_norm",
]
