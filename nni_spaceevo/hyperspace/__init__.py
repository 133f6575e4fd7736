"""What can be searched, as values: block types, stages, width windows, hyperspaces, codes."""

from .blocks import BLOCK_TYPES, BlockType, block_type, get_block_type, recipe_of
from .choices import RESOLUTION, SubnetChoices
from .codes import BlockChoice, Chain, SpaceCode, SubnetCode, format_chain, parse_chain
from .hyperspace import BlockOption, ElasticStage, Hyperspace, Stage, load_hyperspace, presets
from .kernels import (
    Kernel,
    PlacedBlock,
    block_kernels,
    chain_kernels,
    mflops,
    mparams,
    output_hw,
    place,
)
from .recipe import (
    BlockConfig,
    ConvStep,
    LinearStep,
    PoolStep,
    Recipe,
    SqueezeExciteStep,
    Step,
    make_divisible,
)

__all__ = [
    "BLOCK_TYPES",
    "RESOLUTION",
    "BlockChoice",
    "BlockConfig",
    "BlockOption",
    "BlockType",
    "Chain",
    "ConvStep",
    "ElasticStage",
    "Hyperspace",
    "Kernel",
    "LinearStep",
    "PlacedBlock",
    "PoolStep",
    "Recipe",
    "SpaceCode",
    "SqueezeExciteStep",
    "Stage",
    "Step",
    "SubnetChoices",
    "SubnetCode",
    "block_kernels",
    "block_type",
    "chain_kernels",
    "format_chain",
    "get_block_type",
    "load_hyperspace",
    "make_divisible",
    "mflops",
    "mparams",
    "output_hw",
    "parse_chain",
    "place",
    "presets",
    "recipe_of",
]
