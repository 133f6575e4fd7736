"""Whether every subnet of a trained supernet is INT8 already, and what quantizing one later costs.

Takes the supernet that `spaceevo train` has left, or trains it, and judges its largest, its
smallest and random subnets on all held-out images, each in four ways, by the same weights:

- FP32: without quantizers, BatchNorm's statistics taken from training images;
- INT8: with the ranges that training has learned, every tensor on its grid as fake quantization
  puts it, statistics taken likewise. Nothing is trained again, and no range is calibrated;
- twice, the FP32 subnet as ONNX after ONNX Runtime's static post-training quantization: BatchNorm
  folded, uint8 activations, int8 weights per channel, ranges from 512 training images by their
  extremes or by percentile.

FP32 means the weights after the LSQ+ phase: those of the end of the FP32 phase are not kept. What
the subnets that training evaluates reached then is reported beside, from the run's epochs. As LSQ+
has made the weights fit for INT8, post-training quantization may gain from it too.

Of 10,000 images, one point is 100. So each difference has a standard error: that of a mean over
images, each counted in both ways, so that only those on which the two disagree add to it.

Writes `quantized_for_all.json`, `.md` (the table) and `.png` beside this script. Each subnet's
answers are kept in the job's work folder; a run that was killed goes on there.

    python benchmarks/quantized_for_all.py --job JOB.yaml [--space CODE] [--seed N] [--subnets N]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from outcome import write_outcome
from provenance import provenance
from torch import Tensor
from tqdm import tqdm

from nni_spaceevo.cli.common import add_job, add_supernet
from nni_spaceevo.deploy.learned import Blocks
from nni_spaceevo.deploy.onnx_file import onnx_model
from nni_spaceevo.distill.config import FashionMNISTConfig
from nni_spaceevo.errors import ConfigError, QuantizationError, SpaceEvoError
from nni_spaceevo.files import Record, digest, plain, read_json, to_json, write_atomically
from nni_spaceevo.hyperspace import SubnetCode, mflops
from nni_spaceevo.jobs.distillation import images
from nni_spaceevo.jobs.job import Job
from nni_spaceevo.jobs.supernets import train_supernet
from nni_spaceevo.latency.devices.onnx_runtime import opened
from nni_spaceevo.latency.sampling import network
from nni_spaceevo.page import drawing
from nni_spaceevo.quant import FP32, INT8
from nni_spaceevo.supernet.data import LabelledImages, calibration_batches
from nni_spaceevo.supernet.evaluation import EVALUATION, calibrated_subnet
from nni_spaceevo.supernet.model import Subnet, Supernet
from nni_spaceevo.supernet.weights import load_supernet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nni_spaceevo.supernet.run import SupernetEpoch

PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy")
# Whole batches, for ONNX Runtime's percentiles want all batches to be alike.
CALIBRATION_BATCH, CALIBRATION_BATCHES = 64, 8
CALIBRATION_IMAGES = CALIBRATION_BATCH * CALIBRATION_BATCHES
PTQ = {"ptq_minmax": CalibrationMethod.MinMax, "ptq_percentile": CalibrationMethod.Percentile}
LABELS = {
    "int8": "INT8, learned ranges",
    "ptq_minmax": "PTQ, min-max",
    "ptq_percentile": "PTQ, percentile",
}
WITHIN = 0.005
_BATCH = 250

Answers = NDArray[np.bool_]
Run = Callable[[Tensor], Tensor]


# ---- what is measured -------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """A trained supernet, and what its subnets are judged with.

    Attributes
    ----------
    supernet : in INT8, on the CPU
    data : its images
    recalibration : batch size, and batches, that BatchNorm's statistics are taken from
    work : folder for the answers of any supernet's subnets
    """

    supernet: Supernet
    data: LabelledImages
    recalibration: tuple[int, int]
    work: Path

    @property
    def folder(self) -> Path:
        """Of these weights, images, settings and versions alone."""
        weights = [t.numpy().tobytes() for t in self.supernet.state_dict().values()]
        calibration = (CALIBRATION_BATCH, CALIBRATION_BATCHES)
        versions = [version(package) for package in PACKAGES]
        settings = f"{self.recalibration} {calibration} {versions}"
        return self.work / digest(EVALUATION, *weights, self.data.fingerprint, settings)


class Kept(Record, frozen=True):
    """What a subnet has answered.

    Attributes
    ----------
    code : the subnet
    images : held-out images
    right : by way, a bit for each image, 1 where the subnet names its label; in hexadecimal
    """

    code: str
    images: int
    right: dict[str, str]

    @classmethod
    def of(cls, code: SubnetCode, right: dict[str, Answers]) -> Kept:
        """The same, packed."""
        (count,) = {len(found) for found in right.values()}
        packed = {way: np.packbits(found).tobytes().hex() for way, found in right.items()}
        return cls(code=str(code), images=count, right=packed)

    @property
    def answers(self) -> dict[str, Answers]:
        """By way, whether the subnet names each image's label, shape (images,)."""
        bits = {w: np.frombuffer(bytes.fromhex(b), np.uint8) for w, b in self.right.items()}
        return {w: np.unpackbits(b, count=self.images).astype(bool) for w, b in bits.items()}


