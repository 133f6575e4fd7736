"""Hyperspaces: all search spaces that one search can choose from (SpaceEvo, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CodeError, ConfigError
from ..files import Record, digest, read_yaml, to_json
from .blocks import get_block_type
from .codes import DIGITS, NAME, BlockChoice, Chain, SpaceCode, SubnetCode
from .recipe import ACTIVATIONS, BlockConfig

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
HEAD_TYPES = ("pool_conv", "linear")


class BlockOption(Record, frozen=True):
    """A block type with its elastic choices.

    Attributes
    ----------
    type : name of a registered block type
    kernel_sizes : odd kernel sizes to choose from
    expands : expand ratios to choose from; empty for block types without one
    activation : one of `ACTIVATIONS`
    """

    type: str
    kernel_sizes: tuple[int, ...] = (1,)
    expands: tuple[float, ...] = ()
    activation: str = "relu"

    def __post_init__(self) -> None:
        known = get_block_type(self.type)
        if bool(self.expands) != known.expands:
            need = "needs" if known.expands else "takes no"
            raise ConfigError(
                f"block type {self.type!r} {need} expands; given {list(self.expands)}"
            )
        sizes = list(self.kernel_sizes)
        if not sizes or any(k < 1 or k % 2 == 0 for k in sizes):
            raise ConfigError(f"block type {self.type!r}: kernel_sizes must be odd, given {sizes}")
        if "k3" in self.type and min(self.kernel_sizes) < 3:
            raise ConfigError(f"block type {self.type!r}: kernel_sizes must be at least 3")
        for key, values in (("kernel_sizes", sizes), ("expands", self.expands)):
            if len(set(values)) != len(values):
                raise ConfigError(
                    f"block type {self.type!r}: {key} must differ, given {list(values)}"
                )
        if not all(0 < e < math.inf for e in self.expands):
            raise ConfigError(
                f"block type {self.type!r}: expands must be positive, given {list(self.expands)}"
            )
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"block type {self.type!r}: unknown activation {self.activation!r}; "
                f"known: {', '.join(ACTIVATIONS)}"
            )

    @property
    def expand_choices(self) -> tuple[float, ...]:
        """Expand ratios as codes write them: 0.0 alone where there is none."""
        return self.expands or (0.0,)

    def config(self, cin: int, choice: BlockChoice, stride: int) -> BlockConfig:
        """The static block that `choice` makes of this option."""
        return BlockConfig(
            self.type,
            cin,
            choice.width,
            choice.kernel_size,
            choice.expand_or_none,
            stride,
            self.activation,
        )


class Stage(Record, frozen=True):
    """One stage of the hyperspace.

    Attributes
    ----------
    name : unique name
    widths : output channels to choose from, ascending
    depths : numbers of blocks to choose from
    stride : stride of the first block
    window_size : neighbouring widths in one window; None means all of them, one window
    block : the block of a fixed stage; None makes the stage searchable
    """

    name: str
    widths: tuple[int, ...]
    depths: tuple[int, ...] = (1,)
    stride: int = 1
    window_size: int | None = None
    block: BlockOption | None = None

    def __post_init__(self) -> None:
        for key, values in (("widths", self.widths), ("depths", self.depths)):
            if not values or list(values) != sorted(set(values)) or values[0] < 1:
                raise ConfigError(
                    f"stage {self.name!r}: {key} must be ascending and positive, "
                    f"given {list(values)}"
                )
        if self.stride not in (1, 2):
            raise ConfigError(f"stage {self.name!r}: stride must be 1 or 2, given {self.stride}")
        if self.window_size is not None and not 1 <= self.window_size <= len(self.widths):
            raise ConfigError(
                f"stage {self.name!r}: window_size {self.window_size} out of range; "
                f"allowed 1 to {len(self.widths)}, the number of widths"
            )

    @property
    def searchable(self) -> bool:
        """Whether the search chooses its block type and width window."""
        return self.block is None

    @property
    def windows(self) -> tuple[tuple[int, ...], ...]:
        """All width windows."""
        size = self.window_size or len(self.widths)
        return tuple(self.widths[i : i + size] for i in range(len(self.widths) - size + 1))


class ElasticStage(Record, frozen=True):
    """A stage of one space: its block option and the widths of its window."""

    stage: Stage
    option: BlockOption
    widths: tuple[int, ...]

    def smallest(self) -> Chain:
        """The smallest sub-stage."""
        o = self.option
        return (
            BlockChoice(min(o.kernel_sizes), self.widths[0], min(o.expand_choices)),
        ) * self.stage.depths[0]

    def largest(self) -> Chain:
        """The largest sub-stage."""
        o = self.option
        return (
            BlockChoice(max(o.kernel_sizes), self.widths[-1], max(o.expand_choices)),
        ) * self.stage.depths[-1]

    def random(self, rng: np.random.Generator) -> Chain:
        """A sub-stage drawn uniformly: the depth, then every block's choices."""
        return tuple(self._random_block(rng) for _ in range(int(rng.choice(self.stage.depths))))

    def _random_block(self, rng: np.random.Generator) -> BlockChoice:
        o = self.option
        return BlockChoice(
            int(rng.choice(o.kernel_sizes)),
            int(rng.choice(self.widths)),
            float(rng.choice(o.expand_choices)),
        )

    def blocks(self, cin: int, chain: Chain) -> tuple[BlockConfig, ...]:
        """Static blocks of a sub-stage whose input has `cin` channels."""
        configs = []
        for i, choice in enumerate(chain):
            configs.append(self.block(i, cin, choice))
            cin = choice.width
        return tuple(configs)

    def block(self, i: int, cin: int, choice: BlockChoice) -> BlockConfig:
        """The static block number `i`, from 0 on, whose input has `cin` channels."""
        return self.option.config(cin, choice, 1 if i else self.stage.stride)

    def check(self, chain: Chain) -> None:
        """Raise `CodeError` naming stage, given and allowed values unless `chain` fits."""
        name, o = self.stage.name, self.option
        if len(chain) not in self.stage.depths:
            raise CodeError(f"{name}: depth {len(chain)}; allowed {list(self.stage.depths)}")
        for b in chain:
            for what, given, allowed in (
                ("kernel size", b.kernel_size, o.kernel_sizes),
                ("width", b.width, self.widths),
                ("expand ratio", b.expand, o.expand_choices),
            ):
                if given not in allowed:
                    raise CodeError(f"{name} ({o.type}): {what} {given}; allowed {list(allowed)}")


