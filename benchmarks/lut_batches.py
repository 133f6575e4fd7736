"""How many batches of held-out images a LUT's losses need, on FashionMNIST.

Distils three (stage, block type) pairs from a small teacher, at 20 pixels, and measures 48
sub-stages of each on all 10,000 held-out images. Then takes disjoint draws of 1 to 50 batches of 64
of them, as a LUT would have, teacher's variance included, and compares: the standard error that the
LUT states with the one that the draws show, of a loss and of a difference of two; and the ranking
of the sub-stages of a width window with the one by all images (of which the largest draw is a
third). Writes `lut_batches.json` and `.png` beside this script.

    python benchmarks/lut_batches.py [--dataset FOLDER]
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance
from scipy.stats import kendalltau

from nni_spaceevo.distill.config import DistillConfig, FashionMNISTConfig, TeacherConfig
from nni_spaceevo.distill.data import ImageData, load_dataset
from nni_spaceevo.distill.stage import StageDistiller, StageRun, StageTask, SubStage
from nni_spaceevo.distill.teachers import Teacher, train_teacher
from nni_spaceevo.files import to_json, write_atomically
from nni_spaceevo.hyperspace import BlockOption, ElasticStage, Hyperspace, Stage
from nni_spaceevo.lut.config import BATCH_SIZE
from nni_spaceevo.lut.loss_errors import BATCHES, MeanLosses, right_pairs
from nni_spaceevo.lut.measure import FeatureBatches, Variance, channel_errors, image_losses
from nni_spaceevo.lut.substages import sample_substages
from nni_spaceevo.page import drawing

PACKAGES = ("torch", "torchvision", "numpy", "scipy")
HYPERSPACE = Hyperspace(
    schema=1,
    name="fashion",
    in_channels=1,
    resolutions=(20,),
    distill_resolutions=(20,),
    block_types=(
        BlockOption(type="resnet", kernel_sizes=(3, 5), expands=(0.5, 1, 1.5), activation="relu"),
        BlockOption(type="mbv2_res", kernel_sizes=(3, 5), expands=(2, 3, 4), activation="relu6"),
        BlockOption(type="mbv3_res", kernel_sizes=(3, 5), expands=(2, 3, 4), activation="hswish"),
    ),
    stages=(
        Stage(
            name="first_conv",
            widths=(8,),
            stride=2,
            block=BlockOption(type="conv", kernel_sizes=(3,)),
        ),
        Stage(name="stage1", widths=(8, 12, 16, 20), depths=(1, 2, 3), window_size=2),
        Stage(name="stage2", widths=(12, 16, 20, 24), depths=(1, 2, 3), stride=2, window_size=2),
        Stage(name="stage3", widths=(24, 32, 40, 48), depths=(1, 2, 3), stride=2, window_size=2),
        Stage(name="feature_mix", widths=(64,), block=BlockOption(type="pool_conv")),
        Stage(name="logits", widths=(10,), block=BlockOption(type="linear", activation="none")),
    ),
)
PAIRS = ((0, 0), (1, 1), (2, 2))
RESOLUTION, CALIBRATION_IMAGES, ROWS_PER_WINDOW, SEED = 20, 256, 16, 0
TRAINING_IMAGES = 6400
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
TEACHER = TeacherConfig(widths=(12, 24, 32, 48), epochs=4, min_accuracy=0.8)
DISTILL = DistillConfig(epochs_fp32=3, epochs_int8=1)


# ---- measuring --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Sub-stages of one (stage, block type) on N held-out images of C channels.

    Attributes
    ----------
    name : stage and block type
    window : width window of each of n sub-stages, shape (n,)
    errors : mean squared errors, shape (n, N, C)
    means, squares : of the teacher's feature and of its square, shape (N, C)
    """

    name: str
    window: np.ndarray
    errors: np.ndarray
    means: np.ndarray
    squares: np.ndarray

    def losses(self, images: np.ndarray) -> np.ndarray:
        """Losses on some of the images as a LUT of these would have them, (n, len(images))."""
        means, squares = (torch.from_numpy(m[images]) for m in (self.means, self.squares))
        errors = torch.from_numpy(self.errors[:, images])
        return image_losses([errors], Variance.of_moments(means, squares))


def dataset(folder: Path) -> ImageData:
    """FashionMNIST without augmentation, a part of its training images."""
    data = load_dataset(FashionMNISTConfig(path=str(folder)))
    assert isinstance(data, ImageData) and data.train_labels is not None
    return replace(
        data,
        train_images=data.train_images[:TRAINING_IMAGES],
        train_labels=data.train_labels[:TRAINING_IMAGES],
        augment=None,
    )