def subnets(supernet: Supernet, count: int, seed: int) -> dict[str, SubnetCode]:
    """The largest, the smallest and so many random subnets, all different, by their names.

    Raises
    ------
    ConfigError
        The space hardly has as many.
    """
    rng = np.random.default_rng(seed)
    found = dict.fromkeys((supernet.largest, supernet.smallest))
    wanted = len(found) + count
    for _ in range(1000 + 10 * count):
        if len(found) == wanted:
            break
        found.setdefault(supernet.hyperspace.random_subnet(supernet.space, rng))
    if len(found) < wanted:
        raise ConfigError(
            f"--subnets {count}: space {supernet.space} has hardly more than {len(found)} subnets"
        )
    names = ("largest", "smallest", *(f"random {i}" for i in range(1, count + 1)))
    return dict(zip(names, found, strict=False))


def measure(study: Study, code: SubnetCode) -> dict[str, Answers]:
    """Whether a subnet names each held-out image's label, in each way."""
    data = study.data
    int8, fp32 = (
        calibrated_subnet(study.supernet, code, data, *study.recalibration, precision)
        for precision in (INT8, FP32)
    )
    right = {"fp32": answers(fp32, data, code), "int8": answers(int8, data, code)}
    calibration = list(
        calibration_batches(data, code.resolution, CALIBRATION_BATCH, CALIBRATION_BATCHES)
    )
    blocks = study.supernet.hyperspace.subnet_blocks(study.supernet.space, code)
    model = exported(fp32, blocks, calibration[0])
    for way, method in PTQ.items():
        run = onnx_run(post_training_quantized(model, calibration, method))
        right[way] = answers(run, data, code)
    return right


@torch.no_grad()
def answers(run: Run, data: LabelledImages, code: SubnetCode) -> Answers:
    """Whether the logits that `run` gives to each held-out image are highest for its label."""
    assert data.test_labels is not None
    parts = [
        run(data.test_batch(index, code.resolution)).argmax(1) == data.test_labels[index]
        for index in torch.arange(data.test_size).split(_BATCH)
    ]
    return torch.cat(parts).numpy()


def measured(study: Study, codes: Iterable[SubnetCode]) -> Iterator[dict[str, Answers]]:
    """Answers of subnets, those of an earlier run from its files."""
    folder = study.folder
    for code in codes:
        path = folder / f"{digest(str(code))}.json"
        if not path.is_file():
            write_atomically(path, to_json(Kept.of(code, measure(study, code))))
        yield read_json(path, Kept).answers


# ---- ONNX Runtime -------------------------------------------------------------------------------


