"""From a job to its quantized LUT: predictor, teacher, distillation, rows.

Each step keeps its result in the job's work folder and is not repeated; a step that was killed
continues where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import LUTError
from ..files import Record, digest, exclusive, read_json, to_json, write_atomically
from ..lut import LatencyModel, QuantizedLUT
from ..search import check_constraints, constraint_at_quantile
from .distillation import all_rows, prepared_teacher, rows_folder
from .job import Job
from .predictors import is_of_job, known_predictor, prepared_predictor

if TYPE_CHECKING:
    from ..lut import Row

Say = Callable[[str], None]


def lut_recipe(job: Job) -> str:
    """Fingerprint of the settings that a job's LUT depends on."""
    return digest(rows_folder(job).made_with, str(job.config.predictor))


def search_recipe(job: Job) -> str:
    """Fingerprint of the settings that the scores of a job's spaces depend on."""
    return digest(lut_recipe(job), to_json(job.config.search), str(job.config.seed))


def prepared_lut(job: Job, say: Say = print, *, wait: bool = False) -> QuantizedLUT:
    """The job's LUT; whatever is missing on the way to it is made first.

    Parameters
    ----------
    job : what to prepare
    say : receives one line a step
    wait : as trials do, wait for another process that is preparing this job, and do not spend
        time on reading the predictor only to see whether it is still the one of the LUT

    Raises
    ------
    LUTError
        The LUT that is there was made with other settings, priced by another predictor, or is
        damaged.
    LockedError
        Another process is preparing this job.
    """
    if not job.lut_path.is_file():
        with exclusive(job.work / "prepare", wait=wait):
            if not job.lut_path.is_file():
                _prepare(job, say)
    lut = stored_lut(job)
    if not wait:
        check_device(job, lut)
    return lut


def stored_lut(job: Job) -> QuantizedLUT:
    """The LUT that a job has already; raises `LUTError` if it was made otherwise, or is damaged."""
    lut = QuantizedLUT.load(job.lut_path, job.hyperspace)
    made_with = lut.header.made_with
    if made_with and made_with != lut_recipe(job):
        raise LUTError(
            f"{job.lut_path}: made with other settings than {job.path} has now; "
            "delete it to build it anew, or name another work_dir"
        )
    return lut


def lut_fingerprint(job: Job) -> str:
    """Fingerprint of the LUT that a job has, latencies included; empty if it has none yet."""
    return stored_lut(job).fingerprint if job.lut_path.is_file() else ""


def check_device(job: Job, lut: QuantizedLUT) -> None:
    """Refuse a job's LUT if its predictor has been profiled again since it was priced.

    Raises
    ------
    LUTError
        Says what to do, which takes seconds.
    """
    # One that was imported, or put there, has latencies of its own.
    if not lut.header.made_with:
        return
    device = known_predictor(job)
    if device is None or not is_of_job(job, lut.header.device, device):
        return
    if device.fingerprint != lut.header.device_fingerprint:
        raise LUTError(
            f"{job.lut_path}: priced by predictor {lut.header.device} "
            f"({lut.header.device_fingerprint}), but {device.name} is another one now "
            f"({device.fingerprint}); delete the LUT, and `spaceevo lut build --job {job.path}` "
            "prices the same losses again, in seconds"
        )


def _prepare(job: Job, say: Say) -> None:
    # The device is profiled first, while nothing else of ours keeps it busy.
    with timed(job, "predictor"):
        predictor = prepared_predictor(job, say)
    _distilled(job, say)
    _price(job, _unpriced(job), predictor, say)


def merged_lut(job: Job, say: Say = print) -> QuantizedLUT:
    """The job's LUT, from rows that are all there, wherever they were distilled.

    Unlike `prepared_lut`, this needs neither torch nor teacher nor images.

    Raises
    ------
    LUTError
        Rows are missing, damaged, or of different teachers; or as `prepared_lut`.
    """
    if not job.lut_path.is_file():
        with exclusive(job.work / "prepare", wait=True):
            if not job.lut_path.is_file():
                # Before the device is profiled, which would be for nothing if rows are missing.
                unpriced = _unpriced(job)
                with timed(job, "predictor"):
                    predictor = prepared_predictor(job, say)
                _price(job, unpriced, predictor, say)
    return prepared_lut(job, say)


def _unpriced(job: Job) -> QuantizedLUT:
    return rows_folder(job).lut(job.dataset_name, lut_recipe(job))


def _price(job: Job, unpriced: QuantizedLUT, predictor: LatencyModel, say: Say) -> None:
    with timed(job, "LUT pricing"):
        lut = unpriced.priced(predictor)
        lut.save(job.lut_path)
    low, high = lut.latency_span
    say(f"LUT: {len(lut)} sub-stages, subnets of {low:.3f} to {high:.3f} ms -> {job.lut_path}")


def distilled(job: Job, say: Say = print) -> list[Row]:
    """Distil all stages of a job, which `prepared_lut` then finds done; returns the LUT's rows.

    Raises
    ------
    LockedError
        Another process is preparing this job.
    """
    with exclusive(job.work / "prepare"):
        return _distilled(job, say)


def _distilled(job: Job, say: Say) -> list[Row]:
    from ..device import one_thread

    with one_thread():
        with timed(job, "teacher"):
            prepared_teacher(job, say)
        with timed(job, "distillation and LUT rows"):
            return all_rows(job, say)


@contextmanager
def timed(job: Job, step: str) -> Iterator[None]:
    """Add a step's seconds to `work/seconds.json`, where a user sees what took how long."""
    path, start = job.work / "seconds.json", monotonic()
    try:
        yield
    finally:
        seconds = json.loads(path.read_text()) if path.is_file() else {}
        seconds[step] = round(seconds.get(step, 0) + monotonic() - start, 2)
        write_atomically(path, to_json(seconds))


class Constraints(Record, frozen=True):
    """Resolved latency constraints and what they were resolved from."""

    constraints_ms: tuple[float, ...]
    made_with: str


def constraints(job: Job, lut: QuantizedLUT) -> tuple[float, ...]:
    """The job's latency constraints in milliseconds, checked against the LUT.

    Quantiles are resolved once and kept, so that all trials of a search share them.

    Raises
    ------
    ConstraintError
        A constraint that no subnet, or every subnet, meets.
    """
    search = job.config.search
    if search.constraints_ms:
        check_constraints(lut, search.constraints_ms)
        return search.constraints_ms
    made_with = digest(lut.fingerprint, to_json(search.constraint_quantiles))
    if job.constraints_path.is_file():
        stored = read_json(job.constraints_path, Constraints)
        if stored.made_with == made_with:
            return stored.constraints_ms
    # Four digits are what a user can type; the search and its repetition use the same.
    resolved = tuple(
        float(f"{constraint_at_quantile(lut, q):.4g}") for q in search.constraint_quantiles
    )
    check_constraints(lut, resolved)
    content: dict[str, Any] = {"constraints_ms": resolved, "made_with": made_with}
    write_atomically(job.constraints_path, to_json(content))
    return resolved
