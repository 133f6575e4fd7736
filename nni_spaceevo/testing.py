"""Synthetic problems with a known answer, for tests of searches, plugins and user code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .hyperspace import BlockOption, ElasticStage, Hyperspace, PlacedBlock, SpaceCode, Stage
from .lut import LatencyModel, QuantizedLUT, Row
from .lut.merge import StageRows, task_cells


class MACsLatency(LatencyModel):
    """A latency model for tests: a millisecond for so many multiply-accumulates."""

    name = "synthetic"
    network_overhead_ms = 0.01

    def __init__(self, macs_per_ms: float = 1e6) -> None:
        self.macs_per_ms = macs_per_ms

    @property
    def fingerprint(self) -> str:
        """Hash of everything that latencies depend on."""
        return f"macs-{self.macs_per_ms:g}"

    def chain_ms(self, chains: Sequence[Sequence[PlacedBlock]]) -> np.ndarray:
        """Latency of each list of blocks, shape (n,), in milliseconds."""
        macs = [sum(k.macs for block in chain for k in block.kernels) for chain in chains]
        return np.array(macs) / self.macs_per_ms


def synthetic_hyperspace(stages: int = 3, name: str = "synthetic") -> Hyperspace:
    """A hyperspace of 3 block types and 3 width windows in each of `stages` stages."""
    linear = BlockOption(type="linear", activation="none")
    return Hyperspace(
        schema=1,
        name=name,
        in_channels=1,
        resolutions=(8, 16),
        distill_resolutions=(8, 16),
        block_types=(
            BlockOption(type="mbv1_dual", kernel_sizes=(3, 5)),
            BlockOption(
                type="mbv2_res", kernel_sizes=(3, 5), expands=(2.0, 4.0), activation="relu6"
            ),
            BlockOption(type="resnet", kernel_sizes=(3,), expands=(0.5, 1.0)),
        ),
        stages=(
            Stage(
                name="first_conv",
                widths=(8,),
                stride=2,
                block=BlockOption(type="conv", kernel_sizes=(3,)),
            ),
            *(
                Stage(name=f"stage{i + 1}", widths=(8, 16, 24, 32), depths=(1, 2), window_size=2)
                for i in range(stages)
            ),
            Stage(name="feature_mix", widths=(32,), block=BlockOption(type="pool_conv")),
            Stage(name="logits", widths=(10,), block=linear),
        ),
    )


def synthetic_lut(
    hyperspace: Hyperspace, best: SpaceCode, rows_per_cell: int = 20, seed: int = 0
) -> QuantizedLUT:
    """A LUT in which `best` is the best space at any constraint that it meets.

    A stage's losses grow with the distance of its block type and window from those of `best`;
    latencies are alike in all cells of a stage, so that they do not decide.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for s, stage in enumerate(hyperspace.searchable):
        for b, option in enumerate(hyperspace.block_types):
            for w, window in enumerate(stage.windows):
                elastic = ElasticStage(stage=stage, option=option, widths=window)
                distance = (b != best.blocks[s]) + 0.5 * abs(w - best.windows[s])
                for resolution in hyperspace.distill_resolutions:
                    for _ in range(rows_per_cell):
                        cin = int(rng.choice(hyperspace.input_widths(stage)))
                        loss = 0.3 + 0.1 * distance + 0.02 * rng.random()
                        rows.append(Row(s, b, w, resolution, cin, elastic.random(rng), loss))
    unpriced = QuantizedLUT.from_rows(hyperspace, rows, "synthetic")
    latency = np.tile(
        np.linspace(0.1, 1.0, rows_per_cell, dtype=np.float32), len(rows) // rows_per_cell
    )
    lut = unpriced.priced(MACsLatency())
    return QuantizedLUT(lut.header, {**lut.columns, "latency_ms": latency}, hyperspace)


def synthetic_stage_rows(
    hyperspace: Hyperspace,
    task: str,
    made_with: str,
    teacher: str = "synthetic",
    rows_per_cell: int = 2,
) -> StageRows:
    """Rows of one (stage, block type) as its distillation leaves them; the same at every call."""
    s, b = task_cells(hyperspace)[task]
    stage, option = hyperspace.searchable[s], hyperspace.block_types[b]
    rng = np.random.default_rng([s, b])
    rows = []
    for w, window in enumerate(stage.windows):
        elastic = ElasticStage(stage=stage, option=option, widths=window)
        for resolution in hyperspace.distill_resolutions:
            for _ in range(rows_per_cell):
                cin = int(rng.choice(hyperspace.input_widths(stage)))
                chain = elastic.random(rng)
                rows.append(Row(s, b, w, resolution, cin, chain, rng.random(), 0.02, 0.01))
    made_for = f"{made_with} {teacher} {task}"
    provenance = {"made_with": made_with, "teacher": teacher, "made_for": made_for}
    return StageRows.of(task, rows, **provenance, held_out_images=640)