def exported(subnet: Subnet, blocks: Blocks, batch: Tensor) -> onnx.ModelProto:
    """A subnet without quantizers as ONNX for batches of any size, BatchNorm folded.

    Parameters
    ----------
    subnet : in FP32 and evaluation mode
    blocks : those of its stages
    batch : images (n, channels, resolution, resolution) on which both must give the same logits

    Raises
    ------
    QuantizationError
        The logits differ.
    """
    model = onnx_model(subnet, blocks, subnet.code.resolution, "float32", dynamic_batch=True)
    _require_same(model, subnet, batch)
    return model


def _require_same(model: onnx.ModelProto, subnet: Subnet, batch: Tensor) -> None:
    with torch.no_grad():
        ours, theirs = subnet(batch), onnx_run(model)(batch)
    apart = float((ours - theirs).abs().max() / ours.abs().max())
    if not apart < 1e-3:
        raise QuantizationError(
            f"subnet {subnet.code}: logits of its ONNX file are {apart:.2g} of the largest apart "
            "from its own; expected less than 0.001"
        )


class _Images(CalibrationDataReader):
    """Batches of images as ONNX Runtime asks for them."""

    def __init__(self, batches: list[Tensor]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._left, None)
        return None if batch is None else {"input": batch.numpy()}


def post_training_quantized(
    model: onnx.ModelProto, calibration: list[Tensor], method: CalibrationMethod
) -> onnx.ModelProto:
    """A model in QDQ form, by ONNX Runtime's own defaults but for what the script says.

    Parameters
    ----------
    model : as `exported` makes it
    calibration : batches of one size
    method : how ranges follow from what is seen
    """
    with tempfile.TemporaryDirectory() as place:
        # As a file: of one in memory the weights go to a second file, which onnx refuses to read.
        given, prepared, quantized = (Path(place) / f"{name}.onnx" for name in "abc")
        onnx.save(model, given)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        # It prints what it does, into the progress bar.
        with contextlib.redirect_stdout(None):
            quantize_static(
                prepared,
                quantized,
                _Images(calibration),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                calibrate_method=method,
            )
        return onnx.load(quantized)


def onnx_run(model: onnx.ModelProto) -> Run:
    """A model as ONNX Runtime runs it on this machine's CPU, all optimisations on."""
    session = opened(model, threads=torch.get_num_threads())
    return lambda batch: torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])


# ---- what comes out -----------------------------------------------------------------------------


def gap(right: Answers, reference: Answers) -> dict[str, float]:
    """How many points one way is above another, `gap`, with its standard `error`.

    Parameters
    ----------
    right, reference : answers of one subnet to n images, (n,), or of several, (subnets, n), whose
        mean gap it is then: subnets err on the same images, so that they are no separate samples
    """
    apart = right.astype(float) - reference
    by_image = np.atleast_2d(apart).mean(0)
    error = by_image.std() / np.sqrt(len(by_image))
    return {"gap": round(100 * float(by_image.mean()), 4), "error": round(100 * float(error), 4)}


def row(name: str, code: SubnetCode, size: float, right: dict[str, Answers]) -> dict[str, Any]:
    """A subnet's accuracies in percent, and the images that each way loses and gains on FP32."""
    fp32 = right["fp32"]
    ways = {
        way: {
            "accuracy": round(100 * float(right[way].mean()), 4),
            **gap(right[way], fp32),
            "lost": int((fp32 & ~right[way]).sum()),
            "gained": int((right[way] & ~fp32).sum()),
        }
        for way in LABELS
    }
    fp32_accuracy = round(100 * float(fp32.mean()), 4)
    return {
        "subnet": name,
        "code": str(code),
        "mflops": round(size, 4),
        "fp32": fp32_accuracy,
        **ways,
    }


