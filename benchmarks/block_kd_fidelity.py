"""Whether block losses tell good subnets from bad ones, on FashionMNIST.

Subnets are drawn uniformly from one space of four block types. Each is trained alone, from scratch
and with labels, for a small fixed budget; and each gets the sum of its sub-stages' block losses
from stages that were distilled once. Kendall's tau between the two, with bootstrap intervals over
the subnets, for several ways to distil and to judge. Writes `block_kd_fidelity.json` and `.png`
beside this script. Every training keeps its result in WORK; a run that was killed goes on there.
What subnets reach alone and what block losses say do not depend on each other, and either may be
taken from an earlier output.

    python benchmarks/block_kd_fidelity.py WORK [--accuracies EARLIER.json] [--losses EARLIER.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from msgspec import structs
from numpy.typing import NDArray
from provenance import provenance
from torch import Tensor, nn

from nni_spaceevo.distill.config import DistillConfig, FashionMNISTConfig, TeacherConfig
from nni_spaceevo.distill.data import ImageData, batches, load_dataset
from nni_spaceevo.distill.loss import nsr_loss
from nni_spaceevo.distill.stage import StageDistiller, StageRun, StageTask, SubStage
from nni_spaceevo.distill.teachers import Teacher, train_teacher
from nni_spaceevo.distill.teachers.trained import one_cycle
from nni_spaceevo.files import Record, digest, exclusive, plain, to_json, write_atomically
from nni_spaceevo.hyperspace import (
    BlockOption,
    Hyperspace,
    Stage,
    SubnetCode,
    mflops,
    mparams,
)
from nni_spaceevo.latency.sampling import network
from nni_spaceevo.network import StaticNetwork, recalibrate_batch_norm
from nni_spaceevo.quant import FP32, INT8, Precision, set_precision

PACKAGES = ("torch", "torchvision", "numpy")
HYPERSPACE = Hyperspace(
    schema=1,
    name="fashion",
    in_channels=1,
    # One resolution: a loss is against the teacher's features at the same resolution, so block
    # losses are not meant to compare resolutions.
    resolutions=(28,),
    distill_resolutions=(28,),
    block_types=(
        BlockOption(type="mbv2_res", kernel_sizes=(3, 5), expands=(1, 2, 4), activation="relu6"),
        BlockOption(type="fused_mb_res", kernel_sizes=(3, 5), expands=(1, 2), activation="swish"),
        BlockOption(type="mbv3_res", kernel_sizes=(3, 5), expands=(1, 2, 4), activation="hswish"),
        BlockOption(type="resnet", kernel_sizes=(3, 5), expands=(0.5, 1), activation="relu"),
    ),
    stages=(
        Stage(
            name="first_conv",
            widths=(8,),
            stride=2,
            block=BlockOption(type="conv", kernel_sizes=(3,)),
        ),
        Stage(name="stage1", widths=(2, 4, 8, 16), depths=(1, 2, 3)),
        Stage(name="stage2", widths=(4, 8, 16, 32), depths=(1, 2, 3), stride=2),
        Stage(name="stage3", widths=(4, 8, 16, 32), depths=(1, 2, 3)),
        Stage(name="stage4", widths=(8, 16, 32, 64), depths=(1, 2, 3), stride=2),
        Stage(name="feature_mix", widths=(64,), block=BlockOption(type="pool_conv")),
        Stage(name="logits", widths=(10,), block=BlockOption(type="linear", activation="none")),
    ),
)
SPACE = HYPERSPACE.space("fashion-0123-0000")
FloatArray = NDArray[np.float64]
Loss = Callable[[Tensor, Tensor], Tensor]


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine between the two features of a pixel, averaged."""
    return 1 - F.cosine_similarity(student, teacher, dim=1).mean()


LOSSES: dict[str, Loss] = {"nsr": nsr_loss, "mse": F.mse_loss, "cosine": cosine_loss}
# The mean of the stages' losses ranks as their sum does.
JOINS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "sum": lambda losses: losses.sum(1),
    "sum of logarithms": lambda losses: np.log(losses).sum(1),
    "largest": lambda losses: losses.max(1),
}


