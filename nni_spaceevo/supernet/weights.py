"""The file of a trained supernet: its weights, statistics and ranges, and what space it is of."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ..hyperspace import Hyperspace, SpaceCode
from ..network.checkpoint import load_checkpoint, save_checkpoint
from ..quant import FP32, INT8, Precision, set_precision
from .model import Supernet


def save_supernet(path: Path, supernet: Supernet) -> None:
    """Write a supernet, in the precision in which it is, whole or not at all."""
    precision = INT8 if supernet.image.enabled else FP32
    content = {"precision": precision.name, "supernet": supernet.state_dict()}
    save_checkpoint(path, supernet.made_for, content)


def load_supernet(path: Path, hyperspace: Hyperspace, space: SpaceCode | str) -> Supernet:
    """Read a supernet, in evaluation mode and in the precision in which it was written.

    Raises
    ------
    CheckpointError
        Damaged, or of another space or hyperspace; names both.
    """
    supernet = Supernet(hyperspace, space)
    load_weights(path, supernet)
    return supernet


def load_weights(path: Path, supernet: Supernet) -> None:
    """Read a file into a supernet of the same space; see `load_supernet`."""
    content = load_checkpoint(path, supernet.made_for)
    try:
        supernet.load_state_dict(content["supernet"])
        precision = _precision(content["precision"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not the weights of a supernet ({error})") from error
    set_precision(supernet, precision)
    supernet.eval()


def _precision(name: str) -> Precision:
    return {p.name: p for p in (FP32, INT8)}[name]