def sampled(task: StageTask, model: StageDistiller) -> tuple[np.ndarray, list[SubStage]]:
    """Width windows and sub-stages."""
    stage = task.hyperspace.searchable[task.stage]
    windows, found = [], []
    for w, widths in enumerate(stage.windows):
        elastic = ElasticStage(stage=stage, option=task.option, widths=widths)
        rng = np.random.default_rng([SEED, task.stage, w])
        found += sample_substages(elastic, model.input_widths, ROWS_PER_WINDOW, rng)
        windows += [w] * (len(found) - len(windows))
    return np.array(windows), found


def measured(task: StageTask, folder: Path) -> Measured:
    """Distil a stage and measure its sub-stages on all held-out images."""
    model = StageRun(task, DISTILL, folder).run()
    windows, substages = sampled(task, model)
    calibration = FeatureBatches(task.train_features, CALIBRATION_IMAGES, RESOLUTION)
    held_out = FeatureBatches(task.test_features, task.data.test_size, RESOLUTION)
    errors = [e.numpy() for e in channel_errors(model, substages, calibration, held_out)]
    after = [(f.mean((2, 3)), f.square().mean((2, 3))) for _, f in held_out]
    means, squares = (torch.cat(part).double().numpy() for part in zip(*after, strict=True))
    return Measured(task.name, windows, np.concatenate(errors, axis=1), means, squares)


# ---- judging ----------------------------------------------------------------------------------


def draws(images: int, batches: int) -> Iterator[np.ndarray]:
    """Disjoint sets of so many batches, in an order of their own."""
    order = np.random.default_rng(SEED).permutation(images)
    size = batches * BATCH_SIZE
    for start in range(0, images - size + 1, size):
        yield order[start : start + size]


def rms(values: Any) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def centred(losses: np.ndarray) -> np.ndarray:
    """Losses (draws, n) less each draw's mean, of as much variance as the losses' own part."""
    n = losses.shape[1]
    return np.asarray((losses - losses.mean(1, keepdims=True)) * np.sqrt(n / (n - 1)))


def tau_in_windows(found: Measured, losses: np.ndarray, truth: np.ndarray) -> list[float]:
    """Kendall's tau in each width window."""
    members = [found.window == w for w in np.unique(found.window)]
    return [float(kendalltau(losses[m], truth[m]).statistic) for m in members]


def judged(found: Measured, batches: int, truth: np.ndarray) -> dict[str, Any]:
    """Errors and rankings with so many batches.

    Parameters
    ----------
    found : one (stage, block type)
    batches : of each draw
    truth : losses on all images, shape (n,)
    """
    stated = [MeanLosses.of(found.losses(d)) for d in draws(found.errors.shape[1], batches)]
    losses = np.array([s.loss for s in stated])
    within = rms([truth[found.window == w].std(ddof=1) for w in np.unique(found.window)])
    paired = rms([s.paired_error for s in stated])
    taus = [tau_in_windows(found, drawn, truth) for drawn in losses]
    return {
        "batches": batches,
        "images": batches * BATCH_SIZE,
        "draws": len(stated),
        "error_stated": rms([s.loss_error for s in stated]),
        "error_observed": rms(losses.std(0, ddof=1)),
        "difference_error_stated": float(np.sqrt(2) * paired),
        "difference_error_observed": float(np.sqrt(2) * rms(centred(losses).std(0, ddof=1))),
        "difference_error_over_differences": paired / within,
        "tau_stated": 2 * right_pairs(within, paired) - 1,
        "tau": float(np.mean(taus)),
        "least_tau": float(np.min(taus)),
        "tau_all_windows": float(np.mean([kendalltau(d, truth).statistic for d in losses])),
    }


def case(found: Measured) -> dict[str, Any]:
    """All numbers of batches for one (stage, block type)."""
    truth = found.losses(np.arange(found.errors.shape[1])).mean(1)
    windows = [truth[found.window == w] for w in np.unique(found.window)]
    return {
        "pair": found.name,
        "substages": len(truth),
        "mean_loss": float(truth.mean()),
        "deviation_in_a_window": rms([w.std(ddof=1) for w in windows]),
        "deviation_of_windows": float(np.std([w.mean() for w in windows], ddof=1)),
        "by_batches": [judged(found, n, truth) for n in BATCHES],
    }


# ---- telling ----------------------------------------------------------------------------------


