"""Files measured side by side, with what a job knows of them: prediction and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from msgspec.structs import replace

from ..deploy.android import check_phone_files, time_files_on_phone
from ..deploy.bench import Bench, check_files, time_files
from ..deploy.sessions import ONNX_RUNTIMES, TFLITE, Session, open_session, runtimes_of
from ..distill.data import Images
from ..errors import CodeError, ConfigError
from ..hyperspace import Hyperspace, place
from ..latency.tflite_graph import flatbuffer_metadata
from ..lut import LatencyModel
from ..supernet.data import held_out_batches
from .distillation import images
from .export import HYPERSPACE
from .job import Job
from .predictors import prepared_predictor

_BATCH = 250


def bench_files(
    paths: Sequence[Path],
    job: Job | None = None,
    rounds: int = 20,
    threads: int = 1,
    *,
    runtimes: Sequence[str] | None = None,
    device: str | None = None,
    program: Path | None = None,
) -> Bench:
    """Measure files.

    `nni_spaceevo.deploy.bench.time_files` and, on a phone, `nni_spaceevo.deploy.android` say how,
    and what else is raised.

    Parameters
    ----------
    paths : ONNX and TFLite files
    job : whose predictor says what exported subnets should take, and whose held-out images say how
        accurate every file is, on this machine
    rounds, threads : as there
    runtimes : of ONNX files; ONNX Runtime by default
    device : "adb:" and a phone's serial number; this machine by default
    program : on this machine, what times a file on the phone

    Raises
    ------
    ConfigError
        An option that says nothing about these files or this device; or a file does not take the
        job's images, or does not answer with its classes.
    """
    on_phone = device is not None
    if runtimes is not None and (on_phone or all(path.suffix == TFLITE for path in paths)):
        raise ConfigError(
            f"bench: runtime {', '.join(runtimes)} for ONNX files on this machine; there are none"
        )
    if program is not None and not on_phone:
        raise ConfigError(f"bench: {program} runs on a phone; expected --device adb:<serial> too")
    chosen = runtimes or ONNX_RUNTIMES[:1]
    rows = [(path, runtime) for path in paths for runtime in runtimes_of(path, chosen)]
    if device is not None:
        check_phone_files(paths, device, program, rounds, threads)
    else:
        check_files(paths, rounds, threads, chosen)
    if job is not None:
        # What is wrong with them is said before everything is measured.
        predictor, data = prepared_predictor(job), images(job)
        if data.test_labels is not None:
            for path, runtime in rows:
                _judging(path, data, runtime)
    if device is not None:
        found = time_files_on_phone(paths, device, program, rounds, threads)
    else:
        found = time_files(paths, rounds, threads, chosen)
    if job is None:
        return found
    known = [
        replace(
            timing,
            predicted_ms=predicted_ms(job.hyperspace, path, predictor),
            accuracy=accuracy(path, data, runtime),
        )
        for timing, (path, runtime) in zip(found.files, rows, strict=True)
    ]
    return replace(found, files=tuple(known))


def predicted_ms(hyperspace: Hyperspace, path: Path, predictor: LatencyModel) -> float | None:
    """What a predictor says of an INT8 file that `export_subnet` wrote for this hyperspace.

    None of any other file.
    """
    about = _about(path)
    if about.get("precision") != "int8" or not {"space", "subnet"} <= about.keys():
        return None
    if about.get(HYPERSPACE, hyperspace.fingerprint) != hyperspace.fingerprint:
        return None
    try:
        space = hyperspace.space(about["space"])
        code = hyperspace.subnet(space, about["subnet"])
    except CodeError:
        # Of a file from before it said which hyperspace it is of.
        return None
    placed = place(hyperspace.all_blocks(space, code), code.resolution)
    return float(predictor.network_ms([placed])[0])


def _about(path: Path) -> dict[str, str]:
    """What a file says of itself."""
    if path.suffix == TFLITE:
        return flatbuffer_metadata(path.read_bytes())
    return {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}


def accuracy(path: Path, data: Images, runtime: str | None = None) -> float | None:
    """Share of the held-out images whose label a file names; None without labels.

    Parameters
    ----------
    path : an ONNX or TFLite file
    data : the images
    runtime : what runs it; the first that runs such a file by default

    Raises
    ------
    ConfigError
        It does not take such images, or has another number of classes.
    """
    if data.test_labels is None:
        return None
    session, size = _judging(path, data, runtime)
    right = 0
    batches = held_out_batches(data, size, _BATCH, f"Accuracy of {path.name}")
    for given_images, labels in batches:
        assert labels is not None
        named = session.logits(given_images.numpy()).argmax(1)
        right += int((named == labels.numpy()).sum())
    return right / data.test_size


def _judging(path: Path, data: Images, runtime: str | None) -> tuple[Session, int]:
    """What runs a file on these images, and the size at which it takes them; raises as above."""
    session = open_session(path, runtime)
    if session.image is None or session.image[0] != data.channels:
        found = ", ".join(f"{given.name} of {list(given.shape)}" for given in session.inputs)
        raise ConfigError(
            f"{path}: takes {found}; expected images of {data.channels} channels alone"
        )
    if session.classes != data.classes:
        raise ConfigError(
            f"{path}: answers with {session.classes} classes; the images have {data.classes}"
        )
    return session, session.image[1]