TEACHER = TeacherConfig(widths=(16, 32, 48, 64, 96), epochs=6, batch_size=128, min_accuracy=0.88)
NARROW = structs.replace(TEACHER, widths=(8, 8, 16, 24, 32))


class Way(Record, frozen=True):
    """One way to distil all stages.

    Attributes
    ----------
    loss : of `LOSSES`, to train with
    config : epochs and learning rates
    teacher : whose features are learned
    images : that stages are distilled on
    """

    loss: str
    config: DistillConfig
    teacher: TeacherConfig = TEACHER
    images: int = 5000

    @property
    def name(self) -> str:
        """Loss, images, epochs, the teacher's last width, and what else is not the default."""
        given, usual = plain(self.config), plain(DistillConfig())
        others = [k for k in given if given[k] != usual[k] and not k.startswith("epochs")]
        epochs = f"{self.images}x{given['epochs_fp32']}+{given['epochs_int8']}"
        teacher = f"teacher={self.teacher.widths[-1]}"
        return " ".join([self.loss, epochs, teacher, *(f"{k}={given[k]:g}" for k in others)])


class Study(Record, frozen=True):
    """What is drawn, trained and judged.

    Attributes
    ----------
    subnets, seed : how many are drawn, and by which seed
    seeds : trainings of each subnet alone
    alone_images, alone_epochs_fp32, alone_epochs_int8 : budget of such a training; INT8 epochs may
        be a share of one
    alone_batch, alone_rate_fp32, alone_rate_int8 : Adam with a one-cycle schedule
    teacher_images : that teachers are trained on
    calibration_images, held_out_images : of a block loss
    test_images : of an accuracy
    ways : to distil, the default first
    """

    ways: tuple[Way, ...]
    subnets: int = 44
    seed: int = 0
    seeds: int = 2
    alone_images: int = 40000
    alone_epochs_fp32: float = 1
    alone_epochs_int8: float = 0.125
    alone_batch: int = 32
    alone_rate_fp32: float = 3e-3
    alone_rate_int8: float = 1.5e-4
    teacher_images: int = 20000
    calibration_images: int = 512
    held_out_images: int = 2000
    test_images: int = 10000


DEFAULT = DistillConfig()
STUDY = Study(
    ways=(
        Way(loss="nsr", config=DEFAULT),
        Way(loss="nsr", config=DEFAULT, teacher=NARROW),
        Way(loss="mse", config=DEFAULT, teacher=NARROW),
        Way(loss="nsr", config=DistillConfig(epochs_fp32=4), teacher=NARROW, images=20000),
        Way(loss="nsr", config=DistillConfig(epochs_fp32=8), teacher=NARROW, images=20000),
    )
)


# ---- what is trained ------------------------------------------------------------------------


def subnets(study: Study) -> list[SubnetCode]:
    """The subnets, drawn uniformly and all different."""
    rng = np.random.default_rng(study.seed)
    found: dict[SubnetCode, None] = {}
    while len(found) < study.subnets:
        found.setdefault(HYPERSPACE.random_subnet(SPACE, rng))
    return list(found)


@dataclass(frozen=True)
class Place:
    """Where a study's images come from and its results go.

    Attributes
    ----------
    study : the settings
    dataset : folder of FashionMNIST's files
    work : folder for the results of any settings
    """

    study: Study
    dataset: Path
    work: Path

    @property
    def folder(self) -> Path:
        """Of these settings alone; a way to distil has its own folder within."""
        others = {k: v for k, v in plain(self.study).items() if k != "ways"}
        return self.work / digest(to_json(others), HYPERSPACE.fingerprint)

    def data(self, images: int) -> ImageData:
        """The first training images and all held-out ones, not augmented: budgets are small."""
        whole = _fashion_mnist(self.dataset)
        assert whole.train_labels is not None and whole.test_labels is not None
        test = self.study.test_images
        return replace(
            whole,
            train_images=whole.train_images[:images],
            train_labels=whole.train_labels[:images],
            test_images=whole.test_images[:test],
            test_labels=whole.test_labels[:test],
            augment=None,
        )


