"""What distilling a job's stages means, before anything is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..distill.config import PretrainedConfig
from ..lut.merge import task_cells
from .distillation import images, teacher_at_first, teacher_source
from .job import Job

if TYPE_CHECKING:
    from ..distill.teachers import FeatureTeacher, StageFeatures


def plan(job: Job) -> str:
    """What distilling a job's stages means, as text; nothing is trained and nothing written.

    Raises
    ------
    SpaceEvoError
        The teacher or the images do not fit the hyperspace, or cannot be read; or there is no such
        device.
    """
    from ..distill.teachers import check_teacher

    data, teacher = images(job), teacher_at_first(job)
    found = check_teacher(teacher, job.hyperspace, data)
    config, types = job.config.distill, [o.type for o in job.hyperspace.block_types]
    steps = -(-data.train_size // config.batch_size)
    return "\n".join(
        [
            f"Images   {job.dataset_name}: {data.train_size:,} to train on, "
            f"{data.test_size:,} held out, {data.channels} channels",
            f"Teacher  {_description(job, teacher)}",
            f"Blocks   {', '.join(types)}, in every stage",
            f"Device   {_device(job)}",
            "",
            *_table(job, teacher, found),
            "",
            f"{len(task_cells(job.hyperspace))} tasks, one for each of {len(found)} stages and "
            f"{len(types)} block types: {config.epochs_fp32} + {config.epochs_int8} epochs "
            f"(FP32 + INT8) of {steps:,} batches, then {job.config.lut.rows_per_cell:,} rows a "
            "width window",
        ]
    )


def _description(job: Job, teacher: FeatureTeacher) -> str:
    settings = job.teacher
    if not isinstance(settings, PretrainedConfig):
        return f"trained for {settings.epochs} epochs"
    quantized = "; quantized with LSQ+ first" if settings.quantize else ""
    return teacher_source(teacher, settings) + quantized


def _device(job: Job) -> str:
    from ..device import device_name, training_device

    config = job.config.distill
    numbers = "bfloat16 and float32" if config.mixed_precision else "float32"
    cached = f"; teacher's features kept in {config.cache_gb:g} GB" if config.cache_gb else ""
    return f"{device_name(training_device(config.device, 'distill'))}, {numbers}{cached}"


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