def summary(found: list[dict[str, Answers]]) -> dict[str, Any]:
    """Of all subnets: the gap to FP32 of each way, and of ours to each post-training one."""
    stacked = {way: np.stack([right[way] for right in found]) for way in found[0]}
    fp32 = stacked["fp32"]
    result: dict[str, Any] = {}
    for way in LABELS:
        # In images, so that a gap of exactly half a point is within.
        gaps = stacked[way].sum(1) - fp32.sum(1)
        largest = gaps[np.abs(gaps).argmax()]
        mean = gap(stacked[way], fp32)
        result[way] = {
            "largest_gap": round(100 * float(largest) / fp32.shape[1], 4),
            "mean_gap": mean["gap"],
            "mean_gap_error": mean["error"],
            "share_within_half_a_point": float(np.mean(np.abs(gaps) <= WITHIN * fp32.shape[1])),
        }
    result["int8_above"] = {way: gap(stacked["int8"], stacked[way]) for way in PTQ}
    return result


def phase_ends(epochs: Iterable[SupernetEpoch]) -> dict[str, Any]:
    """Accuracies in percent that training has seen at the end of each phase, by precision."""
    ends: dict[str, Any] = {}
    for epoch in epochs:
        by_precision = {"fp32": epoch.fp32, "int8": epoch.int8}
        if epoch.fp32 is not None:
            ends[f"end_of_{epoch.precision}_phase"] = {
                precision: {k: round(100 * v, 4) for k, v in plain(found).items()}
                for precision, found in by_precision.items()
                if found is not None
            }
    return ends


def table(result: dict[str, Any]) -> str:
    """Two Markdown tables, all subnets and what they come to; then what training has seen."""
    errors = "gap ± standard error, points"
    titles = [part for label in LABELS.values() for part in (f"{label}, %", errors)]
    lines = [
        f"| subnet | MFLOPs | FP32, % | {' | '.join(titles)} |",
        "|---|" + "---|" * (2 + len(titles)),
    ]
    for r in result["subnets"]:
        cells = [f"{r[w]['accuracy']:.2f} | {_signed(r[w]['gap'], r[w]['error'])}" for w in LABELS]
        lines.append(
            f"| {r['subnet']} | {r['mflops']:.2f} | {r['fp32']:.2f} | {' | '.join(cells)} |"
        )
    phases = _phase_lines(result["accuracies_in_training"])
    return "\n".join([*lines, "", *_summary_lines(result["summary"]), "", *phases])


def _signed(value: float, error: float) -> str:
    return f"{value:+.2f} ± {error:.2f}"


def _summary_lines(found: dict[str, Any]) -> list[str]:
    ours = found["int8_above"]
    cells = {
        "largest gap, points": [f"{found[w]['largest_gap']:+.2f}" for w in LABELS],
        "mean gap ± standard error, points": [
            _signed(found[w]["mean_gap"], found[w]["mean_gap_error"]) for w in LABELS
        ],
        "subnets within 0.5 points": [
            f"{found[w]['share_within_half_a_point']:.0%}" for w in LABELS
        ],
        "ours above it ± standard error, points": [
            _signed(ours[w]["gap"], ours[w]["error"]) if w in ours else "–" for w in LABELS
        ],
    }
    return [
        f"| | {' | '.join(LABELS.values())} |",
        "|---|" + "---|" * len(LABELS),
        *(f"| {name} | {' | '.join(row)} |" for name, row in cells.items()),
    ]


def _phase_lines(ends: dict[str, Any]) -> list[str]:
    lines = ["Seen in training, random being the mean of a few random subnets:", ""]
    for end, by_precision in ends.items():
        for precision, found in by_precision.items():
            shown = ", ".join(f"{name} {value:.2f} %" for name, value in found.items())
            lines.append(f"- {end.replace('_', ' ')}, {precision.upper()}: {shown}")
    return lines