@cache
def _fashion_mnist(folder: Path) -> ImageData:
    data = load_dataset(FashionMNISTConfig(path=str(folder.resolve())))
    assert isinstance(data, ImageData)
    return data


def accuracy(model: nn.Module, data: ImageData) -> float:
    """Share of the held-out images whose label `model` names, in evaluation mode."""
    assert data.test_labels is not None
    model.eval()
    right = 0
    with torch.no_grad():
        for index in torch.arange(data.test_size).split(500):
            named = model(data.test_batch(index, 28)).argmax(1)
            right += int((named == data.test_labels[index]).sum())
    return right / data.test_size


def fit(
    model: nn.Module, data: ImageData, epochs: float, batch: int, rate: float, seed: int
) -> None:
    """Train on labels with Adam and a one-cycle schedule; `epochs` may be a share of one."""
    assert data.train_labels is not None
    rng = np.random.default_rng(seed)
    steps = max(1, round(epochs * data.train_size / batch))
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    model.train()
    done = 0
    while done < steps:
        for index in batches(data.train_size, batch, rng):
            for group in optimizer.param_groups:
                group["lr"] = rate * one_cycle(done / steps)
            loss = F.cross_entropy(model(data.train_batch(index, 28)), data.train_labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                return


def train_alone(place: Place, number: int, seed: int) -> None:
    """Train one subnet from scratch, in FP32 and then with LSQ+; keep both accuracies."""
    path = place.folder / "alone" / f"{number}-{seed}.json"
    if path.is_file():
        return
    study = place.study
    data = place.data(study.alone_images)
    torch.manual_seed(seed)
    model = StaticNetwork(HYPERSPACE, SPACE, subnets(study)[number])
    result = {}
    for precision, epochs, rate in (
        (FP32, study.alone_epochs_fp32, study.alone_rate_fp32),
        (INT8, study.alone_epochs_int8, study.alone_rate_int8),
    ):
        set_precision(model, precision)
        fit(model, data, epochs, study.alone_batch, rate, seed)
        result[precision.name] = accuracy(model, data)
    write_atomically(path, to_json(result))


def teacher_of(place: Place, way: Way) -> Teacher:
    """A way's teacher, trained by whichever process comes first."""
    path = place.folder / f"teacher-{way.teacher.widths[-1]}.pt"
    with exclusive(path, wait=True):
        data = place.data(place.study.teacher_images)
        return train_teacher(HYPERSPACE, data, way.teacher, place.study.seed, path)


def accuracy_path(place: Place, way: Way) -> Path:
    """Where the accuracy of a way's teacher is kept."""
    return place.folder / f"teacher-{way.teacher.widths[-1]}.json"


def teacher_accuracy(place: Place, way: Way) -> None:
    """Judge a way's teacher by the held-out images."""
    path = accuracy_path(place, way)
    if not path.is_file():
        data = place.data(place.study.teacher_images)
        write_atomically(path, to_json(accuracy(teacher_of(place, way), data)))


def loss_path(place: Place, way: Way, stage: int, precision: Precision) -> Path:
    """Where the block losses of one distilled stage are kept."""
    name = HYPERSPACE.searchable[stage].name
    return stage_folder(place, way) / f"{name}-{precision.name}.json"


def stage_folder(place: Place, way: Way) -> Path:
    """Checkpoints and block losses of one way to distil."""
    return place.folder / way.name.replace(" ", "_")


def substages(study: Study, stage: int) -> list[SubStage]:
    """The sub-stage of each subnet, with the channels that enter it."""
    i = HYPERSPACE.elastic.index(HYPERSPACE.searchable[stage])
    return [(code.stages[i - 1][-1].width, code.stages[i]) for code in subnets(study)]


def distil(place: Place, way: Way, stage: int) -> None:
    """Distil one stage, and judge all subnets' sub-stages before and after its LSQ+ phase."""
    int8_path = loss_path(place, way, stage, INT8)
    if int8_path.is_file():
        return
    study, teacher = place.study, teacher_of(place, way)
    data = place.data(way.images)
    task = StageTask(HYPERSPACE, stage, SPACE.blocks[stage], teacher, data, study.seed)
    run = StageRun(task, way.config, stage_folder(place, way))
    fp32_path = loss_path(place, way, stage, FP32)

    def judge_fp32() -> None:
        if len(run.losses) == way.config.epochs_fp32 and not fp32_path.is_file():
            write_atomically(fp32_path, to_json(judge(run.model, task, study)))

    # A run that was killed while it judged.
    judge_fp32()
    with mock.patch("nni_spaceevo.distill.stage.nsr_loss", LOSSES[way.loss]):
        model = run.run(lambda _: judge_fp32())
    write_atomically(int8_path, to_json(judge(model, task, study)))


@torch.no_grad()
def judge(model: StageDistiller, task: StageTask, study: Study) -> dict[str, list[float]]:
    """Every loss of every subnet's sub-stage, BatchNorm recalibrated, as the LUT does."""
    calibration, _ = task.train_features(torch.arange(study.calibration_images), 28)
    before, after = task.test_features(torch.arange(study.held_out_images), 28)
    found: dict[SubStage, dict[str, float]] = {}
    chosen = substages(study, task.stage)
    for substage in dict.fromkeys(chosen):
        recalibrate_batch_norm(model, calibration, substage)
        student = model(before, substage)
        found[substage] = {name: float(loss(student, after)) for name, loss in LOSSES.items()}
    return {name: [found[s][name] for s in chosen] for name in LOSSES}


Job = Callable[[], None]


def jobs(place: Place) -> list[Job]:
    """Everything to do, each with a file of its own; first the teacher that most wait for."""
    study = place.study
    stages = range(len(HYPERSPACE.searchable))
    return [
        partial(teacher_accuracy, place, study.ways[0]),
        *(
            partial(train_alone, place, i, seed)
            for seed in range(study.seeds)
            for i in range(study.subnets)
        ),
        *(partial(distil, place, way, stage) for way in study.ways for stage in stages),
        *(partial(teacher_accuracy, place, way) for way in study.ways[1:]),
    ]


def check_alike(place: Place, earlier: dict[str, Any], settings: Iterable[str]) -> None:
    """Raise `ValueError`, naming what differs, unless an earlier output had these settings.

    That of the subnets always counts.
    """
    here, there = json.loads(to_json(place.study)), earlier["study"]
    for key in ("subnets", "seed", *settings):
        if there.get(key) != here[key]:
            raise ValueError(f"study: {key} is {there.get(key)} there, not as here")
    if [row["code"] for row in earlier["subnets"]] != [str(c) for c in subnets(place.study)]:
        raise ValueError("subnets: other codes there than here")


def take_accuracies(place: Place, earlier: dict[str, Any]) -> None:
    """Keep what an earlier output says that subnets reach alone, as if they had been trained here.

    Raises
    ------
    ValueError
        Other subnets, or another budget; names the first setting that differs.
    """
    study = place.study
    budget = (k for k in plain(study) if k.startswith(("seeds", "alone", "test")))
    check_alike(place, earlier, budget)
    for i, row in enumerate(earlier["subnets"]):
        for seed in range(study.seeds):
            path = place.folder / "alone" / f"{i}-{seed}.json"
            write_atomically(path, to_json({p.name: row[p.name][seed] for p in (FP32, INT8)}))


def take_losses(place: Place, earlier: dict[str, Any]) -> None:
    """Keep an earlier output's block losses and teachers' accuracies, as if they came from here.

    Raises
    ------
    ValueError
        Other subnets, or another way to distil; names the first setting that differs.
    """
    study = place.study
    images = ("teacher_images", "calibration_images", "held_out_images", "test_images")
    check_alike(place, earlier, ("ways", *images))
    for way in study.ways:
        content = to_json(earlier["teacher_accuracies"][way.name])
        write_atomically(accuracy_path(place, way), content)
        for precision, stage in product((FP32, INT8), range(len(HYPERSPACE.searchable))):
            found = {
                loss: [
                    row["losses"][f"{way.name} {precision.name} {loss}"][stage]
                    for row in earlier["subnets"]
                ]
                for loss in LOSSES
            }
            write_atomically(loss_path(place, way, stage, precision), to_json(found))


def run_all(todo: Sequence[Job], workers: int, progress: Callable[[int], None]) -> None:
    """Run jobs, so many at a time, each on one thread."""
    if workers == 1:
        for done, job in enumerate(todo, 1):
            job()
            progress(done)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for done, future in enumerate([pool.submit(job) for job in todo], 1):
            future.result()
            progress(done)


# ---- what comes out ---------------------------------------------------------------------------


def kendall(a: FloatArray, b: FloatArray, counts: FloatArray) -> FloatArray:
    """Kendall's tau-b of resampled pairs.

    Parameters
    ----------
    a, b : (n,)
    counts : how often each of the n is in each resample, (r, n); pairs of one with itself are ties

    Returns
    -------
    (r,)
    """
    signs_a, signs_b = (np.sign(v[:, None] - v) for v in (a, b))

    def pairs(signs: FloatArray) -> FloatArray:
        total: FloatArray = ((counts @ signs) * counts).sum(1)
        return total

    return pairs(signs_a * signs_b) / np.sqrt(pairs(np.abs(signs_a)) * pairs(np.abs(signs_b)))


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of the subnets, the same for all that is compared.

    Attributes
    ----------
    counts : how often each subnet is in each resample, (r, n)
    """

    counts: FloatArray

    @classmethod
    def of(cls, n: int, resamples: int = 10000, seed: int = 0) -> Bootstrap:
        """Draw n of n, again and again."""
        rng = np.random.default_rng(seed)
        return cls(rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float))

    def tau(self, score: FloatArray, truth: FloatArray) -> tuple[float, float, float]:
        """Tau of all subnets, and the ends of its 95 % interval."""
        low, high = np.nanquantile(kendall(score, truth, self.counts), (0.025, 0.975))
        return self._all(score, truth), float(low), float(high)

    def difference(
        self, score: FloatArray, other: FloatArray, truth: FloatArray
    ) -> tuple[float, float, float]:
        """How much higher the tau of `score` is than that of `other`, with its interval."""
        ours, theirs = (kendall(s, truth, self.counts) for s in (score, other))
        low, high = np.nanquantile(ours - theirs, (0.025, 0.975))
        return self._all(score, truth) - self._all(other, truth), float(low), float(high)

    def _all(self, score: FloatArray, truth: FloatArray) -> float:
        return float(kendall(score, truth, np.ones((1, len(score))))[0])


@dataclass(frozen=True)
class Findings:
    """All that was measured, by subnet.

    Attributes
    ----------
    accuracy : `fp32` and `int8`, each (subnets, seeds)
    losses : by way to distil, precision and judging loss, each (subnets, stages)
    size : `MFLOPs` and `MParams`, each (subnets,)
    """

    accuracy: dict[str, FloatArray]
    losses: dict[tuple[str, str, str], FloatArray]
    size: dict[str, FloatArray]


def findings(place: Place) -> Findings:
    """Read the results of all jobs."""
    study = place.study
    alone = [
        [_read(place.folder / "alone" / f"{i}-{seed}.json") for seed in range(study.seeds)]
        for i in range(study.subnets)
    ]
    losses = {}
    for way in study.ways:
        for precision in (FP32, INT8):
            stages = range(len(HYPERSPACE.searchable))
            found = [_read(loss_path(place, way, s, precision)) for s in stages]
            for name in LOSSES:
                columns = np.array([f[name] for f in found]).T
                losses[way.name, precision.name, name] = columns
    kernels = [network(HYPERSPACE, SPACE, code).kernels for code in subnets(study)]
    size = {"MFLOPs": list(map(mflops, kernels)), "MParams": list(map(mparams, kernels))}
    return Findings(
        {p: np.array([[r[p] for r in row] for row in alone]) for p in ("fp32", "int8")},
        losses,
        {name: np.array(values) for name, values in size.items()},
    )


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def tau_row(boot: Bootstrap, found: Findings, score: FloatArray) -> dict[str, Any]:
    """Tau of a score against both mean accuracies, `[value, low, high]`."""
    return {p: _rounded(boot.tau(score, a.mean(1))) for p, a in found.accuracy.items()}


def way_rows(boot: Bootstrap, found: Findings, default: FloatArray) -> list[dict[str, Any]]:
    """Tau of every way to distil, judge and join the stages' losses."""
    truth = found.accuracy["int8"].mean(1)
    rows = []
    for (way, precision, judged), losses in found.losses.items():
        for join, joined in JOINS.items():
            score = -joined(losses)
            rows.append(
                {
                    "way": way,
                    "precision": precision,
                    "judged_by": judged,
                    "joined": join,
                    "tau": tau_row(boot, found, score),
                    "above_default": _rounded(boot.difference(score, default, truth)),
                }
            )
    return rows


def proxy_rows(boot: Bootstrap, found: Findings, default: FloatArray) -> list[dict[str, Any]]:
    """The same of what needs no training."""
    truth = found.accuracy["int8"].mean(1)
    return [
        {
            "proxy": name,
            "tau": tau_row(boot, found, size),
            "above_default": _rounded(boot.difference(size, default, truth)),
        }
        for name, size in found.size.items()
    ]


def stage_rows(
    boot: Bootstrap, found: Findings, losses: FloatArray, codes: Sequence[SubnetCode]
) -> list[dict[str, Any]]:
    """What each stage's loss alone tells, how much of the sum's spread is its own, what it follows.

    `follows` is tau between low losses and the width at which a sub-stage ends, and its depth.
    """
    total = losses.sum(1)
    elastic = [HYPERSPACE.elastic.index(stage) for stage in HYPERSPACE.searchable]
    chains = [[code.stages[i] for code in codes] for i in elastic]
    return [
        {
            "stage": stage.name,
            "block": HYPERSPACE.block_types[block].type,
            "loss": {"mean": round(float(loss.mean()), 4), "sd": round(float(loss.std()), 4)},
            "share_of_variance": round(float(np.cov(loss, total)[0, 1] / total.var(ddof=1)), 3),
            "tau": tau_row(boot, found, -loss),
            "follows": {
                "last_width": _rounded(boot.tau(-loss, np.array([c[-1].width for c in chain]))),
                "depth": _rounded(boot.tau(-loss, np.array([len(c) for c in chain]))),
            },
        }
        for stage, block, loss, chain in zip(
            HYPERSPACE.searchable, SPACE.blocks, losses.T, chains, strict=True
        )
    ]


def noise(boot: Bootstrap, found: Findings) -> dict[str, Any]:
    """How well accuracies of two seeds agree, and what tau that leaves to a perfect score.

    A perfect score is what the mean accuracy of a subnet tends to over many trainings. Its tau to
    the mean of two, as for normal distributions, is 2 / pi times the arc sine of the correlation.
    """
    rows = {}
    for precision, accuracies in found.accuracy.items():
        first, second = accuracies[:, 0], accuracies[:, 1]
        of_one, of_means = (first - second).var() / 2, accuracies.mean(1).var()
        reliability = max(0.0, 1 - of_one / 2 / of_means)
        rows[precision] = {
            "tau_between_seeds": _rounded(boot.tau(first, second)),
            "tau_of_a_perfect_score": round(float(2 / np.pi * np.arcsin(reliability**0.5)), 3),
            "sd_of_one_training": round(float(np.sqrt(of_one)), 5),
            "least": round(float(accuracies.mean(1).min()), 4),
            "most": round(float(accuracies.mean(1).max()), 4),
        }
    return rows


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(v, 3) for v in values]


