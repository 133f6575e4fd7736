"""From a trained supernet of a job to the INT8 file of one subnet, ONNX or TFLite."""

from __future__ import annotations

from pathlib import Path

from ..deploy.onnx_file import onnx_model, save_onnx
from ..deploy.runtime import Agreement, Operators, agreement, operators
from ..deploy.sessions import TFLITE
from ..deploy.tflite_file import tflite_model
from ..device import one_thread
from ..errors import CodeError, ConfigError
from ..files import Record, digest, require_writable, to_json, write_atomically
from ..hyperspace import SpaceCode, SubnetCode
from ..latency.devices import runtime_module
from ..latency.devices.onnx_runtime import EXACT_SUMS
from ..latency.graph import OPSET, Precision
from ..quant import FP32, INT8
from ..supernet.data import held_out_batches
from ..supernet.evaluation import calibrated_subnet
from ..supernet.model import Supernet
from .distillation import images
from .job import Job
from .subnets import found_subnets
from .supernets import BEST, chosen_space, load_trained

LARGEST, SMALLEST = "largest", "smallest"
# With a number: the best subnet of the search within its first, second, … latency constraint.
SEQNET = "seqnet"
# Key of a file's metadata that tells which hyperspace its codes are of.
HYPERSPACE = "hyperspace"
_BATCH = 250


class ExportReport(Record, frozen=True):
    """What was exported, and how it compares with what was trained.

    Attributes
    ----------
    file : name of the file
    space, subnet, resolution : what it is; it takes images of so many pixels
    precision : "int8" or "float32"
    mean, std : what pixels of 0 to 1 are normalized with, one value or one a channel
    opset : of ONNX; none in TFLite
    runtime : the installed runtime that the following is of
    operators : what it makes of the file
    agreement : with the network in torch, on the held-out images
    demanded : what the runtime computes on another range than the learned one, how often, and why
    """

    file: str
    space: str
    subnet: str
    resolution: int
    precision: Precision
    mean: tuple[float, ...]
    std: tuple[float, ...]
    opset: int | None
    runtime: str
    operators: Operators
    agreement: Agreement
    demanded: dict[str, str]

    @property
    def outcome(self) -> str:
        """A few lines for people."""
        found, stays = self.agreement, self.operators.in_float
        opset = f"opset {self.opset}, " if self.opset else ""
        lines = [f"{self.file}: {opset}{self.precision}, {self.resolution} px, {self.subnet}"]
        if found.accuracy is not None and found.network_accuracy is not None:
            lines.append(
                f"accuracy {found.accuracy:.2%} in {self.runtime}, {found.network_accuracy:.2%} in "
                f"torch, on {found.images:,} held-out images"
            )
        lines.append(
            f"the same answer to {found.same:.2%}; largest difference of a logit "
            f"{found.largest_difference:.3g}, where logits deviate by {found.logit_deviation:.3g}"
        )
        if self.precision == "int8":
            names = [f"{n} {op} ({self.operators.reasons[op]})" for op, n in stays.items()]
            lines.append(f"in float: {'; '.join(names) or 'nothing'}")
        if self.precision == "int8" and self.opset:
            lines.append(
                f'CPUs without VNNI need the session option {EXACT_SUMS} = "1", or sums saturate'
            )
        lines += [f"not on the learned range: {what}, {why}" for what, why in self.demanded.items()]
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
    """Write a subnet of a trained supernet as ONNX or TFLite, with a report beside it.

    Parameters
    ----------
    job : the job
    subnet : what `named_subnet` takes
    output : the file to write, `.tflite` or else ONNX; by default that of `exported_path`
    space, seed : of the supernet, as in `train_supernet`
    precision : "int8", or "float32" for the same weights without quantizers
    dynamic_batch : any number of images at a time; ONNX only

    Returns
    -------
    the report; `<output>.json` has it too

    Raises
    ------
    ConfigError
        There is no such supernet yet, or a TFLite file is to take any number of images.
    DeviceError
        ai-edge-litert, which TFLite files need, is not installed; the message says what to install.
    CodeError
        No subnet of the space, or none of the search's.
    CheckpointError
        The supernet's file is damaged, or has no LSQ+ phase behind it.
    FileAccessError
        The file cannot be written.
    """
    as_tflite = output is not None and output.suffix == TFLITE
    if as_tflite:
        _check_tflite(str(output), dynamic_batch)
    code = chosen_space(job, space)
    supernet = load_trained(job, code, seed, quantized=precision == "int8")
    chosen = named_subnet(job, supernet, subnet, seed)
    output = output or exported_path(job, code, subnet, seed, precision)
    # Before the subnet is recalibrated, which takes a while.
    require_writable(output)
    config, data = job.config.supernet, images(job)
    batches = config.batch_size, config.recalibration_batches
    wanted = INT8 if precision == "int8" else FP32
    with one_thread():
        static = calibrated_subnet(supernet, chosen, data, *batches, wanted)
    about = {"space": code, "subnet": chosen, "precision": precision}
    about |= {HYPERSPACE: job.hyperspace.fingerprint, "mean": data.mean, "std": data.std}
    told = {key: str(value) for key, value in about.items()}
    what = static, job.hyperspace.subnet_blocks(code, chosen), chosen.resolution, precision
    demanded: dict[str, str] = {}
    if as_tflite:
        tflite = tflite_model(*what, about=told)
        write_atomically(output, tflite.content)
        found, demanded = tflite.operators, tflite.demanded
    else:
        model = onnx_model(*what, dynamic_batch=dynamic_batch, about=told)
        save_onnx(model, output)
        found = operators(model)
    compared = held_out_batches(data, chosen.resolution, _BATCH, "Comparing with torch")
    with one_thread():
        agreed = agreement(output, static, compared)
    report = ExportReport(
        file=output.name,
        space=str(code),
        subnet=str(chosen),
        resolution=chosen.resolution,
        precision=precision,
        mean=data.mean,
        std=data.std,
        opset=None if as_tflite else OPSET,
        runtime="LiteRT" if as_tflite else "ONNX Runtime",
        operators=found,
        agreement=agreed,
        demanded=demanded,
    )
    write_atomically(output.with_name(f"{output.name}.json"), to_json(report))
    return report


