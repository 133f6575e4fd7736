"""The latency predictors of a job: the one it names, or those profiled on this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, PredictorError
from ..latency import (
    LatencyPredictor,
    find_predictor,
    format_report,
    load_predictor,
    local_device_name,
)
from ..lut import LatencyModel
from .job import Job

if TYPE_CHECKING:
    from ..latency.profile import ProfileOptions

# What a job that names no predictor searches for.
JOB_DEVICE = "ort-x86-int8"

Say = Callable[[str], None]


def prepared_predictor(job: Job, say: Say = print) -> LatencyModel:
    """The job's latency predictor: the one it names, or this machine's, profiled if need be."""
    if (found := known_predictor(job)) is not None:
        return found
    from ..latency.profile import ProfileOptions

    say("Profiling INT8 kernels of ONNX Runtime on this machine")
    # A job that names no predictor wants to begin: a quarter of the visits, which may miss the
    # gate. The predictor orders spaces all the same, and says so whenever it is used.
    options = ProfileOptions(
        seed=job.config.seed,
        kernels_per_type=40,
        more_kernels=160,
        rounds=3,
        calibration_networks=16,
        validation_networks=20,
    )
    found = profiled(job, JOB_DEVICE, options)
    say(format_report(found.report))
    return found


def known_predictor(job: Job) -> LatencyModel | None:
    """The job's latency predictor, or None if this machine has not been profiled yet."""
    if job.config.predictor is not None:
        return named_predictor(job)
    folder = profile_folder(job, JOB_DEVICE)
    return load_predictor(folder) if (folder / "device.yaml").is_file() else None


def is_of_job(job: Job, name: str, device: LatencyModel) -> bool:
    """Whether a result by a predictor of this name ought to be by the job's, `device`.

    Not if the job names none and its results come from a machine of another kind.
    """
    return job.config.predictor is not None or device.name == name


def profile_folder(job: Job, device: str) -> Path:
    """Where a job keeps the predictor of a device; that of `JOB_DEVICE` is what it searches by."""
    name = local_device_name() if device == JOB_DEVICE else re.sub(r"\W+", "_", device)
    return job.work / "latency_predictors" / name


def profiled(
    job: Job, device: str = JOB_DEVICE, options: ProfileOptions | None = None
) -> LatencyPredictor:
    """Profile a device on a job's hyperspace, unless that is done; a killed run is continued.

    A predictor that fails its gate is kept too, and says so.

    Parameters
    ----------
    job, device : the device as `nni_spaceevo.latency.devices.get_device` takes it
    options : how thoroughly; seed of the job, all else as `spaceevo profile` by default

    Raises
    ------
    SpaceEvoError
        As `get_device` and `profile_device`.
    """
    folder = profile_folder(job, device)
    if not (folder / "device.yaml").is_file():
        from ..latency.devices import get_device
        from ..latency.profile import ProfileOptions, profile_device

        options = options or ProfileOptions(seed=job.config.seed)
        profile_device(get_device(device), job.hyperspace, folder, options, force=True)
    return load_predictor(folder)


def named_predictor(job: Job) -> LatencyModel:
    """The predictor that the job names: beside the job file, or in the package.

    Raises
    ------
    ConfigError
        There is none.
    PredictorError
        It is damaged, or it is nn-Meter's and the job does not say that its pickles are trusted.
    """
    name = job.config.predictor or ""
    folder = job.path.parent / name
    if (folder / "meta.yaml").is_file():
        from ..latency.nn_meter import load_nn_meter

        return load_nn_meter(folder, trust_pickle=job.config.trust_pickle)
    try:
        return load_predictor(find_predictor(name, job.path.parent))
    except PredictorError as error:
        raise ConfigError(f"{job.path}: {error}") from error
