"""A job's images and teacher, and the distillation of all its stages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..distill.config import DatasetConfig, PretrainedConfig
from ..errors import LUTError
from ..files import digest, exclusive, plain, read_json, to_json, write_atomically
from ..lut.merge import Cell, RowsFolder, StageRows, task_cells
from .job import Job
from .workers import failure, in_workers

if TYPE_CHECKING:
    import torch

    from ..distill.data import Images
    from ..distill.stage import Report
    from ..distill.teachers import FeatureTeacher
    from ..lut import Row

Say = Callable[[str], None]
# Settings of datasets that came later: as they are here they change nothing, so that rows from
# before there were any stay valid.
_LATER = {"train_images": None, "augment": True}


# ---- images and teacher ----


def images(job: Job) -> Images:
    """The images of a job, loaded once a process."""
    return _images(job.dataset, job.path.parent)


@cache
def _images(dataset: DatasetConfig, folder: Path) -> Images:
    from ..distill.data import load_dataset

    return load_dataset(dataset, folder)


def check_images(job: Job) -> None:
    """Read all images of a folder before the first work with them, once for all.

    Raises
    ------
    FileAccessError
        Some cannot be read; names the first ones.
    """
    from ..distill.data import ImageFolderData

    data, checked = images(job), job.work / "images.json"
    if not isinstance(data, ImageFolderData):
        return
    with exclusive(checked, wait=True):
        if not checked.is_file() or read_json(checked, dict).get("checked") != data.fingerprint:
            data.check()
            write_atomically(checked, to_json({"checked": data.fingerprint}))


def prepared_teacher(job: Job, say: Say = print) -> FeatureTeacher:
    """The job's teacher: checked against the hyperspace, and trained or quantized if need be.

    Raises
    ------
    FileAccessError
        Images of a folder cannot be read; names the first ones.
    """
    import torch

    check_images(job)

    # One thread, so that results do not depend on the number of cores; the networks are small.
    torch.set_num_threads(1)
    data, settings, seed = images(job), job.teacher, job.config.seed

    def progress(line: str) -> None:
        say(f"Teacher: {line}")

    if not isinstance(settings, PretrainedConfig):
        from ..distill.teachers import train_teacher

        return train_teacher(job.hyperspace, data, settings, seed, job.teacher_path, progress)
    from ..distill.teachers import check_teacher
    from ..distill.teachers.pretrained import PretrainedTeacher

    teacher = teacher_at_first(job)
    progress(teacher_source(teacher, settings))
    check_teacher(teacher, job.hyperspace, data)
    if settings.quantize and isinstance(teacher, PretrainedTeacher):
        from ..distill.teachers.quantized import quantize_teacher

        resolutions = job.hyperspace.distill_resolutions
        quantize_teacher(teacher, data, resolutions, seed, job.teacher_path, progress)
    return teacher


def teacher_at_first(job: Job) -> FeatureTeacher:
    """The job's teacher, neither trained nor quantized."""
    data = images(job)
    if isinstance(job.teacher, PretrainedConfig):
        from ..distill.teachers.pretrained import pretrained_teacher

        place, seed = job.path.parent, job.config.seed
        return pretrained_teacher(job.teacher, job.hyperspace, data, place, seed)
    from ..distill.teachers import new_teacher

    return new_teacher(job.hyperspace, data, job.teacher)


def teacher_source(teacher: FeatureTeacher, settings: PretrainedConfig) -> str:
    """Model and weights of a pretrained teacher, for people."""
    return getattr(teacher, "source", settings.model)


# ---- stages ----


@dataclass(frozen=True)
class Distilled:
    """What the distillation of a task has come to.

    Attributes
    ----------
    rows : its LUT rows
    batches, cached : batches that it was trained on, and those whose features were on disk already
    """

    rows: StageRows
    batches: int = 0
    cached: int = 0


@cache
def _job_and_teacher(job_path: str) -> tuple[Job, torch.device, FeatureTeacher]:
    """Read and checked once a worker and not once a cell."""
    from ..device import training_device

    job = Job(job_path)
    device = training_device(job.config.distill.device, "distill")
    # Of several trials that start on one machine, one trains the teacher.
    with exclusive(job.teacher_path, wait=True):
        return job, device, prepared_teacher(job, say=lambda line: None)


def cells(job: Job) -> list[Cell]:
    """All (stage, block type) pairs, by index."""
    return list(task_cells(job.hyperspace).values())