def exported_path(
    job: Job,
    space: SpaceCode,
    subnet: str,
    seed: int | None = None,
    precision: Precision = "int8",
    suffix: str = ".onnx",
) -> Path:
    """The file of a subnet in the job's work folder, if no other is named."""
    # A code is too long for a file's name.
    name = digest(subnet)[:8] if "_" in subnet else subnet
    other_seed = "" if job.seed(seed) == job.config.seed else f"-seed{seed}"
    return job.exported_path / f"{space}{other_seed}-{name}.{precision}{suffix}"


def _check_tflite(output: str, dynamic_batch: bool) -> None:
    if dynamic_batch:
        raise ConfigError(
            f"{output}: a TFLite file takes one image; its input can be resized where it runs. "
            "Expected an ONNX file, or no dynamic batch"
        )
    runtime_module("nni_spaceevo.latency.devices.litert", output, "litert")


def named_subnet(job: Job, supernet: Supernet, name: str, seed: int | None = None) -> SubnetCode:
    """A subnet of a trained supernet.

    Parameters
    ----------
    job, supernet, seed : the supernet
    name : a subnet code, `largest`, `smallest`, or `seqnet1`, `seqnet2`, … for the best one that
        the search of its subnets has found within the first, second, … latency constraint

    Raises
    ------
    ConfigError
        The subnets have not been searched yet.
    CodeError
        No subnet of the space, or none of the search's.
    """
    ends = {LARGEST: supernet.largest, SMALLEST: supernet.smallest}
    number = name.removeprefix(SEQNET)
    if name in ends:
        return ends[name]
    if name.startswith(SEQNET) and number.isdecimal():
        results = found_subnets(job, supernet.space, seed)
        asked = results.asked_ms
        if not 1 <= int(number) <= len(asked):
            raise CodeError(
                f"subnet {name!r}: the search of {supernet.space} had {len(asked)} latency "
                f"constraints; expected {SEQNET}1 to {SEQNET}{len(asked)}"
            )
        within = dict(zip(results.constraints_ms, results.best, strict=True))
        found = within.get(asked[int(number) - 1])
        if found is None:
            raise CodeError(
                f"subnet {name!r}: the search of {supernet.space} has found none within T = "
                f"{asked[int(number) - 1]:g} ms"
            )
        name = found.subnet
    try:
        return supernet.hyperspace.subnet(supernet.space, name)
    except CodeError as error:
        raise CodeError(f"no subnet of {supernet.space}: {error}") from error
