"""Losses and accuracies of a training as TensorBoard shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileAccessError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from ..supernet.run import SupernetEpoch


@contextmanager
def scalar_writer(folder: Path) -> Iterator[Callable[[SupernetEpoch], None]]:
    """What writes epochs for `tensorboard --logdir folder`, from the first one on.

    A line says so where TensorBoard is not installed, and nothing is written.

    Raises
    ------
    FileAccessError
        The folder cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("No TensorBoard scalars: pip install 'nni_spaceevo[tensorboard]'", flush=True)
        yield lambda epoch: None
        return
    try:
        # A continued training writes all epochs again, and TensorBoard forgets the earlier ones.
        writer = SummaryWriter(str(folder), purge_step=0)
    except OSError as error:
        raise FileAccessError(f"{folder}: cannot write TensorBoard's scalars ({error})") from error
    with writer:
        yield lambda epoch: _write(writer, epoch)


def _write(writer: SummaryWriter, epoch: SupernetEpoch) -> None:
    kinds = ("largest", "smallest", "random")
    values = {f"loss_{epoch.precision}/{kind}": getattr(epoch, kind) for kind in kinds}
    for precision in ("fp32", "int8"):
        if found := getattr(epoch, precision):
            values |= {f"accuracy_{precision}/{kind}": getattr(found, kind) for kind in kinds}
    for tag, value in values.items():
        writer.add_scalar(tag, value, epoch.epoch + 1)
    writer.flush()
