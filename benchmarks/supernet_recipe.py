"""What decides how far a short training of a supernet comes, on FashionMNIST.

A few hundred steps, as the examples can afford them on two cores, are far from the published 360
epochs. The supernet of a space of `examples/fashion_mnist/hyperspace.yaml` is trained in FP32 in
several ways, each with the same images:

- alpha, augmented: the defaults, as published, with FashionMNIST's random crops and flips;
- alpha; kl: without these, the others learning from the largest by AlphaNet's adaptive divergence,
  or by the Kullback-Leibler divergence;
- kl, batches of 32: four times as many steps, each at the same rate as those of 128 images;
- kl and labels, batches of 32: half of what the others learn is from the labels;
- labels, batches of 32: nothing is distilled;
- largest alone: without these, and no other subnet is trained, which takes a third of the time.

Then the largest, the smallest and random subnets are evaluated, BatchNorm measured anew. Every
training keeps its result in WORK; a run that was killed goes on with the next. Writes
`supernet_recipe.json` and `.md` beside this script.

    python benchmarks/supernet_recipe.py WORK [--dataset FOLDER]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from outcome import write_outcome
from provenance import provenance
from tqdm import tqdm

from nni_spaceevo.distill.config import FashionMNISTConfig
from nni_spaceevo.distill.data import Images, load_dataset
from nni_spaceevo.files import Record, digest, plain, to_json, write_atomically
from nni_spaceevo.hyperspace import Hyperspace, SubnetCode, load_hyperspace
from nni_spaceevo.quant import FP32
from nni_spaceevo.supernet.config import PhaseConfig, SupernetConfig
from nni_spaceevo.supernet.data import shuffled_batches
from nni_spaceevo.supernet.evaluation import calibrated_subnet, evaluate
from nni_spaceevo.supernet.model import Supernet
from nni_spaceevo.supernet.sandwich import StepPlan
from nni_spaceevo.supernet.trainer import SupernetTrainer

HYPERSPACE = Path(__file__).parents[1] / "examples" / "fashion_mnist" / "hyperspace.yaml"
SPACES = {"mbv2_res": "fashion-0000-2222"}


class Way(Record, frozen=True):
    """One way to train.

    Attributes
    ----------
    name : for people
    distillation, label_share : what the other subnets learn; see `SupernetConfig`
    augment : crop and flip images at random
    batches_per_batch : into how many steps, at the same rate, the images of a step are divided
    alone : train the largest subnet only
    """

    name: str
    distillation: Literal["alpha", "kl"] = "alpha"
    label_share: float = 0.0
    augment: bool = False
    batches_per_batch: int = 1
    alone: bool = False


class Study(Record, frozen=True):
    """What is trained and evaluated.

    Attributes
    ----------
    images, epochs, batch_size : to train on
    learning_rate : peak, for 256 images a step
    random_subnets : that are evaluated besides the largest and the smallest
    recalibration_batches : from which BatchNorm's statistics are taken
    test_images : of an evaluation, the first ones held out
    seed : of everything random
    """

    images: int = 10000
    epochs: int = 2
    batch_size: int = 128
    learning_rate: float = 0.2
    random_subnets: int = 4
    recalibration_batches: int = 8
    test_images: int = 10000
    seed: int = 0


STUDY = Study()
WAYS = (
    Way(name="alpha, augmented", augment=True),
    Way(name="alpha"),
    Way(name="kl", distillation="kl"),
    Way(name="kl, batches of 32", distillation="kl", batches_per_batch=4),
    Way(
        name="kl and labels, batches of 32",
        distillation="kl",
        label_share=0.5,
        batches_per_batch=4,
    ),
    Way(name="labels, batches of 32", label_share=1.0, batches_per_batch=4),
    Way(name="largest alone", alone=True),
)


class OnlyLargest(SupernetTrainer):
    """A trainer that leaves out all subnets but the largest."""

    def plan(self, epoch: int, step: int, steps: int, images: int) -> StepPlan:
        """A plan with one subnet."""
        plan = super().plan(epoch, step, steps, images)
        return replace(plan, subnets=plan.subnets[:1])

    def _add_gradients(self, *given: Any) -> list[float]:
        """The loss of the largest stands for the others', which there are not."""
        return super()._add_gradients(*given) * 3


