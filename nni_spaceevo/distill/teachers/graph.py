"""Where the stages of any network end, read from its graph.

A teacher's features are wanted where a whole block has ended, not inside one. Two things are asked
of such a place. Everything later sees this tensor alone, so that no residual add reaches across it.
And it ends an outermost module that changes the feature size at most once, or one of the blocks
within, which convolve more than once or are as wide and large as that end. So neither the expanded
features of an inverted residual nor the layers of a bottleneck are taken, whatever a network's
author has called them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import ConfigError, first_line


@dataclass(frozen=True)
class Feature:
    """A place in the graph at which a block ends.

    Attributes
    ----------
    node : its name, as torchvision's `get_graph_node_names` writes it: `features.2.1.add`
    width, size : channels, and height at the resolution that was tried
    kernels : kernel sizes of the block's convolutions
    """

    node: str
    width: int
    size: int
    kernels: tuple[int, ...] = ()


class TracedModel:
    """A network as a graph, with the shape of everything in it.

    Parameters
    ----------
    model : any module that maps images (n, channels, h, w) to something
    channels : of its images
    resolution : that is tried
    what : how to call the model in errors

    Raises
    ------
    ConfigError
        It cannot be traced, or does not run on such images.
    """

    def __init__(self, model: nn.Module, channels: int, resolution: int, what: str) -> None:
        self.model, self.resolution, self.what = model.eval(), resolution, what
        self.graph, self.names = _traced(model, what)
        self.nodes = {name: node for node, name in self.names.items()}
        shapes = _Shapes(fx.GraphModule(model, self.graph))
        try:
            with torch.no_grad():
                shapes.run(torch.zeros(1, channels, resolution, resolution))
        except Exception as error:  # whatever a user's model raises
            raise ConfigError(
                f"{what}: does not run on images of {channels} x {resolution} x {resolution} "
                f"({first_line(error)})"
            ) from error
        self.shapes, self._data = shapes.found, shapes.data

    def feature(self, name: str) -> Feature:
        """The feature of a node, or of the last node within a module, by name.

        Raises
        ------
        ConfigError
            There is no such node, or it is not a square feature map; names similar ones.
        """
        within = [n for n in self.nodes if n == name or n.startswith(f"{name}.")]
        if not within:
            from difflib import get_close_matches

            known = [f.node for f in self.features()]
            near = get_close_matches(name, self.nodes, 3, 0.5) or known
            raise ConfigError(f"{self.what}: no node {name!r}; there are {', '.join(near)}, …")
        shape = self.shapes.get(self.nodes[within[-1]], ())
        if len(shape) != 4 or shape[2] != shape[3]:
            raise ConfigError(
                f"{self.what}: node {name!r} gives {list(shape) or 'no tensor'}; "
                "expected features (n, channels, h, h)"
            )
        return Feature(within[-1], shape[1], shape[2])

    def features(self) -> list[Feature]:
        """The ends of all blocks, in order, the image first."""
        waists = self._waists()
        image, *rest = (
            Feature(self.names[n], self.shapes[n][1], self.shapes[n][2]) for n in waists
        )
        found = [image]
        for _, group in groupby(rest, _groups([image, *rest]).__getitem__):
            *inner, end = group
            inner = [f for f in inner if self._ends_block(f, end)]
            for feature in (*inner, end):
                if self._only_follows(feature, found[-1]):
                    found.pop()
                found.append(feature)
        return [image, *(self._with_kernels(a, b) for a, b in pairwise(found))]

    def _waists(self) -> list[fx.Node]:
        """Nodes of feature maps across which no later node looks, the image first."""
        position = {node: i for i, node in enumerate(self.graph.nodes)}
        waists, furthest = [], 0
        for node in self.graph.nodes:
            if node not in self._data:
                continue
            shape = self.shapes.get(node, ())
            if furthest <= position[node] and len(shape) == 4 and shape[2] == shape[3]:
                waists.append(node)
            users = (position[user] for user in node.users if user in self._data)
            furthest = max(furthest, *users, 0)
        return waists

    def _ends_block(self, feature: Feature, end: Feature) -> bool:
        """Whether a block ends at a feature within a group of blocks that ends at `end`."""
        following = self.names.get(self.nodes[feature.node].next, "")
        modules = _paths(feature.node)[:-1]
        ended = [m for m in modules if not following.startswith(f"{m}.")]
        same = bool(ended) and _shape(feature) == _shape(end)
        return same or any(map(self._is_block, ended))

    def _is_block(self, path: str) -> bool:
        """Whether a module and all beside it that convolve do so more than once.

        The parts of a block are, one by one, a convolution with its norm and activation.
        """
        beside = self.model.get_submodule(path.rpartition(".")[0]).children()
        counts = [_convolutions(m) for m in (self.model.get_submodule(path), *beside)]
        return counts[0] > 1 and 1 not in counts

    def _only_follows(self, feature: Feature, before: Feature) -> bool:
        """Whether a feature is the one before, after a norm or an activation of its own."""
        node = self.nodes[feature.node]
        alone = node.prev is self.nodes[before.node] and node.op != "placeholder"
        return alone and _shape(feature) == _shape(before) and not self._kernels([node])

    def _kernels(self, nodes: Iterable[fx.Node]) -> tuple[int, ...]:
        called = [self.model.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"]
        return tuple(max(m.kernel_size) for m in called if isinstance(m, nn.Conv2d))

    def _with_kernels(self, before: Feature, feature: Feature) -> Feature:
        nodes = list(self.graph.nodes)
        ends = (nodes.index(self.nodes[f.node]) + 1 for f in (before, feature))
        return Feature(
            feature.node, feature.width, feature.size, self._kernels(nodes[slice(*ends)])
        )

    def part(self, root: nn.Module, names: Sequence[str]) -> fx.GraphModule:
        """The least part of the network that gives the features of some nodes, as a tuple.

        Its modules are those of `root`, the network or a part of it, not copies. Nothing in it
        changes a tensor in place, for the tensor might be a feature.
        """
        wanted = [self.nodes[name] for name in names]
        for module in root.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
        return fx.GraphModule(root, _subgraph(self.graph, wanted))


def divide(features: list[Feature], count: int) -> list[Feature]:
    """The ends of `count` successive stages, as a network's own widths suggest them.

    Parameters
    ----------
    features : block ends of one size, at least `count`
    count : number of stages

    Returns
    -------
    the last of each stage: where the network has more widths than stages, the neighbours with the
    fewest blocks are one stage; where it has fewer, the longest is divided in the middle
    """
    runs = [list(run) for _, run in groupby(features, key=_shape)]
    while len(runs) > count:
        i = min(range(len(runs) - 1), key=lambda i: len(runs[i]) + len(runs[i + 1]))
        runs[i : i + 2] = [runs[i] + runs[i + 1]]
    while len(runs) < count:
        i = max(range(len(runs)), key=lambda i: len(runs[i]))
        middle = (len(runs[i]) + 1) // 2
        runs[i : i + 1] = [runs[i][:middle], runs[i][middle:]]
    return [run[-1] for run in runs]


def without_head(features: list[Feature]) -> list[Feature]:
    """The features up to the 1x1 convolutions that widen the last ones for the classifier."""
    while len(features) > 1 and set(features[-1].kernels) == {1}:
        features = features[:-1]
    return features


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in module.modules())


def _shape(feature: Feature) -> tuple[int, int]:
    return feature.width, feature.size


def _groups(features: list[Feature]) -> dict[Feature, str]:
    """The outermost module, or else node, of each feature that changes the size at most once."""
    sizes: dict[str, set[int]] = {}
    for before, feature in pairwise(features):
        for path in _paths(feature.node):
            sizes.setdefault(path, set()).update((before.size, feature.size))
    return {f: next(p for p in _paths(f.node) if len(sizes[p]) <= 2) for f in features[1:]}


def _paths(name: str) -> list[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _traced(model: nn.Module, what: str) -> tuple[fx.Graph, dict[fx.Node, str]]:
    import torchvision.ops
    from torchvision.models.feature_extraction import NodePathTracer

    leaves = [nn.Conv2d, nn.Linear, nn.BatchNorm2d, *_timm_leaves("modules")]
    functions = _timm_leaves("functions")
    tracer = NodePathTracer(
        leaf_modules=leaves,
        autowrap_modules=(math, torchvision.ops),
        autowrap_functions=tuple(functions),
    )
    try:
        graph = tracer.trace(model)
    except Exception as error:  # whatever a user's model raises
        raise ConfigError(
            f"{what}: cannot be traced by torch.fx ({first_line(error)}); expected a network "
            "without branches on its input, or a class with widths and stage_features"
        ) from error
    return graph, dict(tracer.node_to_qualname)


def _timm_leaves(kind: str) -> list[Any]:
    """What timm asks not to be traced, if timm is in use."""
    import sys

    if "timm" not in sys.modules:
        return []
    from timm import layers

    return list(getattr(layers, f"get_notrace_{kind}")())


class _Shapes(fx.Interpreter):
    """Runs a graph and keeps the shapes of its tensors."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, tuple[int, ...]] = {}
        self.data: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; parameters, sizes and assertions carry no data."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = tuple(result.shape)
        several = isinstance(result, (tuple, list)) and any(isinstance(r, Tensor) for r in result)
        if n.op not in ("get_attr", "output") and (several or isinstance(result, Tensor)):
            self.data.add(n)
        return result


def _subgraph(graph: fx.Graph, wanted: list[fx.Node]) -> fx.Graph:
    needed: set[fx.Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack += node.all_input_nodes
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in needed or node.op == "placeholder":
            copy = part.node_copy(node, copies.__getitem__)
            if copy.kwargs.get("inplace"):
                copy.kwargs = {**copy.kwargs, "inplace": False}
            copies[node] = copy
    part.output(tuple(copies[node] for node in wanted))
    return part
