"""Teachers that have been trained already: a network, read where its stages end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from ...errors import ConfigError
from ...files import digest
from ...hyperspace import Hyperspace
from ..config import PretrainedConfig
from ..data import Images, to_channels
from .graph import Feature, TracedModel, divide, without_head
from .models import Model, build_model, load_weights
from .protocol import FeatureTeacher, borders

# Images that pass the teacher at a time, so that memory stays small however many are asked for.
_BATCH = 64


class PretrainedTeacher(nn.Module):
    """A network's features where its stages end.

    Parameters
    ----------
    traced : the network
    features : where to read it, before the first searchable stage and after each one
    images : adapts images of the dataset to what the network was trained on
    source : model and weights, for people
    """

    def __init__(
        self, traced: TracedModel, features: list[Feature], images: ImageAdapter, source: str
    ) -> None:
        super().__init__()
        self.nodes = tuple(f.node for f in features)
        self.widths = tuple(f.width for f in features)
        self.images, self.source = images, source
        self.trunk = traced.part(traced.model, self.nodes)
        self._traced = traced
        self._fingerprint = ""
        self._parts: dict[int, fx.GraphModule] = {}
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """All features of images (n, channels, h, w) as the dataset gives them."""
        return self.trunk(self.images(images))

    @torch.no_grad()
    def stage_features(self, images: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """Features before and after searchable stage number `stage`, both (n, channels, h, w)."""
        part = self._part(stage)
        pairs = [part(self.images(some)) for some in images.split(_BATCH)]
        before, after = (torch.cat(features) for features in zip(*pairs, strict=True))
        return before, after

    def _part(self, stage: int) -> fx.GraphModule:
        # Not a submodule: it shares the trunk's, which would be saved and hashed twice.
        if stage not in self._parts:
            nodes = self.nodes[stage : stage + 2]
            self._parts[stage] = self._traced.part(self.trunk, nodes)
        return self._parts[stage]

    @property
    def fingerprint(self) -> str:
        """Hash of weights, nodes and what is done to images."""
        if not self._fingerprint:
            self._fingerprint = self._hash()
        return self._fingerprint

    def forget(self) -> None:
        """Drop what was derived from the network, for its layers have changed."""
        self._fingerprint = ""
        self._parts.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PretrainedTeacher:
        # As it moves to another device; the parts have buffers of their own.
        self._parts.clear()
        return super()._apply(fn, recurse)

    def _hash(self) -> str:
        state = self.trunk.state_dict()
        tensors = (v.cpu().numpy().tobytes() for v in state.values())
        return digest(str(self.nodes), str(self.images), *state, *tensors)


class ImageAdapter(nn.Module):
    """Images as a dataset gives them, as a network was trained on them.

    Parameters
    ----------
    channels : that the network takes; grey images are repeated
    mean, std : what its images of 0 to 1 were normalized with
    data : what normalizes its images otherwise
    """

    def __init__(
        self, channels: int, mean: tuple[float, ...], std: tuple[float, ...], data: Images
    ) -> None:
        super().__init__()
        for key, values in {"mean": mean, "std": std}.items():
            if len(values) not in (1, channels):
                raise ConfigError(
                    f"teacher: {key} has {len(values)} values; expected {channels}, one a channel"
                )
        self.channels, self.mean, self.std = channels, mean, std
        theirs, ours, their_std, our_std = (
            torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
            for values in (mean, data.mean, std, data.std)
        )
        self.register_buffer("factor", (our_std / their_std).float(), persistent=False)
        self.register_buffer("offset", ((ours - theirs) / their_std).float(), persistent=False)
        to_channels(torch.empty(1, data.channels, 1, 1), channels)

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, the dataset's channels, h, w) to (n, channels, h, w)."""
        return to_channels(images, self.channels) * self.factor + self.offset

    def extra_repr(self) -> str:
        """What decides the result."""
        return (
            f"{self.channels}, {self.factor.flatten().tolist()}, {self.offset.flatten().tolist()}"
        )

    factor: Tensor
    offset: Tensor


