"""Files measured side by side, with what a job knows of them: prediction and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from msgspec.structs import replace

from ..deploy.bench import Bench, FileTiming, time_files
from ..deploy.runtime import logits, open_session
from ..distill.data import Images
from ..errors import ConfigError
from ..hyperspace import Hyperspace, place
from ..lut import LatencyModel
from ..supernet.data import held_out_batches
from .distillation import images
from .job import Job
from .prepare import prepared_predictor

_BATCH = 250


def bench_files(
    paths: Sequence[Path], job: Job | None = None, rounds: int = 20, threads: int = 1
) -> Bench:
    """Measure files; see `nni_spaceevo.deploy.bench.time_files` for how and for errors.

    Parameters
    ----------
    paths : ONNX files
    job : whose predictor says what exported subnets should take, and whose held-out images say how
        accurate every file is
    rounds, threads : as there

    Raises
    ------
    ConfigError
        A file does not take the job's images, or does not answer with its classes.
    """
    found = time_files(paths, rounds, threads)
    if job is not None:
        predictor, data = prepared_predictor(job), images(job)
        known = [_with_job(job.hyperspace, timing, predictor, data) for timing in found.files]
        found = replace(found, files=tuple(known))
    return found


def _with_job(
    hyperspace: Hyperspace, timing: FileTiming, predictor: LatencyModel, data: Images
) -> FileTiming:
    path = Path(timing.file)
    predicted = predicted_ms(hyperspace, path, predictor)
    return replace(timing, predicted_ms=predicted, accuracy=accuracy(path, data))


def predicted_ms(hyperspace: Hyperspace, path: Path, predictor: LatencyModel) -> float | None:
    """What a predictor says of a file that `export_subnet` wrote; None of others and of floats."""
    about = {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
    if about.get("precision") != "int8" or not {"space", "subnet"} <= about.keys():
        return None
    space = hyperspace.space(about["space"])
    code = hyperspace.subnet(space, about["subnet"])
    blocks = [b for _, stage in hyperspace.subnet_blocks(space, code) for b in stage]
    chain = list(place(blocks, code.resolution))
    return float(predictor.chain_ms([chain])[0]) + predictor.network_overhead_ms


def accuracy(path: Path, data: Images) -> float | None:
    """Share of the held-out images whose label a file names; None without labels.

    Raises
    ------
    ConfigError
        It does not take such images, or has another number of classes.
    """
    if data.test_labels is None:
        return None
    session = open_session(path)
    (given, *others), (answer, *_) = session.get_inputs(), session.get_outputs()
    _, channels, *size = given.shape if len(given.shape) == 4 else (None, None)
    if others or channels != data.channels or len({*size}) != 1:
        raise ConfigError(
            f"{path}: takes {given.name} of {given.shape}; expected images of {data.channels} "
            "channels alone"
        )
    if answer.shape[-1] != data.classes:
        raise ConfigError(
            f"{path}: answers with {answer.shape[-1]} classes; the images have {data.classes}"
        )
    right = 0
    batches = held_out_batches(data, int(size[0]), _BATCH, f"Accuracy of {path.name}")
    for given_images, labels in batches:
        assert labels is not None
        named = logits(session, given_images.numpy()).argmax(1)
        right += int((named == labels.numpy()).sum())
    return right / data.test_size