def summary(place: Place, found: Findings) -> dict[str, Any]:
    """All figures, and the raw accuracies and losses that they come from."""
    study = place.study
    boot = Bootstrap.of(study.subnets)
    losses = found.losses[study.ways[0].name, "int8", "nsr"]
    default = -losses.sum(1)
    codes = subnets(study)
    return {
        "teacher_accuracies": {
            way.name: json.loads(accuracy_path(place, way).read_text()) for way in study.ways
        },
        "default": tau_row(boot, found, default),
        "noise": noise(boot, found),
        "stages": stage_rows(boot, found, losses, codes),
        "proxies": proxy_rows(boot, found, default),
        "ways": way_rows(boot, found, default),
        "subnets": [
            {
                "code": str(code),
                **{name: round(float(size[i]), 4) for name, size in found.size.items()},
                **{p: a[i].tolist() for p, a in found.accuracy.items()},
                "losses": {
                    " ".join(key): [round(float(v), 6) for v in values[i]]
                    for key, values in found.losses.items()
                },
            }
            for i, code in enumerate(codes)
        ],
    }


def picture(found: Findings, result: dict[str, Any], study: Study, path: Path) -> None:
    """Loss against accuracy, and the taus of all ways beside those of proxies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    accuracies = 100 * found.accuracy["int8"]
    losses = found.losses[study.ways[0].name, "int8", "nsr"].sum(1)
    spread = np.abs(accuracies - accuracies.mean(1, keepdims=True)).max(1)
    left.errorbar(losses, accuracies.mean(1), spread, fmt="none", ecolor="#b8bcc2", zorder=1)
    points = left.scatter(losses, accuracies.mean(1), c=found.size["MFLOPs"], s=26, zorder=2)
    figure.colorbar(points, ax=left, label="MFLOPs")
    value, low, high = result["default"]["int8"]
    left.set(
        xlabel="sum of block NSR losses, INT8",
        ylabel="accuracy trained alone, INT8, %",
        title=f"{study.subnets} subnets: tau {value:.2f} ({low:.2f} to {high:.2f})",
    )
    rows = figure_rows(result)
    for y, (_, (value, low, high), colour) in enumerate(reversed(rows)):
        right.plot([low, high], [y, y], color=colour)
        right.plot(value, y, "o", color=colour)
    right.set_yticks(range(len(rows)), [label for label, *_ in reversed(rows)])
    right.axvline(0.7, color="#b8bcc2", linestyle=":")
    right.set(xlabel="Kendall's tau to INT8 accuracy, 95 % interval")
    figure.savefig(path, metadata={"Software": None})


def figure_rows(result: dict[str, Any]) -> list[tuple[str, list[float], str]]:
    """Label, tau and colour of what the picture compares: each way judged by its own loss."""
    rows = [
        (f"{r['way']}, {r['precision']}", r["tau"]["int8"], "#2166ac")
        for r in result["ways"]
        if r["joined"] == "sum" and r["way"].split()[0] == r["judged_by"]
    ]
    rows += [(r["proxy"], r["tau"]["int8"], "#d6742a") for r in result["proxies"]]
    seeds = result["noise"]["int8"]["tau_between_seeds"]
    return [*rows, ("one training to another", seeds, "#8a8f98")]


def _taken(
    place: Place, path: Path | None, take: Callable[[Place, dict[str, Any]], None], key: str
) -> dict[str, Any]:
    """Take what an earlier output has, if one is given; returns where and when it was measured."""
    origin = provenance(*PACKAGES)
    if path is None:
        return origin
    earlier = json.loads(path.read_text())
    take(place, earlier)
    of_all = {name: earlier[name] for name in origin}
    found: dict[str, Any] = earlier.get(key, of_all)
    return found


def main() -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder for checkpoints and results")
    parser.add_argument("--dataset", type=Path, default=Path(FashionMNISTConfig().path))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--accuracies", type=Path, help="earlier output, for what subnets reach")
    parser.add_argument("--losses", type=Path, help="earlier output, for block losses")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = Place(STUDY, options.dataset, options.work)
    origins = {
        "accuracies_from": _taken(place, options.accuracies, take_accuracies, "accuracies_from"),
        "losses_from": _taken(place, options.losses, take_losses, "losses_from"),
    }
    todo = jobs(place)
    run_all(todo, options.workers, lambda done: print(f"{done} of {len(todo)}", flush=True))
    found = findings(place)
    result = {
        **provenance(*PACKAGES),
        "space": str(SPACE),
        **origins,
        "study": plain(STUDY),
        **summary(place, found),
    }
    write_atomically(options.output, to_json(result))
    picture(found, result, STUDY, options.output.with_suffix(".png"))
    for label, (value, low, high), _ in figure_rows(result):
        print(f"{label:<28}{value:>7.3f}  {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
