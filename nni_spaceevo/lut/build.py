"""Building the LUT: sample sub-stages of a distilled stage and measure their quantized loss."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..distill.loss import nsr_loss
from ..distill.stage import StageDistiller, StageTask, SubStage
from ..errors import LUTError
from ..files import digest, to_json
from ..hyperspace import ElasticStage, format_chain
from ..network import recalibrate_batch_norm
from .config import LUTConfig
from .table import Row

_TRIES_PER_ROW = 20
Features = tuple[Tensor, Tensor]


def sample_substages(
    elastic: ElasticStage, input_widths: tuple[int, ...], count: int, rng: np.random.Generator
) -> list[SubStage]:
    """Up to `count` distinct sub-stages, fewer where there are not so many."""
    found: dict[SubStage, None] = {}
    for _ in range(count * _TRIES_PER_ROW):
        found.setdefault((int(rng.choice(input_widths)), elastic.random(rng)))
        if len(found) == count:
            break
    return list(found)


@torch.no_grad()
def substage_loss(
    model: StageDistiller, substage: SubStage, calibration: Features, held_out: Features
) -> float:
    """Quantized NSR loss of one sub-stage on held-out features, BatchNorm recalibrated."""
    recalibrate_batch_norm(model, calibration[0], substage)
    return float(nsr_loss(model(held_out[0], substage), held_out[1]))


class StageSampler:
    """Rows of one (stage, block type).

    Parameters
    ----------
    task : the elastic stage
    config : how many rows, on how many images
    """

    def __init__(self, task: StageTask, config: LUTConfig) -> None:
        self.task, self.config = task, config

    def made_for(self, training: str) -> str:
        """Fingerprint of all that the rows depend on, given that of the stage's training."""
        return digest(training, to_json(self.config), str(self.task.seeds))

    def rows(self, model: StageDistiller) -> list[Row]:
        """Evaluate the rows of a distilled stage, in INT8.

        Raises
        ------
        LUTError
            A loss is not finite; names stage, block type and sub-stage.
        """
        task, option = self.task, self.task.option
        where = task.hyperspace.searchable[task.stage]
        resolutions = task.hyperspace.distill_resolutions
        calibration_images = _first(self.config.calibration_images, task.data.train_size)
        held_out_images = _first(self.config.held_out_images, task.data.test_size)
        rows = []
        for resolution in resolutions:
            calibration = task.train_features(calibration_images, resolution)
            held_out = task.test_features(held_out_images, resolution)
            for w, widths in enumerate(where.windows):
                rng = np.random.default_rng([*task.seeds, w, resolution])
                elastic = ElasticStage(stage=where, option=option, widths=widths)
                count = -(-self.config.rows_per_cell // len(resolutions))
                for substage in sample_substages(elastic, model.input_widths, count, rng):
                    loss = substage_loss(model, substage, calibration, held_out)
                    if not np.isfinite(loss):
                        raise LUTError(
                            f"{where.name}, {option.type}: loss of sub-stage "
                            f"{format_chain(substage[1])} is {loss}; distill this stage again"
                        )
                    rows.append(Row(task.stage, task.block, w, resolution, *substage, loss))
        return rows


def _first(count: int, there_are: int) -> Tensor:
    """Indices of the first images."""
    return torch.arange(min(count, there_are))
