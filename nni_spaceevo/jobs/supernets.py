"""Training of the supernets of a job's spaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ..errors import CheckpointError, ConfigError
from .command import supernet_command as command
from .distillation import check_images, images
from .job import Job
from .results import last_search
from .workers import is_first_process

if TYPE_CHECKING:
    from ..hyperspace import SpaceCode
    from ..supernet.model import Supernet
    from ..supernet.run import SupernetEpoch

# Stands for the best space of the job's search.
BEST = "best"


@dataclass(frozen=True)
class TrainedSupernet:
    """A supernet that has been trained.

    Attributes
    ----------
    space : its space code
    seed : of everything random in its training
    path : its file, which `nni_spaceevo.supernet.weights.load_supernet` reads
    epochs : what each epoch came to
    """

    space: str
    seed: int
    path: Path
    epochs: tuple[SupernetEpoch, ...]

    @property
    def outcome(self) -> str:
        """A line for people."""
        return f"{self.space}, seed {self.seed} -> {self.path}"


def chosen_space(job: Job, name: str) -> SpaceCode:
    """The space of a code, or the best one of the job's search.

    Raises
    ------
    ConfigError
        No space has been searched for yet, or by other settings than the job has now.
    CodeError
        No code of the job's hyperspace.
    """
    if name != BEST:
        return job.hyperspace.space(name)
    try:
        return job.hyperspace.space(last_search(job).best.space)
    except ConfigError as error:
        raise ConfigError(f"space {BEST!r}: {error}, or give a space code") from error


def supernets_folder(job: Job, seed: int | None = None) -> Path:
    """Where the supernets of a seed lie; it is the job's by default."""
    return job.supernets_path / f"seed{job.seed(seed)}"


def supernet_path(job: Job, space: SpaceCode, seed: int | None = None) -> Path:
    """The file of a supernet once it is trained."""
    return supernets_folder(job, seed) / f"{space}.pt"


def load_trained(
    job: Job, space: SpaceCode, seed: int | None = None, quantized: bool = True
) -> Supernet:
    """A trained supernet of a job.

    Parameters
    ----------
    job, space, seed : as for its training
    quantized : whether its subnets are to be INT8

    Raises
    ------
    ConfigError
        There is none yet.
    CheckpointError
        Its file is damaged, or of another space; it was trained on other images or by other
        settings; or it has no LSQ+ phase behind it.
    """
    from ..supernet.model import Supernet
    from ..supernet.run import training_of
    from ..supernet.weights import check_training, load_weights

    path = supernet_path(job, space, seed)
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such supernet; train it first (`{command(job, 'train', space, seed)}`)"
        )
    supernet = Supernet(job.hyperspace, space)
    trained = load_weights(path, supernet)
    if quantized and not supernet.image.enabled:
        raise CheckpointError(
            f"{path}: a supernet without an LSQ+ phase has no INT8 subnets; train it with epochs "
            "in `int8`"
        )
    config = replace(job.config.supernet, seed=job.seed(seed))
    check_training(path, trained, training_of(images(job), config))
    return supernet


def train_supernet(
    job: Job,
    space: str = BEST,
    seed: int | None = None,
    report: Callable[[SupernetEpoch], None] = lambda epoch: None,
    scalars: Path | None = None,
) -> TrainedSupernet | None:
    """Train the supernet of a space by the job's settings; a killed training is continued.

    The processes that `torchrun` has started do it together, as the first one is told.

    Parameters
    ----------
    job : the job
    space : a space code, or `best`, the best one of the job's search
    seed : of everything random; the job's by default
    report : receives every epoch in the first process, those of an earlier run first
    scalars : folder for TensorBoard; beside the supernet by default

    Returns
    -------
    the supernet; None in other processes than the first

    Raises
    ------
    SpaceEvoError
        The space or the images do not fit the job, a loss is not finite, a file cannot be written,
        or another process is training the same supernet.
    """
    from ..device import training_device
    from ..parallel import joined
    from ..supernet.run import SupernetRun
    from .scalars import scalar_writer

    device = training_device(job.config.supernet.device, "supernet")
    # Only the first process knows what NNI has for this trial. A space that there is none of is
    # told before all images are read.
    code = str(chosen_space(job, space)) if is_first_process() else ""
    # One process reads them, and the others wait for its lock: longer than they would for each
    # other once they have joined.
    check_images(job)
    with joined(device) as ranks:
        code = ranks.text_from_first(code)
        number = ranks.from_first(job.seed(seed))
        config = replace(job.config.supernet, seed=number)
        folder = supernets_folder(job, number)
        run = SupernetRun(
            job.hyperspace, code, images(job), config, folder, device=device, ranks=ranks
        )
        if not ranks.is_first:
            run.run()
            return None
        with scalar_writer(scalars or folder / f"{code}.tensorboard") as write:

            def tell(epoch: SupernetEpoch) -> None:
                write(epoch)
                report(epoch)

            for epoch in run.epochs:
                tell(epoch)
            run.run(tell)
        return TrainedSupernet(code, number, run.weights_path, tuple(run.epochs))
