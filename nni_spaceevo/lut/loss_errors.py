"""How well the losses of a LUT are known, and whether that is enough to rank sub-stages.

A loss is a mean over held-out images, so its standard error is s / sqrt(images), whatever batches
the images came in. All sub-stages are measured on the same images: what makes an image hard for all
of them is in no difference between two, so ranking depends on the smaller paired error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .config import BATCH_SIZE
from .table import QuantizedLUT

BATCHES = (1, 2, 5, 10, 20, 50)
GOAL = 0.95
Figures = tuple[float, float | None, float | None]


@dataclass(frozen=True)
class MeanLosses:
    """Means over images of the losses of n sub-stages, with standard errors; all of shape (n,).

    Attributes
    ----------
    loss : mean
    loss_error : standard error of `loss`; NaN for one image
    paired_error : that of `loss` less the mean loss of all n; NaN for one image or sub-stage. The
        difference of two losses has sqrt(2) times as much
    """

    loss: np.ndarray
    loss_error: np.ndarray
    paired_error: np.ndarray

    @classmethod
    def of(cls, losses: np.ndarray) -> MeanLosses:
        """From the losses of n sub-stages on the same images, shape (n, images)."""
        n = len(losses)
        # The mean has a share of each, which makes the rest so much smaller.
        shrunk = math.sqrt(n / (n - 1)) if n > 1 else math.nan
        paired = shrunk * standard_errors(losses - losses.mean(0))
        return cls(losses.mean(1), standard_errors(losses), paired)

    def rows(self) -> Iterator[Figures]:
        """Loss and errors of each as a row has them: three digits of an error, None for NaN."""
        for loss, *errors in zip(
            self.loss.tolist(), self.loss_error.tolist(), self.paired_error.tolist(), strict=True
        ):
            error, paired = (None if math.isnan(e) else float(f"{e:.3g}") for e in errors)
            yield loss, error, paired


def standard_errors(losses: np.ndarray) -> np.ndarray:
    """Standard errors (n,) of the means over images of losses (n, images); NaN for one image."""
    images = losses.shape[1]
    if images < 2:
        return np.full(len(losses), np.nan)
    return np.asarray(losses.std(1, ddof=1) / math.sqrt(images))


def right_pairs(signal: float, noise: float) -> float:
    """Share of pairs that noisy values put in the right order, for normal values and noise.

    Parameters
    ----------
    signal, noise : standard deviation of the true values, and of what is added to each
    """
    return 0.5 + math.atan2(signal, noise) / math.pi


@dataclass(frozen=True)
class LossErrors:
    """Typical errors of a LUT's losses, beside what the losses differ by; root mean squares.

    Attributes
    ----------
    images : held-out images that each loss is the mean over
    loss, paired : standard errors of a row, as in `MeanLosses`
    within : standard deviation of losses within a cell, as measured
    between : that of the mean losses of the windows of one (stage, block type, resolution)
    """

    images: int
    loss: float
    paired: float
    within: float
    between: float

    @classmethod
    def of(cls, lut: QuantizedLUT) -> LossErrors | None:
        """Of a LUT; None where they are not known, as in imported ones."""
        c, images = lut.columns, lut.header.held_out_images
        known = np.isfinite(c["loss_error"]) & np.isfinite(c["paired_error"])
        if images < 2 or not known.all():
            return None
        loss, paired = (
            float(np.sqrt(np.mean(c[name].astype(np.float64) ** 2)))
            for name in ("loss_error", "paired_error")
        )
        within, between = _deviations(lut)
        return cls(images, loss, paired, within, between)

    @property
    def batches(self) -> float:
        """The images as batches."""
        return self.images / BATCH_SIZE

    def factor(self, batches: float) -> float:
        """What errors are multiplied by if the losses are means over so many batches."""
        return math.sqrt(self.batches / batches)

    @property
    def signal(self) -> float:
        """Standard deviation of true losses within a cell: as measured, less the noise."""
        return math.sqrt(max(self.within**2 - self.paired**2, 0))

    def right_pairs(self, batches: float) -> float:
        """Share of a cell's pairs of sub-stages that so many batches put in the right order."""
        return right_pairs(self.signal, self.paired * self.factor(batches))

    def batches_for(self, share: float) -> int | None:
        """Least batches that put such a share of a cell's pairs in the right order, if any do."""
        if not self.signal:
            return None
        noise = self.signal / math.tan(math.pi * (share - 0.5))
        return max(1, math.ceil(self.batches * (self.paired / noise) ** 2))


def _deviations(lut: QuantizedLUT) -> tuple[float, float]:
    """Pooled standard deviations of losses within cells, and of cells' means between windows."""
    cells: list[np.ndarray] = []
    means: dict[tuple[int, int, int], list[float]] = {}
    for s, stage in enumerate(lut.hyperspace.searchable):
        for b in range(len(lut.hyperspace.block_types)):
            for w in range(len(stage.windows)):
                for resolution in lut.hyperspace.distill_resolutions:
                    losses = lut.cell(s, b, w, resolution)[0].astype(np.float64)
                    cells.append(losses)
                    means.setdefault((s, b, resolution), []).append(float(losses.mean()))
    return _pooled(cells), _pooled([np.array(m) for m in means.values()])


def _pooled(groups: Sequence[np.ndarray]) -> float:
    """Standard deviation within groups; 0 where each has but one value."""
    squares = sum(float(np.square(g - g.mean()).sum()) for g in groups)
    return math.sqrt(squares / max(1, sum(len(g) - 1 for g in groups)))


# ---- words ------------------------------------------------------------------------------------


def verdict(found: LossErrors) -> str:
    """In a line, whether the images were enough to rank the sub-stages of a cell."""
    share, needed = found.right_pairs(found.batches), found.batches_for(GOAL)
    line = f"{found.images:,} held-out images put {share:.1%} of a cell's pairs in the right order"
    if needed is None:
        return f"{line}; losses differ by no more than their error"
    return f"{line}; {GOAL:.0%} take {needed * BATCH_SIZE:,}"


def error_table(found: LossErrors) -> list[str]:
    """Errors by the number of batches, as lines of text."""
    factors = [found.factor(n) for n in BATCHES]
    difference = math.sqrt(2) * found.paired
    lines = [
        _line(f"batches of {BATCH_SIZE} images", [f"{n}" for n in BATCHES]),
        _line("error of a loss", [f"{found.loss * f:.4f}" for f in factors]),
        _line("error of a difference", [f"{difference * f:.4f}" for f in factors]),
    ]
    for words, spread in (("in cells", found.within), ("of windows", found.between)):
        if spread:
            shares = [f"{found.paired * f / spread:.1%}" for f in factors]
            lines.append(_line(f"share of the spread {words}", shares))
    ordered = [f"{found.right_pairs(n):.1%}" for n in BATCHES]
    return [*lines, _line("a cell's pairs in right order", ordered)]


def _line(name: str, values: list[str]) -> str:
    return f"{name:<30}" + "".join(f"{value:>9}" for value in values)