def rows_folder(job: Job) -> RowsFolder:
    """Where a job keeps its rows, one file a (stage, block type)."""
    c = job.config
    dataset = plain(job.dataset)
    if not isinstance(dataset, str):
        made = (item for item in dataset.items() if item not in _LATER.items())
        dataset = to_json(dict(made))
    settings = [to_json(part) for part in (job.teacher, c.distill.deciding, c.lut)]
    made_with = digest(job.hyperspace.fingerprint, dataset, str(c.seed), *settings)
    return RowsFolder(job.rows_path, job.hyperspace, made_with)


def distilled_rows(
    job_path: str, cell: Cell | None, report: Report = lambda loss: None
) -> StageRows | None:
    """The rows of `distil_task`, alone."""
    done = distil_task(job_path, cell, report)
    return None if done is None else done.rows


def distil_task(
    job_path: str, cell: Cell | None, report: Report = lambda loss: None
) -> Distilled | None:
    """Distil one (stage, block type) and evaluate its LUT rows; both are kept and continued.

    The processes that `torchrun` has started do it together; the first one writes files and
    evaluates the rows.

    Parameters
    ----------
    job_path : the job file
    cell : which, by index; only the first process needs to know
    report : receives the losses of every epoch in the first process, those of an earlier run first

    Returns
    -------
    None in other processes than the first, unless there were rows already

    Raises
    ------
    LUTError
        There are rows for this job, but of another teacher or other images.
    TrainingError
        A loss is not finite, or another process of this task has failed.
    """
    from ..distill.stage import StageRun, StageTask
    from ..lut.build import StageSampler
    from ..parallel import joined

    job, device, teacher = _job_and_teacher(job_path)
    folder, all_cells = rows_folder(job), cells(job)
    with joined(device) as ranks, ExitStack() as held:
        number = ranks.from_first(0 if cell is None else all_cells.index(cell))
        data, seed = images(job), job.config.seed
        task = StageTask(job.hyperspace, *all_cells[number], teacher, data, seed, device)
        if ranks.is_first:
            # A second run of the same task waits, and finds its rows.
            held.enter_context(exclusive(folder.file(task.name), wait=True))
        ranks.wait()
        run = StageRun(task, job.config.distill, job.stages_path, job.features_path, ranks)
        sampler = StageSampler(task, job.config.lut)
        made_for = sampler.made_for(run.made_for)
        for loss in run.losses if ranks.is_first else ():
            report(loss)
        if found := folder.find(task.name):
            if found.made_for != made_for:
                raise LUTError(
                    f"{folder.file(task.name)}: made with another teacher or other images than "
                    "there are now; delete it, or give the job another work_dir"
                )
            return Distilled(found)
        model = run.run(report)
        if not ranks.is_first:
            return None
        found = StageRows.of(
            task.name,
            sampler.rows(model),
            made_with=folder.made_with,
            teacher=teacher.fingerprint,
            made_for=made_for,
            held_out_images=sampler.held_out_images,
            images=data.fingerprint,
        )
        folder.add(found, f"the distillation of {task.name}")
        return Distilled(found, run.batches, run.cached_batches)


def all_rows(job: Job, say: Say = print) -> list[Row]:
    """Rows of all cells, as many at a time as GPUs have places for, or else as there are cores.

    Raises
    ------
    ConfigError
        A GPU is asked for, and there is none.
    TrainingError
        Some cells failed, after all others have been distilled; names each with its reason.
    """
    import torch
    from tqdm import tqdm

    from ..device import training_device

    config = job.config.distill
    on_gpus = training_device(config.device, "distill").type == "cuda"
    devices = torch.cuda.device_count() if on_gpus else os.cpu_count() or 1
    count = devices * config.tasks_per_gpu if on_gpus else devices
    names = {cell: name for name, cell in task_cells(job.hyperspace).items()}
    done: list[Distilled] = []
    failed: dict[str, Exception] = {}
    given = [(str(job.path), cell) for cell in names]
    with tqdm(None, "Distilling stages", len(given), mininterval=1) as bar:
        for (_, cell), outcome in in_workers(_distilled, given, count, devices):
            if isinstance(outcome, Exception):
                failed[names[cell]] = outcome
                bar.set_postfix_str(f"{names[cell]} failed")
            else:
                done.append(outcome)
                bar.set_postfix_str(outcome.rows.outcome)
            bar.update()
    if config.cache_gb and done:
        say(cache_use(done))
    if failed:
        raise failure(failed, len(given))
    return [row for one in done for row in one.rows.values()]


def _distilled(job_path_and_cell: tuple[str, Cell]) -> Distilled:
    done = distil_task(*job_path_and_cell)
    assert done is not None
    return done


def cache_use(done: Iterable[Distilled]) -> str:
    """How much the cache of the teacher's features has saved, in a line."""
    cached, batches = map(sum, zip(*((one.cached, one.batches) for one in done), strict=True))
    return f"Teacher's features: {cached:,} of {batches:,} batches came from the cache"