def pretrained_teacher(
    config: PretrainedConfig, hyperspace: Hyperspace, data: Images, folder: Path, seed: int
) -> FeatureTeacher:
    """The teacher that a job names, not quantized yet.

    Parameters
    ----------
    config : which
    hyperspace : gives the strides at which stages end
    data : whose images it will see
    folder : of the job file, where relative paths begin
    seed : of random weights

    Raises
    ------
    ConfigError
        The model is not known, has too few stages, or its settings do not fit it.
    CheckpointError
        The weights are damaged or of another model.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = build_model(config, folder)
    if not isinstance(model, Model):
        return _own_teacher(model, config)
    total = list(borders(hyperspace).values())
    # Small enough to be quick; large enough to tell the last stage from a global pool after it.
    resolution = 4 * max(total)
    traced = TracedModel(model.network, model.channels, resolution, f"teacher {config.model}")
    features = _features(traced, hyperspace, config.stages)
    needed = traced.part(traced.model, [f.node for f in features]).state_dict()
    source = load_weights(model, needed, config.weights, folder)
    mean, std = config.mean or model.mean, config.std or model.std
    adapter = ImageAdapter(model.channels, mean, std, data)
    return PretrainedTeacher(traced, features, adapter, f"{config.model}, {source}")


def _own_teacher(made: object, config: PretrainedConfig) -> FeatureTeacher:
    if not isinstance(made, FeatureTeacher):
        raise ConfigError(
            f"teacher {config.model!r}: gave a {type(made).__name__}; expected a torch module, or "
            "an object with widths, fingerprint, eval and stage_features"
        )
    if config != PretrainedConfig(model=config.model):
        raise ConfigError(
            f"teacher {config.model!r}: has stage_features of its own; expected no key but model"
        )
    return made


def _features(
    traced: TracedModel, hyperspace: Hyperspace, given: Mapping[str, str] | None
) -> list[Feature]:
    """Where to read the teacher: as given, or found by the hyperspace's strides."""
    wanted = borders(hyperspace)
    if given is None:
        return _found(traced, wanted)
    if set(given) != set(wanted):
        raise ConfigError(
            f"{traced.what}: stages has {', '.join(given)}; expected {', '.join(wanted)}"
        )
    features = []
    for stage, stride in wanted.items():
        feature, size = traced.feature(given[stage]), -(-traced.resolution // stride)
        if feature.size != size:
            raise ConfigError(
                f"{traced.what}: {stage} ends at stride {stride}, which is {size} px of "
                f"{traced.resolution}; node {feature.node!r} has {feature.size} px"
            )
        features.append(feature)
    return features


def _found(traced: TracedModel, wanted: Mapping[str, int]) -> list[Feature]:
    ends = traced.features()
    found: list[Feature] = []
    for stride, group in groupby(wanted, key=wanted.__getitem__):
        stages = list(group)
        here = [f for f in ends if f.size == -(-traced.resolution // stride)]
        if stride == max(wanted.values()):
            here = without_head(here)
        if len(here) < len(stages):
            raise ConfigError(
                f"{traced.what}: too few stages: {', '.join(stages)} end at stride {stride}, where "
                f"it has {len(here)} block ends; it has {_strides(ends, traced.resolution)}; "
                "choose another teacher, or name a node for each stage in `stages`"
            )
        found += divide(here, len(stages))
    return found


def _strides(ends: list[Feature], resolution: int) -> str:
    """How many blocks end at which stride, but for those after the classifier's pool."""
    sizes = [f.size for f in ends[1:] if f.size > 1]
    counts = [(size, len(list(same))) for size, same in groupby(sizes)]
    return ", ".join(f"{n} at stride {resolution // size}" for size, n in counts) or "none"
