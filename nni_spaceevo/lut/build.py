"""Building the LUT: rows of sampled sub-stages of a distilled stage, with their quantized losses.

A cell is measured at a time, so that the BatchNorm statistics that are kept are those of a cell's
sub-stages. The price is that the teacher computes the same features once for every width window,
beside hundreds of sub-stages that do so too.
"""

from __future__ import annotations

import numpy as np

from ..distill.stage import StageDistiller, StageTask, SubStage
from ..errors import LUTError
from ..files import digest, to_json
from ..hyperspace import ElasticStage, format_chain
from .config import LUTConfig
from .loss_errors import Figures, MeanLosses
from .measure import FeatureBatches, Variance, channel_errors, image_losses
from .substages import sample_substages
from .table import Row


class StageSampler:
    """Rows of one (stage, block type).

    Parameters
    ----------
    task : the elastic stage
    config : how many rows, on how many images
    """

    def __init__(self, task: StageTask, config: LUTConfig) -> None:
        self.task, self.config = task, config

    @property
    def held_out_images(self) -> int:
        """Images that each loss is the mean over."""
        return min(self.config.held_out_images, self.task.data.test_size)

    def made_for(self, training: str) -> str:
        """Fingerprint of all that the rows depend on, given that of the stage's training."""
        return digest(training, to_json(self.config), str(self.task.seeds))

    def rows(self, model: StageDistiller) -> list[Row]:
        """Measure the rows of a distilled stage, in INT8.

        Raises
        ------
        LUTError
            A loss is not finite; names stage, block type and sub-stage.
        """
        resolutions = self.task.hyperspace.distill_resolutions
        return [row for resolution in resolutions for row in self._rows(model, resolution)]

    def _rows(self, model: StageDistiller, resolution: int) -> list[Row]:
        """The rows of all windows at one resolution."""
        task = self.task
        calibration_images = min(self.config.calibration_images, task.data.train_size)
        calibration = FeatureBatches(task.train_features, calibration_images, resolution)
        held_out = FeatureBatches(task.test_features, self.held_out_images, resolution)
        variance = Variance.of(held_out)
        cells = self._sample(resolution, model.input_widths)
        errors = (channel_errors(model, cell, calibration, held_out) for cell in cells)
        found = MeanLosses.of(np.concatenate([image_losses(e, variance) for e in errors]))
        places = [(w, substage) for w, cell in enumerate(cells) for substage in cell]
        return [
            self._row(w, resolution, substage, figures)
            for (w, substage), figures in zip(places, found.rows(), strict=True)
        ]

    def _row(self, window: int, resolution: int, substage: SubStage, figures: Figures) -> Row:
        task, (cin, chain), (loss, error, paired) = self.task, substage, figures
        if not np.isfinite(loss):
            raise LUTError(
                f"{task.hyperspace.searchable[task.stage].name}, {task.option.type}: loss of "
                f"sub-stage {format_chain(chain)} is {loss}; distill this stage again"
            )
        return Row(task.stage, task.block, window, resolution, cin, chain, loss, error, paired)

    def _sample(self, resolution: int, input_widths: tuple[int, ...]) -> list[list[SubStage]]:
        """Sub-stages of each window."""
        task = self.task
        where = task.hyperspace.searchable[task.stage]
        count = -(-self.config.rows_per_cell // len(task.hyperspace.distill_resolutions))
        cells = []
        for w, widths in enumerate(where.windows):
            elastic = ElasticStage(stage=where, option=task.option, widths=widths)
            rng = np.random.default_rng([*task.seeds, w, resolution])
            cells.append(sample_substages(elastic, input_widths, count, rng))
        return cells