def _fixed(stage: Stage) -> ElasticStage:
    """A fixed stage as an elastic one, with its own block and all of its widths."""
    assert stage.block is not None
    return ElasticStage(stage=stage, option=stage.block, widths=stage.widths)


class Hyperspace(Record, frozen=True, dict=True):
    """All candidate spaces: stages, block types, resolutions.

    Attributes
    ----------
    schema : version of the file format
    name : prefix of the space codes
    block_types : what a searchable stage can be made of
    stages : stem, elastic stages and head, in order
    resolutions : input sizes of subnets, ascending
    distill_resolutions : input sizes at which stages are distilled and kept in the LUT
    in_channels : channels of the images
    """

    schema: int
    name: str
    block_types: tuple[BlockOption, ...]
    stages: tuple[Stage, ...]
    resolutions: tuple[int, ...]
    distill_resolutions: tuple[int, ...]
    in_channels: int = 3

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"hyperspace schema {self.schema}; this version reads {SCHEMA}")
        # A name that could not be read back from a code is refused.
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"hyperspace name {self.name!r}: expected a letter, then letters, digits, _ or ."
            )
        if self.in_channels < 1:
            raise ConfigError(
                f"hyperspace {self.name!r}: in_channels must be positive, given {self.in_channels}"
            )
        for what, names in (
            ("stage name", [s.name for s in self.stages]),
            ("block type", [b.type for b in self.block_types]),
        ):
            repeated = {n for n in names if names.count(n) > 1}
            if repeated:
                raise ConfigError(
                    f"hyperspace {self.name!r}: {what} {sorted(repeated)[0]!r} given twice"
                )
        if not self.searchable or not self.block_types:
            raise ConfigError(
                f"hyperspace {self.name!r}: at least one searchable stage and one block type needed"
            )
        if not self.stages[-1].block or self.stages[-1].block.type != "linear":
            raise ConfigError(f"hyperspace {self.name!r}: the last stage must be a fixed 'linear'")
        if not any(s.block and s.block.type == "pool_conv" for s in self.head):
            raise ConfigError(
                f"hyperspace {self.name!r}: no 'pool_conv' before the last stage, whose 'linear' "
                "takes one pixel; expected one after the last searchable stage"
            )
        self._check_choices()
        for key in ("resolutions", "distill_resolutions"):
            values = getattr(self, key)
            if not values or list(values) != sorted(set(values)) or values[0] < 1:
                raise ConfigError(
                    f"hyperspace {self.name!r}: {key} must be ascending, given {list(values)}"
                )

    def _check_choices(self) -> None:
        """Refuse choices that codes cannot write, and a head that leaves something to choose."""
        for what, count in (
            ("block types", len(self.block_types)),
            *((f"width windows in stage {s.name!r}", len(s.windows)) for s in self.searchable),
        ):
            if count > len(DIGITS):
                raise ConfigError(
                    f"hyperspace {self.name!r}: {count} {what}; allowed 1 to {len(DIGITS)}, "
                    "one digit of a space code"
                )
        fixed = tuple(s.block for s in self.elastic if s.block)
        for option in (*self.block_types, *fixed):
            if option.type in HEAD_TYPES:
                raise ConfigError(
                    f"hyperspace {self.name!r}: block type {option.type!r} belongs in the head, "
                    "after the last searchable stage"
                )
        for stage in self.head:
            assert stage.block is not None
            choices = (stage.block.kernel_sizes, stage.block.expand_choices)
            if any(len(c) > 1 for c in (stage.widths, stage.depths, *choices)):
                raise ConfigError(
                    f"stage {stage.name!r} of the head must have one width, depth, kernel size "
                    "and expand ratio"
                )

    def check_resolutions(self) -> None:
        """Refuse a resolution of subnets that not every stride but the last halves exactly.

        The published 176 and 208 pixels end in half a pixel more than the total stride of 32
        divides. A search of a LUT needs none of this, a supernet does.

        Raises
        ------
        ConfigError
            Names the resolution and what must divide it.
        """
        total = math.prod(stage.stride for stage in self.stages)
        divisor = max(1, total // 2)
        for resolution in self.resolutions:
            if resolution % divisor:
                raise ConfigError(
                    f"hyperspace {self.name!r}: resolution {resolution} does not fit the total "
                    f"stride {total} of its stages; expected a multiple of {divisor}"
                )

    # ---- stages -------------------------------------------------------------------------------

    @cached_property
    def searchable(self) -> tuple[Stage, ...]:
        """Stages whose block type and width window are searched."""
        return tuple(s for s in self.stages if s.searchable)

    @cached_property
    def elastic(self) -> tuple[Stage, ...]:
        """Stages that a subnet code describes: all before the head."""
        return tuple(s for s in self.stages if not self._is_head(s))

    @cached_property
    def head(self) -> tuple[Stage, ...]:
        """The last stages, which have nothing to choose."""
        return tuple(s for s in self.stages if self._is_head(s))

    @cached_property
    def head_stages(self) -> tuple[ElasticStage, ...]:
        """The last stages as elastic ones, whose largest sub-stage is the only one."""
        return tuple(map(_fixed, self.head))

    def _is_head(self, stage: Stage) -> bool:
        last = max(i for i, s in enumerate(self.stages) if s.searchable)
        return self.stages.index(stage) > last

    def stage(self, name: str) -> Stage:
        """A stage by name, or `CodeError` with the known names."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise CodeError(
            f"{self.name}: no stage {name!r}; stages: {', '.join(s.name for s in self.stages)}"
        )

    def option(self, block_type: str) -> BlockOption:
        """A block option by its type, or `CodeError` with the known types."""
        for option in self.block_types:
            if option.type == block_type:
                return option
        known = ", ".join(o.type for o in self.block_types)
        raise CodeError(f"{self.name}: unknown block type {block_type!r}; allowed: {known}")

    def input_widths(self, stage: Stage) -> tuple[int, ...]:
        """All widths that can enter a stage."""
        i = self.stages.index(stage)
        return self.stages[i - 1].widths if i else (self.in_channels,)

    def input_hw(self, stage: Stage, resolution: int) -> int:
        """Height and width of a stage's input for images of `resolution` pixels."""
        for earlier in self.stages[: self.stages.index(stage)]:
            pooled = earlier.block is not None and earlier.block.type == "pool_conv"
            resolution = 1 if pooled else -(-resolution // earlier.stride)
        return resolution

    # ---- spaces -------------------------------------------------------------------------------

    @property
    def num_spaces(self) -> int:
        """Number of candidate spaces."""
        return math.prod(len(self.block_types) * len(s.windows) for s in self.searchable)

    def space(self, code: str | SpaceCode) -> SpaceCode:
        """Read and check a space code; raises `CodeError` naming stage, given and allowed."""
        code = code if isinstance(code, SpaceCode) else SpaceCode.parse(code)
        if code.hyperspace != self.name:
            raise CodeError(
                f"space {code}: belongs to hyperspace {code.hyperspace!r}, expected {self.name!r}"
            )
        if len(code.blocks) != len(self.searchable):
            raise CodeError(
                f"space {code}: {len(code.blocks)} stages; {self.name} has {len(self.searchable)}"
            )
        for stage, block, window in zip(self.searchable, code.blocks, code.windows, strict=True):
            for what, given, count in (
                ("block type", block, len(self.block_types)),
                ("width window", window, len(stage.windows)),
            ):
                if given >= count:
                    raise CodeError(
                        f"space {code}: {stage.name} {what} {given}; allowed 0 to {count - 1}"
                    )
        return code

    def random_space(self, rng: np.random.Generator) -> SpaceCode:
        """A space drawn uniformly."""
        blocks = tuple(int(rng.integers(len(self.block_types))) for _ in self.searchable)
        return SpaceCode(
            self.name, blocks, tuple(int(rng.integers(len(s.windows))) for s in self.searchable)
        )

    def uniform_spaces(self) -> Iterator[SpaceCode]:
        """The manually designed spaces: one block type, one window index, in every stage.

        A stage with fewer windows takes its last one.
        """
        most = max(len(s.windows) for s in self.searchable)
        for block in range(len(self.block_types)):
            for window in range(most):
                windows = tuple(min(window, len(s.windows) - 1) for s in self.searchable)
                yield SpaceCode(self.name, (block,) * len(self.searchable), windows)

    def mutate_block(self, code: SpaceCode, rng: np.random.Generator) -> SpaceCode:
        """Change the block type of one stage (SpaceEvo, section 4.2)."""
        blocks = _change_one(code.blocks, [len(self.block_types)] * len(self.searchable), rng)
        return SpaceCode(self.name, blocks, code.windows)

    def mutate_window(self, code: SpaceCode, rng: np.random.Generator) -> SpaceCode:
        """Change the width window of one stage (SpaceEvo, section 4.2)."""
        windows = _change_one(code.windows, [len(s.windows) for s in self.searchable], rng)
        return SpaceCode(self.name, code.blocks, windows)

    def elastic_stages(self, code: SpaceCode) -> tuple[ElasticStage, ...]:
        """The elastic stages of a space, stem included, head not."""
        chosen = iter(zip(code.blocks, code.windows, strict=True))
        stages = []
        for stage in self.elastic:
            if stage.block is not None:
                stages.append(_fixed(stage))
            else:
                block, window = next(chosen)
                stages.append(
                    ElasticStage(
                        stage=stage, option=self.block_types[block], widths=stage.windows[window]
                    )
                )
        return tuple(stages)

    # ---- subnets ------------------------------------------------------------------------------

    def subnet(self, space: SpaceCode, code: str | SubnetCode) -> SubnetCode:
        """Read and check a subnet code of a space; raises `CodeError`."""
        code = code if isinstance(code, SubnetCode) else SubnetCode.parse(code)
        if len(code.stages) != len(self.elastic):
            raise CodeError(
                f"subnet {code}: {len(code.stages)} stages; {self.name} has {len(self.elastic)}"
            )
        if code.resolution not in self.resolutions:
            raise CodeError(
                f"subnet {code}: resolution {code.resolution}; allowed {list(self.resolutions)}"
            )
        for stage, chain in zip(self.elastic_stages(space), code.stages, strict=True):
            stage.check(chain)
        return code

    def smallest_subnet(self, space: SpaceCode) -> SubnetCode:
        """The smallest subnet of a space."""
        return SubnetCode(
            tuple(s.smallest() for s in self.elastic_stages(space)), self.resolutions[0]
        )

    def largest_subnet(self, space: SpaceCode) -> SubnetCode:
        """The largest subnet of a space."""
        return SubnetCode(
            tuple(s.largest() for s in self.elastic_stages(space)), self.resolutions[-1]
        )

    def random_subnet(self, space: SpaceCode, rng: np.random.Generator) -> SubnetCode:
        """A subnet drawn uniformly, stage by stage."""
        chains = tuple(s.random(rng) for s in self.elastic_stages(space))
        return SubnetCode(chains, int(rng.choice(self.resolutions)))

    def subnet_blocks(
        self, space: SpaceCode, code: SubnetCode
    ) -> tuple[tuple[str, tuple[BlockConfig, ...]], ...]:
        """The static blocks of a subnet by stage, head included, in order."""
        cin, stages = self.in_channels, []
        for elastic, chain in zip(self.elastic_stages(space), code.stages, strict=True):
            stages.append((elastic.stage.name, elastic.blocks(cin, chain)))
            cin = chain[-1].width
        for fixed in self.head_stages:
            stages.append((fixed.stage.name, fixed.blocks(cin, fixed.largest())))
            cin = fixed.widths[-1]
        return tuple(stages)

    def all_blocks(self, space: SpaceCode, code: SubnetCode) -> tuple[BlockConfig, ...]:
        """The static blocks of a subnet, head included, in order."""
        return tuple(b for _, blocks in self.subnet_blocks(space, code) for b in blocks)

    # ---- NNI's view ---------------------------------------------------------------------------

    def search_space(self) -> dict[str, Any]:
        """The hyperspace as an NNI search space: `stage1/block_type`, `stage1/width_window`, …"""
        space: dict[str, Any] = {}
        for stage in self.searchable:
            types = [o.type for o in self.block_types]
            space[f"{stage.name}/block_type"] = {"_type": "choice", "_value": types}
            windows = [list(w) for w in stage.windows]
            space[f"{stage.name}/width_window"] = {"_type": "choice", "_value": windows}
        return space

    def parameters(self, code: SpaceCode) -> dict[str, Any]:
        """A space as readable NNI trial parameters; inverse of `from_parameters`."""
        parameters: dict[str, Any] = {}
        for stage, block, window in zip(self.searchable, code.blocks, code.windows, strict=True):
            parameters[f"{stage.name}/block_type"] = self.block_types[block].type
            parameters[f"{stage.name}/width_window"] = list(stage.windows[window])
        return parameters

    def from_parameters(self, parameters: dict[str, Any]) -> SpaceCode:
        """Read NNI trial parameters; raises `CodeError` naming the wrong one and the allowed."""
        blocks: list[int] = []
        windows: list[int] = []
        types = [o.type for o in self.block_types]
        for stage in self.searchable:
            columns: tuple[tuple[str, list[int], list[Any]], ...] = (
                (f"{stage.name}/block_type", blocks, types),
                (f"{stage.name}/width_window", windows, [list(w) for w in stage.windows]),
            )
            for key, found, allowed in columns:
                if parameters.get(key) not in allowed:
                    raise CodeError(f"{key}: {parameters.get(key)!r}; allowed {allowed}")
                found.append(allowed.index(parameters[key]))
        return SpaceCode(self.name, tuple(blocks), tuple(windows))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything above; files made for a hyperspace carry it."""
        return digest(to_json(self))


def _change_one(
    values: tuple[int, ...], counts: list[int], rng: np.random.Generator
) -> tuple[int, ...]:
    free = [i for i, n in enumerate(counts) if n > 1]
    if not free:
        return values
    i = int(rng.choice(free))
    other = int(rng.integers(counts[i] - 1))
    return (*values[:i], other + (other >= values[i]), *values[i + 1 :])


def presets() -> list[str]:
    """Names of the hyperspaces that come with the package."""
    return sorted(p.stem for p in (Path(__file__).parent / "presets").glob("*.yaml"))


def load_hyperspace(source: str | Path) -> Hyperspace:
    """Load a hyperspace from a YAML file or a preset's name (`onnxw`, `mobilew`).

    Raises
    ------
    ConfigError
        Neither a file nor a preset; or a wrong key or value, with the file's name.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = Path(__file__).parent / "presets" / f"{source}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"hyperspace {str(source)!r}: expected a YAML file or one of {', '.join(presets())}"
        )
    return read_yaml(path, Hyperspace)
