"""From a trained supernet of a job to the INT8 file of one subnet."""

from __future__ import annotations

from pathlib import Path

import torch

from ..deploy.onnx_file import onnx_model, save_onnx
from ..deploy.runtime import Agreement, Operators, agreement, operators
from ..errors import CheckpointError, ConfigError
from ..files import Record, digest, to_json, write_atomically
from ..hyperspace import SubnetCode
from ..latency.graph import Precision
from ..quant import FP32, INT8
from ..supernet.data import held_out_batches
from ..supernet.evaluation import calibrated_subnet
from ..supernet.model import Supernet
from ..supernet.weights import load_supernet
from .distillation import images
from .job import Job
from .supernets import BEST, chosen_space, supernets_folder

LARGEST, SMALLEST = "largest", "smallest"
_BATCH = 250


class ExportReport(Record, frozen=True):
    """What was exported, and how it compares with what was trained.

    Attributes
    ----------
    file : name of the ONNX file
    space, subnet, resolution : what it is; it takes images of so many pixels
    precision : "int8" or "float32"
    mean, std : what pixels of 0 to 1 are normalized with, one value or one a channel
    operators : what the installed ONNX Runtime makes of it
    agreement : with the network in torch, on the held-out images
    """

    file: str
    space: str
    subnet: str
    resolution: int
    precision: Precision
    mean: tuple[float, ...]
    std: tuple[float, ...]
    operators: Operators
    agreement: Agreement

    @property
    def outcome(self) -> str:
        """A few lines for people."""
        found, stays = self.agreement, self.operators.in_float
        lines = [f"{self.file}: {self.precision}, {self.resolution} px, {self.subnet}"]
        if found.accuracy is not None and found.network_accuracy is not None:
            lines.append(
                f"accuracy {found.accuracy:.2%} in ONNX Runtime, {found.network_accuracy:.2%} in "
                f"torch, on {found.images:,} held-out images"
            )
        lines.append(
            f"the same answer to {found.same:.2%}; largest difference of a logit "
            f"{found.largest_difference:.3g}, where logits deviate by {found.logit_deviation:.3g}"
        )
        if self.precision == "int8":
            names = [f"{n} {op} ({self.operators.reasons[op]})" for op, n in stays.items()]
            lines.append(f"in float: {'; '.join(names) or 'nothing'}")
        return "\n".join(lines)


def export_subnet(
    job: Job,
    subnet: str,
    output: Path | None = None,
    *,
    space: str = BEST,
    seed: int | None = None,
    precision: Precision = "int8",
    dynamic_batch: bool = False,
) -> ExportReport:
    """Write a subnet of a trained supernet as ONNX, with a report beside it.

    Parameters
    ----------
    job : the job
    subnet : a subnet code, `largest` or `smallest`
    output : the file to write; one in the work folder's `exported` by default
    space, seed : of the supernet, as in `train_supernet`
    precision : "int8", or "float32" for the same weights without quantizers
    dynamic_batch : any number of images at a time

    Returns
    -------
    the report; `<output>.json` has it too

    Raises
    ------
    ConfigError
        There is no such supernet yet.
    CodeError
        No subnet of the space.
    CheckpointError
        The supernet's file is damaged, or has no LSQ+ phase behind it.
    FileAccessError
        The file cannot be written.
    """
    torch.set_num_threads(1)
    code = chosen_space(job, space)
    path = supernets_folder(job, seed) / f"{code}.pt"
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such supernet; train it first (`spaceevo train --job {job.path.name} "
            f"--space {code}`)"
        )
    supernet = load_supernet(path, job.hyperspace, code)
    if precision == "int8" and not supernet.image.enabled:
        raise CheckpointError(
            f"{path}: a supernet without an LSQ+ phase has no ranges; expected one trained with "
            "epochs in `int8`, or precision float32"
        )
    chosen = named_subnet(supernet, subnet)
    config, data = job.config.supernet, images(job)
    batches = config.batch_size, config.recalibration_batches
    wanted = INT8 if precision == "int8" else FP32
    static = calibrated_subnet(supernet, chosen, data, *batches, wanted)
    about = {"space": code, "subnet": chosen, "precision": precision}
    about |= {"mean": data.mean, "std": data.std}
    model = onnx_model(
        static,
        job.hyperspace.subnet_blocks(code, chosen),
        chosen.resolution,
        precision,
        dynamic_batch=dynamic_batch,
        about={key: str(value) for key, value in about.items()},
    )
    if output is None:
        # A code is too long for a file's name.
        name = subnet if subnet in (LARGEST, SMALLEST) else digest(str(chosen))[:8]
        output = job.exported_path / f"{code}-{name}.{precision}.onnx"
    save_onnx(model, output)
    compared = held_out_batches(data, chosen.resolution, _BATCH, "Comparing with torch")
    report = ExportReport(
        file=output.name,
        space=str(code),
        subnet=str(chosen),
        resolution=chosen.resolution,
        precision=precision,
        mean=data.mean,
        std=data.std,
        operators=operators(model),
        agreement=agreement(output, static, compared),
    )
    write_atomically(output.with_name(f"{output.name}.json"), to_json(report))
    return report


def named_subnet(supernet: Supernet, name: str) -> SubnetCode:
    """The subnet of a code, or the `largest` or `smallest`; raises `CodeError`."""
    ends = {LARGEST: supernet.largest, SMALLEST: supernet.smallest}
    if name in ends:
        return ends[name]
    return supernet.hyperspace.subnet(supernet.space, name)