def picture(rows: list[dict[str, Any]]) -> bytes:
    """INT8 accuracy over FP32 accuracy, ours and post-training quantization's, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with drawing():
        # Each panel has its own scale: one way that fails must not hide the other.
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True)
        _panel(left, rows, {"int8": "C0"})
        _panel(right, rows, dict(zip(PTQ, ("C1", "C2"), strict=True)))
        left.set_title("learned in training", fontsize=10)
        right.set_title("ONNX Runtime, quantized after training", fontsize=10)
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _panel(axes: Axes, rows: list[dict[str, Any]], colors: dict[str, str]) -> None:
    fp32 = [r["fp32"] for r in rows]
    ends = np.array([min(fp32) - 0.5, max(fp32) + 0.5])
    half = 100 * WITHIN
    axes.fill_between(ends, ends - half, ends + half, color="0.9", zorder=0, label="± 0.5 points")
    axes.plot(ends, ends, color="0.6", linewidth=1, zorder=1)
    for way, color in colors.items():
        values, errors = zip(*((r[way]["accuracy"], r[way]["error"]) for r in rows), strict=True)
        style: dict[str, Any] = {
            "color": color,
            "label": LABELS[way],
            "markersize": 4,
            "elinewidth": 0.8,
        }
        axes.errorbar(fp32, values, errors, fmt="o", **style)
    axes.set(xlabel="FP32 accuracy, %", ylabel="INT8 accuracy, %", xlim=tuple(ends))
    axes.legend(frameon=False)


# ---- the whole of it ------------------------------------------------------------------------


def read_job(path: Path, dataset: Path | None) -> Job:
    """The job, with FashionMNIST's files from another folder if one is given.

    Raises
    ------
    ConfigError
        Its images are others than FashionMNIST.
    """
    job = Job(path)
    if dataset is not None:
        if not isinstance(job.dataset, FashionMNISTConfig):
            raise ConfigError(
                f"--dataset {dataset}: {job.path} is of {job.dataset_name}; expected fashion_mnist"
            )
        job.dataset = replace(job.dataset, path=str(dataset.resolve()))
    return job


def new_study(job: Job, supernet: Supernet) -> Study:
    """The study of a job's supernet.

    Raises
    ------
    ConfigError
        It has had no LSQ+ phase, or there are too few images to calibrate with.
    """
    if not supernet.image.enabled:
        raise ConfigError(f"{job.path}: supernet: int8: epochs is 0; expected an LSQ+ phase")
    data, settings = images(job), job.config.supernet
    if data.train_size < CALIBRATION_IMAGES:
        raise ConfigError(
            f"{job.path}: dataset: {data.train_size} training images; expected at least "
            f"{CALIBRATION_IMAGES}, which post-training quantization is calibrated with"
        )
    recalibration = settings.batch_size, settings.recalibration_batches
    return Study(supernet, data, recalibration, job.work / "quantized_for_all")


def results(job: Job, space: str, seed: int | None, count: int) -> dict[str, Any]:
    """Train what is left to train, measure what is left to measure, and sum up."""
    trained = train_supernet(job, space, seed)
    assert trained is not None, "one process alone"
    supernet = load_supernet(trained.path, job.hyperspace, trained.space)
    study = new_study(job, supernet)
    codes = subnets(supernet, count, trained.seed)
    bar = tqdm(measured(study, codes.values()), "Judging subnets", len(codes))
    found = list(bar)
    rows = []
    for (name, code), right in zip(codes.items(), found, strict=True):
        size = mflops(network(job.hyperspace, supernet.space, code).kernels)
        rows.append(row(name, code, size, right))
    return {
        "dataset": job.dataset_name,
        "space": trained.space,
        "seed": trained.seed,
        "test_images": study.data.test_size,
        "calibration_images": CALIBRATION_IMAGES,
        "accuracies_in_training": phase_ends(trained.epochs),
        "summary": summary(found),
        "subnets": rows,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_job(parser)
    add_supernet(parser)
    parser.add_argument("--subnets", type=int, default=50, help="random ones")
    parser.add_argument("--dataset", type=Path, help="folder of FashionMNIST's files")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    try:
        job = read_job(options.job, options.dataset)
        found = results(job, options.space, options.seed, options.subnets)
    except SpaceEvoError as error:
        raise SystemExit(f"error: {error}") from error
    result = {**provenance(*PACKAGES), **found}
    write_outcome(options.output, result, table(result), picture(result["subnets"]))


if __name__ == "__main__":
    main()
