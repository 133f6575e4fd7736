"""Building the LUT: sample sub-stages of a distilled stage and measure their quantized loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..distill.loss import nsr_loss
from ..distill.stage import StageDistiller, StageTask, SubStage
from ..errors import LUTError
from ..files import digest, read_text, to_json, write_atomically
from ..hyperspace import ElasticStage, format_chain, parse_chain
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
    """Rows of one (stage, block type), evaluated once and kept beside its checkpoint.

    Parameters
    ----------
    task : the elastic stage
    config : how many rows, on how many images
    path : JSON file of the finished rows
    """

    def __init__(self, task: StageTask, config: LUTConfig, path: Path) -> None:
        self.task, self.config, self.path = task, config, path

    def rows(self, model: StageDistiller, made_for: str) -> list[Row]:
        """Evaluate the rows, or read them if they are there.

        Parameters
        ----------
        model : the distilled stage, in INT8
        made_for : fingerprint of its training

        Raises
        ------
        LUTError
            A loss is not finite; names stage, block type and sub-stage.
        """
        made_for = digest(made_for, to_json(self.config), str(self.task.seeds))
        if self.path.is_file():
            stored = json.loads(read_text(self.path))
            if stored["made_for"] == made_for:
                return [_from_plain(row) for row in stored["rows"]]
        rows = self._evaluate(model)
        content = {"made_for": made_for, "rows": [_to_plain(row) for row in rows]}
        write_atomically(self.path, to_json(content))
        return rows

    def _evaluate(self, model: StageDistiller) -> list[Row]:
        task, option = self.task, self.task.option
        where = task.hyperspace.searchable[task.stage]
        resolutions = task.hyperspace.distill_resolutions
        calibration_images = task.data.train_images[: self.config.calibration_images]
        held_out_images = task.data.test_images[: self.config.held_out_images]
        rows = []
        for resolution in resolutions:
            calibration = task.features(calibration_images, resolution)
            held_out = task.features(held_out_images, resolution)
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


def _to_plain(row: Row) -> list[object]:
    cell = [row.stage, row.block, row.window, row.resolution, row.cin]
    return [*cell, format_chain(row.chain), row.loss]


def _from_plain(values: list) -> Row:
    stage, block, window, resolution, cin, chain, loss = values
    return Row(stage, block, window, resolution, cin, parse_chain(chain), loss)
