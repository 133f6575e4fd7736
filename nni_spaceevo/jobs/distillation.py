"""A job's images and teacher, and the distillation of all its stages."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..distill.config import DatasetConfig, PretrainedConfig
from ..errors import LUTError
from ..files import digest, exclusive, to_json
from ..lut.merge import Cell, RowsFolder, StageRows, task_cells
from .job import Job

if TYPE_CHECKING:
    from ..distill.data import Images
    from ..distill.stage import Report
    from ..distill.teachers import FeatureTeacher, StageFeatures
    from ..lut import Row

Say = Callable[[str], None]


# ---- images and teacher ----


def images(job: Job) -> Images:
    """The images of a job, loaded once a process."""
    return _images(job.dataset, job.path.parent)


@cache
def _images(dataset: DatasetConfig, folder: Path) -> Images:
    from ..distill.data import load_dataset

    return load_dataset(dataset, folder)


def prepared_teacher(job: Job, say: Say = print) -> FeatureTeacher:
    """The job's teacher: checked against the hyperspace, and trained or quantized if need be."""
    import torch

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

    teacher = _teacher_at_first(job)
    progress(_source(teacher, settings))
    check_teacher(teacher, job.hyperspace, data)
    if settings.quantize and isinstance(teacher, PretrainedTeacher):
        from ..distill.teachers.quantized import quantize_teacher

        resolutions = job.hyperspace.distill_resolutions
        quantize_teacher(teacher, data, resolutions, seed, job.teacher_path, progress)
    return teacher


def _teacher_at_first(job: Job) -> FeatureTeacher:
    """The job's teacher, neither trained nor quantized."""
    data = images(job)
    if isinstance(job.teacher, PretrainedConfig):
        from ..distill.teachers.pretrained import pretrained_teacher

        place, seed = job.path.parent, job.config.seed
        return pretrained_teacher(job.teacher, job.hyperspace, data, place, seed)
    from ..distill.teachers import new_teacher

    return new_teacher(job.hyperspace, data, job.teacher)


def _source(teacher: FeatureTeacher, settings: PretrainedConfig) -> str:
    return getattr(teacher, "source", settings.model)


# ---- what is going to be done ----