def config_of(study: Study, way: Way) -> SupernetConfig:
    """The supernet's settings, FP32 alone."""
    # The rate is one for 256 images: a smaller batch would have a smaller one.
    rate = study.learning_rate * way.batches_per_batch
    phase = PhaseConfig(epochs=study.epochs, learning_rate=rate, warmup_epochs=0.5)
    return SupernetConfig(
        fp32=phase,
        int8=PhaseConfig(epochs=0, learning_rate=rate),
        batch_size=study.batch_size // way.batches_per_batch,
        random_subnets=1,
        distillation=way.distillation,
        label_share=way.label_share,
        dropout=0,
        device="cpu",
        seed=study.seed,
    )


def trained(hyperspace: Hyperspace, space: str, data: Images, study: Study, way: Way) -> Supernet:
    """A supernet, trained in one way."""
    torch.manual_seed(study.seed)
    supernet = Supernet(hyperspace, space)
    kind = OnlyLargest if way.alone else SupernetTrainer
    config = config_of(study, way)
    trainer = kind(supernet, config)
    labels = data.train_labels
    assert labels is not None
    for epoch in range(study.epochs):
        trainer.start_epoch(epoch)
        rng = np.random.default_rng([study.seed, epoch])
        steps = shuffled_batches(data.train_size, config.batch_size, rng)
        for i, index in enumerate(tqdm(steps, f"{way.name}, epoch {epoch + 1}", leave=False)):
            plan = trainer.plan(epoch, i, len(steps), len(index))
            seeds = plan.seeds if way.augment else None
            images = data.train_batch(index, plan.resolution, seeds)
            trainer.step(images, labels[index], plan)
    return supernet


def accuracies(supernet: Supernet, data: Images, study: Study, way: Way) -> dict[str, Any]:
    """Accuracies of the ends, and of random subnets where they were trained."""
    which = torch.arange(min(study.test_images, data.test_size))

    def accuracy(code: SubnetCode) -> float:
        batches = study.batch_size, study.recalibration_batches
        return evaluate(
            calibrated_subnet(supernet, code, data, *batches, FP32), data, which
        ).accuracy

    found: dict[str, Any] = {"largest": accuracy(supernet.largest)}
    if not way.alone:
        rng, space = np.random.default_rng(study.seed), supernet.space
        drawn = [supernet.hyperspace.random_subnet(space, rng) for _ in range(study.random_subnets)]
        found["smallest"] = accuracy(supernet.smallest)
        found["random"] = [accuracy(code) for code in drawn]
    return found


def results(work: Path, dataset: Path, study: Study) -> list[dict[str, Any]]:
    """Train and evaluate everything that WORK does not have yet."""
    hyperspace = load_hyperspace(HYPERSPACE)
    data = load_dataset(FashionMNISTConfig(path=str(dataset.resolve()), train_images=study.images))
    folder = work / digest(to_json(study), hyperspace.fingerprint, data.fingerprint)
    rows = []
    for block, space in SPACES.items():
        for way in WAYS:
            path = folder / f"{block}-{digest(to_json(way))}.json"
            if not path.is_file():
                supernet = trained(hyperspace, space, data, study, way)
                write_atomically(path, to_json(accuracies(supernet, data, study, way)))
            rows.append({"space": space, "way": way.name, **json.loads(path.read_text())})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, a line a training."""
    lines = [
        "| space | way | largest, % | smallest, % | random, mean, % |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        shown = [row["largest"], row.get("smallest"), np.mean(row.get("random", np.nan))]
        cells = ["" if v is None or np.isnan(v) else f"{100 * v:.1f}" for v in shown]
        lines.append(f"| `{row['space']}` | {row['way']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Train by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder for results")
    parser.add_argument("--dataset", type=Path, default=Path(FashionMNISTConfig().path))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = results(options.work, options.dataset, STUDY)
    versions = provenance("torch", "torchvision", "numpy")
    write_outcome(options.output, {**versions, "study": plain(STUDY), "rows": rows}, table(rows))


if __name__ == "__main__":
    main()
