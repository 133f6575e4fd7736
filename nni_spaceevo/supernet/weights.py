"""The file of a trained supernet: its weights, statistics and ranges, and what space it is of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckpointError
from ..hyperspace import Hyperspace, SpaceCode
from ..network.checkpoint import difference, load_checkpoint, save_checkpoint
from ..quant import FP32, INT8, Precision, set_precision
from .model import Supernet


def save_supernet(path: Path, supernet: Supernet, trained: Mapping[str, str] | None = None) -> None:
    """Write a supernet, in the precision in which it is, whole or not at all.

    Parameters
    ----------
    path, supernet : the file and what it shall have
    trained : on what and how, by name; `check_training` compares it
    """
    precision = INT8 if supernet.image.enabled else FP32
    # Bytes that do not tell which device it was trained on, for results are kept by their hash.
    weights = {name: tensor.cpu() for name, tensor in supernet.state_dict().items()}
    content = {"precision": precision.name, "supernet": weights, "trained": dict(trained or {})}
    save_checkpoint(path, supernet.made_for, content)


def check_training(path: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Refuse the file of a supernet that was trained on other images, or otherwise.

    Parameters
    ----------
    path : the file
    found : what `load_weights` has found there; nothing if it does not say, as NNI's one-shot
        strategy leaves it, and is then taken as it is
    expected : what it ought to be trained on, and how

    Raises
    ------
    CheckpointError
        Names the file and what differs.
    """
    if found and found != expected:
        raise CheckpointError(
            f"{path}: trained with other images or settings than there are now "
            f"({difference(found, expected)}); train it again, or undo the change"
        )


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


def load_weights(path: Path, supernet: Supernet) -> dict[str, str]:
    """Read a file into a supernet of the same space; see `load_supernet`.

    Returns
    -------
    on what and how it was trained, as far as the file says
    """
    content = load_checkpoint(path, supernet.made_for)
    try:
        supernet.load_state_dict(content["supernet"])
        precision = _precision(content["precision"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not the weights of a supernet ({error})") from error
    set_precision(supernet, precision)
    supernet.eval()
    trained: dict[str, str] = content.get("trained", {})
    return trained


def _precision(name: str) -> Precision:
    return {p.name: p for p in (FP32, INT8)}[name]