def plan(job: Job) -> str:
    """What distilling a job's stages means, as text; nothing is trained and nothing written.

    Raises
    ------
    SpaceEvoError
        The teacher or the images do not fit the hyperspace, or cannot be read.
    """
    from ..distill.teachers import check_teacher

    data, teacher = images(job), _teacher_at_first(job)
    found = check_teacher(teacher, job.hyperspace, data)
    config, types = job.config.distill, [o.type for o in job.hyperspace.block_types]
    steps = -(-data.train_size // config.batch_size)
    return "\n".join(
        [
            f"Images   {job.dataset_name}: {data.train_size:,} to train on, "
            f"{data.test_size:,} held out, {data.channels} channels",
            f"Teacher  {_description(job, teacher)}",
            f"Blocks   {', '.join(types)}, in every stage",
            "",
            *_table(job, teacher, found),
            "",
            f"{len(cells(job))} tasks, one for each of {len(found)} stages and {len(types)} block "
            f"types: {config.epochs_fp32} + {config.epochs_int8} epochs (FP32 + INT8) of {steps:,} "
            f"batches, then {job.config.lut.rows_per_cell:,} rows a width window",
        ]
    )


def _description(job: Job, teacher: FeatureTeacher) -> str:
    settings = job.teacher
    if not isinstance(settings, PretrainedConfig):
        return f"trained for {settings.epochs} epochs"
    quantized = "; quantized with LSQ+ first" if settings.quantize else ""
    return _source(teacher, settings) + quantized


def _table(job: Job, teacher: FeatureTeacher, found: list[StageFeatures]) -> list[str]:
    nodes = getattr(teacher, "nodes", ("",) * (len(found) + 1))
    resolutions = job.hyperspace.distill_resolutions
    rows = [["stage", "teacher nodes", "widths", *(f"{r} px" for r in resolutions)]]
    for i, stage in enumerate(found):
        sizes = (_arrow(*stage.sizes[r]) for r in resolutions)
        nodes_of_it = _arrow(*nodes[i : i + 2]) if nodes[i] else "–"
        rows.append([stage.stage, nodes_of_it, _arrow(*stage.widths), *sizes])
    longest = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (
        "  ".join(c.ljust(n) for c, n in zip(row, longest, strict=True)).rstrip() for row in rows
    )
    return list(padded)


def _arrow(before: object, after: object) -> str:
    return f"{before} → {after}"


# ---- stages ----


@cache
def _job_and_teacher(job_path: str) -> tuple[Job, FeatureTeacher]:
    """Read and checked once a worker and not once a cell."""
    job = Job(job_path)
    # Of several trials that start on one machine, one trains the teacher.
    with exclusive(job.teacher_path, wait=True):
        return job, prepared_teacher(job, say=lambda line: None)


def cells(job: Job) -> list[Cell]:
    """All (stage, block type) pairs, by index."""
    return list(task_cells(job.hyperspace).values())


def rows_folder(job: Job) -> RowsFolder:
    """Where a job keeps its rows, one file a (stage, block type)."""
    c = job.config
    dataset = job.dataset if isinstance(job.dataset, str) else to_json(job.dataset)
    settings = [to_json(part) for part in (job.teacher, c.distill, c.lut)]
    made_with = digest(job.hyperspace.fingerprint, dataset, str(c.seed), *settings)
    return RowsFolder(job.rows_path, job.hyperspace, made_with)


def distilled_rows(job_path: str, cell: Cell, report: Report = lambda loss: None) -> StageRows:
    """Distil one (stage, block type) and evaluate its LUT rows; both are kept and continued.

    Parameters
    ----------
    job_path : the job file
    cell : which, by index
    report : receives the losses of every epoch, those of an earlier run first

    Raises
    ------
    LUTError
        There are rows for this job, but of another teacher or other images.
    TrainingError
        A loss is not finite.
    """
    from ..distill.stage import StageRun, StageTask
    from ..lut.build import StageSampler

    job, teacher = _job_and_teacher(job_path)
    task = StageTask(job.hyperspace, *cell, teacher, images(job), job.config.seed)
    folder = rows_folder(job)
    # A second process with the same task waits, and finds its rows.
    with exclusive(folder.file(task.name), wait=True):
        run = StageRun(task, job.config.distill, job.stages_path)
        sampler = StageSampler(task, job.config.lut)
        made_for = sampler.made_for(run.made_for)
        for loss in run.losses:
            report(loss)
        if found := folder.find(task.name):
            if found.made_for != made_for:
                raise LUTError(
                    f"{folder.file(task.name)}: made with another teacher or other images than "
                    "there are now; delete it, or give the job another work_dir"
                )
            return found
        found = StageRows.of(
            task.name,
            sampler.rows(run.run(report)),
            made_with=folder.made_with,
            teacher=teacher.fingerprint,
            made_for=made_for,
            held_out_images=sampler.held_out_images,
        )
        folder.add(found, f"the distillation of {task.name}")
        return found


def all_rows(job: Job) -> list[Row]:
    """Rows of all cells, as many cells at a time as there are cores, one thread each."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    from tqdm import tqdm

    rows: list[Row] = []
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(
        workers, get_context("spawn"), _die_with_parent, (os.getpid(),)
    ) as pool:
        futures = [pool.submit(distilled_rows, str(job.path), cell) for cell in cells(job)]
        bar = tqdm(as_completed(futures), "Distilling stages", len(futures), mininterval=1)
        try:
            for future in bar:
                found = future.result()
                bar.set_postfix_str(found.outcome)
                rows += found.values()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return rows


def _die_with_parent(parent: int) -> None:
    """Have the kernel end this worker with its parent, which kill -9 gives no time to do it."""
    import ctypes
    import signal

    death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
