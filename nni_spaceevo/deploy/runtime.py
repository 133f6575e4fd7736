"""What a runtime makes of an exported subnet: what stays float, and how it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from ..files import Record
from ..latency.devices.onnx_runtime import optimized
from .sessions import open_session

_MOVES = ("Transpose", "Flatten", "Reshape")
_CONVERTS = ("QuantizeLinear", "DequantizeLinear")
_INTEGER = ("QLinear", "QGemm")
_REASONS = {
    "HardSwish": "ONNX Runtime has no INT8 kernel of it",
    "HardSigmoid": "ONNX Runtime has no INT8 kernel of it",
    "Mul": "part of a hard-swish, of which ONNX Runtime has no INT8 kernel",
}
_OTHER_REASON = "this ONNX Runtime does not fuse it with the quantizers around it"


class Operators(Record, frozen=True):
    """What the optimised graph of an INT8 model consists of.

    Attributes
    ----------
    integer : operators that compute in integers, with how many of each
    in_float : those that compute in float
    conversions : quantizations and dequantizations that remain
    reasons : why an operator stays float
    """

    integer: dict[str, int]
    in_float: dict[str, int]
    conversions: int
    reasons: dict[str, str]


def operators(model: onnx.ModelProto) -> Operators:
    """Look at the graph as the installed ONNX Runtime has optimised it for this machine."""
    found = Counter(node.op_type for node in optimized(model).graph.node)
    integer = {op: n for op, n in found.items() if op.startswith(_INTEGER)}
    others = {*integer, *_MOVES, *_CONVERTS}
    in_float = {op: n for op, n in found.items() if op not in others}
    return Operators(
        integer=integer,
        in_float=in_float,
        conversions=sum(found[op] for op in _CONVERTS),
        reasons={op: _REASONS.get(op, _OTHER_REASON) for op in in_float},
    )


class Agreement(Record, frozen=True):
    """How an exported file and the network that it was made of answer the same images.

    Attributes
    ----------
    images : how many
    same : share that both name the same label
    accuracy, network_accuracy : of the file and of the network; None without labels
    largest_difference, logit_deviation : largest difference of a logit, and the standard deviation
        of all logits, which tells how much that is
    """

    images: int
    same: float
    accuracy: float | None
    network_accuracy: float | None
    largest_difference: float
    logit_deviation: float


@torch.no_grad()
def agreement(
    path: Path, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None]]
) -> Agreement:
    """Run a file and its network on images.

    Parameters
    ----------
    path : a file from images to logits, run by the first runtime for such a file
    network : in evaluation mode, on the CPU
    batches : images as the network takes them, with labels or None; at least one batch

    Raises
    ------
    DeviceError
        The runtime is not installed, or cannot read the file.
    """
    session = open_session(path)
    files, networks, labels = [], [], []
    for images, wanted in batches:
        files.append(torch.from_numpy(session.logits(images.numpy())))
        networks.append(network(images))
        labels.append(wanted)
    found, expected = torch.cat(files), torch.cat(networks)
    known = [part for part in labels if part is not None]
    right = torch.cat(known) if len(known) == len(labels) else None
    return Agreement(
        images=len(found),
        same=_share(found, expected.argmax(1)),
        accuracy=None if right is None else _share(found, right),
        network_accuracy=None if right is None else _share(expected, right),
        largest_difference=float((found - expected).abs().max()),
        logit_deviation=float(expected.std()),
    )


def _share(answers: Tensor, labels: Tensor) -> float:
    return float((answers.argmax(1) == labels).double().mean())