def means_by_batches(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The same over all pairs: errors over the deviation of losses in a window, and taus."""
    rows = []
    for i, n in enumerate(BATCHES):
        of = [(c["by_batches"][i], c["deviation_in_a_window"]) for c in cases]
        rows.append(
            {
                "batches": n,
                "error_stated": rms([r["error_stated"] / d for r, d in of]),
                "error_observed": rms([r["error_observed"] / d for r, d in of]),
                "difference_error_stated": rms([r["difference_error_stated"] / d for r, d in of]),
                "difference_error_observed": rms(
                    [r["difference_error_observed"] / d for r, d in of]
                ),
                "tau_stated": float(np.mean([r["tau_stated"] for r, _ in of])),
                "tau": float(np.mean([r["tau"] for r, _ in of])),
                "least_tau": min(r["least_tau"] for r, _ in of),
            }
        )
    return rows


def table(rows: list[dict[str, float]]) -> str:
    """A Markdown table of `means_by_batches`; errors in percent of the deviation of losses."""
    lines = [
        "| batches of 64 | error of a loss: stated | observed | of a difference: stated | observed "
        "| Kendall's tau: stated | observed | least |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = ("error_stated", "error_observed", "difference_error_stated")
    for row in rows:
        shares = [f"{row[k]:.1%}" for k in (*names, "difference_error_observed")]
        taus = [f"{row[k]:.3f}" for k in ("tau_stated", "tau", "least_tau")]
        lines.append(f"| {row['batches']} | {' | '.join([*shares, *taus])} |")
    return "\n".join(lines)


def picture(cases: list[dict[str, Any]]) -> bytes:
    """Errors and rankings over the number of batches, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with drawing():
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for color, found in zip(("C0", "C1", "C2"), cases, strict=True):
            rows = found["by_batches"]
            for kind, style in (("error", "-"), ("difference_error", "--")):
                share = [r[f"{kind}_stated"] / found["deviation_in_a_window"] for r in rows]
                seen = [r[f"{kind}_observed"] / found["deviation_in_a_window"] for r in rows]
                left.loglog(BATCHES, share, style, color=color)
                left.loglog(BATCHES, seen, "o", color=color, markersize=4)
            right.plot(BATCHES, [r["tau"] for r in rows], "o-", color=color, label=found["pair"])
            right.plot(BATCHES, [r["tau_stated"] for r in rows], ":", color=color)
        left.set_ylabel("standard error / deviation of losses in a window")
        left.set_yticks(SHARES, [f"{share:.0%}" for share in SHARES])
        left.set_title("of a loss (–) and of a difference (- -); points: observed", fontsize=9)
        right.set_xscale("log")
        right.set_ylabel("Kendall's tau against 10,000 images")
        right.set_title("ranking in a window; dotted: as stated", fontsize=9)
        right.legend(frameon=False)
        for axes in (left, right):
            axes.set_xticks(BATCHES, [str(n) for n in BATCHES], minor=False)
            axes.minorticks_off()
            axes.set_xlabel("batches of 64 images")
            axes.axvline(10, color="0.8", zorder=0)
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def all_cases(folder: Path) -> list[dict[str, Any]]:
    """Train the teacher, then distil, measure and judge every pair."""
    data = dataset(folder)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        teacher: Teacher = train_teacher(
            HYPERSPACE, data, TEACHER, SEED, work / "teacher.pt", print
        )
        cases = []
        for stage, block in PAIRS:
            start = time.monotonic()
            task = StageTask(HYPERSPACE, stage, block, teacher, data, SEED)
            cases.append(case(measured(task, work)))
            print(f"{task.name}: {time.monotonic() - start:.0f} s", flush=True)
    return cases


def main() -> None:
    """Measure by the options of the command line, and write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", type=Path, default=Path(FashionMNISTConfig().path))
    options = parser.parse_args()
    # The figures do not depend on the number of cores, and the script asks for one alone.
    torch.set_num_threads(1)
    start = time.monotonic()
    cases = all_cases(options.dataset)
    rows = means_by_batches(cases)
    result = {
        **provenance(*PACKAGES),
        "seconds": round(time.monotonic() - start),
        "seconds_of_cpu": round(time.process_time()),
        "over_all_pairs": rows,
        "pairs": cases,
    }
    write_atomically(Path(__file__).with_suffix(".json"), to_json(result))
    write_atomically(Path(__file__).with_suffix(".png"), picture(cases))
    print(table(rows))


if __name__ == "__main__":
    main()
