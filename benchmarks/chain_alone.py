"""What the subnets that the chain on FashionMNIST compared reach when each is trained alone.

`fashion_chain.json` has accuracies of subnets with the weights of their supernets, which were
trained for few epochs. Here the subnets of one latency constraint (the tightest if not told which),
of every space and seed, are trained alone, from scratch and with labels, on the same images (not
augmented) for fewer epochs, in FP32. If spaces differ in the chain and not here, it is the
supernets' training that tells them apart. Every training keeps its result in WORK; a run that was
killed goes on with the next. Writes `chain_alone.json` and `.md` beside this script.

    python benchmarks/chain_alone.py WORK [--dataset FOLDER] [--constraint-ms T]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from block_kd_fidelity import accuracy, fit
from outcome import write_outcome
from provenance import provenance
from tqdm import tqdm

from nni_spaceevo.distill.config import FashionMNISTConfig
from nni_spaceevo.distill.data import ImageData, load_dataset
from nni_spaceevo.files import Record, digest, plain, to_json, write_atomically
from nni_spaceevo.hyperspace import load_hyperspace
from nni_spaceevo.supernet.model import Subnet

CHAIN = Path(__file__).with_name("fashion_chain.json")
HYPERSPACE = Path(__file__).parents[1] / "examples" / "fashion_mnist" / "hyperspace.yaml"


class Study(Record, frozen=True):
    """How a subnet is trained: Adam with a one-cycle schedule.

    Attributes
    ----------
    images, epochs, batch_size, learning_rate : of a training
    seed : of weights and batches
    """

    images: int = 20000
    epochs: int = 3
    batch_size: int = 128
    learning_rate: float = 6e-3
    seed: int = 0


STUDY = Study()


def compared(chain: dict[str, Any], constraint_ms: float) -> list[dict[str, Any]]:
    """What the chain says of the subnets within a constraint: a row a space and seed.

    Raises
    ------
    ValueError
        The chain has no such constraint; names those it has.
    """
    comparison = chain["comparison"]
    if constraint_ms not in comparison["constraints_ms"]:
        raise ValueError(
            f"constraint {constraint_ms} ms: the chain has {comparison['constraints_ms']}"
        )
    spaces = {c["name"]: c["space"] for c in comparison["contenders"]}
    return [
        {
            "contender": entry["contender"],
            "seed": entry["seed"],
            "space": spaces[entry["contender"]],
            "subnet": entry["found"]["subnet"],
            "mflops": entry["found"]["mflops"],
            "measured_ms": entry["measured"]["median_ms"],
            "in_supernet": entry["found"]["unseen_accuracy"],
        }
        for entry in comparison["entries"]
        if entry["constraint_ms"] == constraint_ms
    ]


def alone(row: dict[str, Any], data: ImageData, study: Study) -> float:
    """FP32 accuracy on all held-out images of a row's subnet, trained from scratch."""
    hyperspace = load_hyperspace(HYPERSPACE)
    space = hyperspace.space(row["space"])
    torch.manual_seed(study.seed)
    model = Subnet(hyperspace, space, hyperspace.subnet(space, row["subnet"]))
    fit(model, data, study.epochs, study.batch_size, study.learning_rate, study.seed)
    return accuracy(model, data)


def results(
    rows: list[dict[str, Any]], data: ImageData, study: Study, work: Path
) -> list[dict[str, Any]]:
    """The rows with what each subnet reaches alone; what WORK has is not trained again."""
    folder = work / digest(to_json(study), data.fingerprint)
    found = []
    for row in tqdm(rows, "Training alone"):
        path = folder / f"{digest(row['space'], row['subnet'])}.json"
        if not path.is_file():
            write_atomically(path, to_json({"accuracy": alone(row, data, study)}))
        found.append({**row, "alone": json.loads(path.read_text())["accuracy"]})
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, a line a space, means over the seeds."""
    lines = [
        "| space | seeds | MFLOPs | measured, ms | in the supernet, % | alone, % |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["contender"] for row in rows):
        mine = [row for row in rows if row["contender"] == name]

        def mean(key: str, mine: list[dict[str, Any]] = mine) -> float:
            return float(np.mean([row[key] for row in mine]))

        lines.append(
            f"| {name} | {len(mine)} | {mean('mflops'):.1f} | {mean('measured_ms'):.3f} | "
            f"{100 * mean('in_supernet'):.1f} | {100 * mean('alone'):.1f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Train by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder for results")
    parser.add_argument("--dataset", type=Path, default=Path(FashionMNISTConfig().path))
    parser.add_argument("--constraint-ms", type=float)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = FashionMNISTConfig(
        path=str(options.dataset.resolve()), train_images=STUDY.images, augment=False
    )
    data = load_dataset(config)
    assert isinstance(data, ImageData)
    chain = json.loads(CHAIN.read_text())
    constraint_ms = options.constraint_ms
    if constraint_ms is None:
        constraint_ms = min(chain["comparison"]["constraints_ms"])
    rows = compared(chain, constraint_ms)
    result = {
        **provenance("torch", "torchvision", "numpy"),
        "chain": CHAIN.name,
        "constraint_ms": constraint_ms,
        "study": plain(STUDY),
        "rows": results(rows, data, STUDY, options.work),
    }
    write_outcome(options.output, result, table(result["rows"]))


if __name__ == "__main__":
    main()
