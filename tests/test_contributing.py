"""CONTRIBUTING.md tells the truth: its code runs and does what the text says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nni_spaceevo.distill.config import DistillConfig
from nni_spaceevo.distill.data import DATASETS, ImageData, load_dataset
from nni_spaceevo.distill.stage import StageRun, StageTask
from nni_spaceevo.hyperspace import (
    BLOCK_TYPES,
    BlockConfig,
    ConvStep,
    Recipe,
    block_kernels,
    block_type,
)
from nni_spaceevo.network import StaticBlock
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = dict(re.findall(r"### a ([\w ]+)\n(?:(?!###).)*?```python\n(.*?)```", TEXT, re.S))


def run(name):
    assert len(BLOCKS[name].strip().splitlines()) <= 10
    names = {
        "block_type": block_type,
        "BlockConfig": BlockConfig,
        "ConvStep": ConvStep,
        "Recipe": Recipe,
        "np": np,
        "nn": nn,
        "torch": torch,
        "functional": nn.functional,
        "ImageData": ImageData,
        "DATASETS": DATASETS,
    }
    exec(BLOCKS[name], names)
    return names


def test_a_block_type_is_one_recipe():
    try:
        run("block type")
        config = BlockConfig("conv_pair", 8, 16, 3, stride=2)
        assert [k.macs for k in block_kernels(config, 8)] == [8 * 16 * 9 * 16, 16 * 16 * 9 * 16]
        assert StaticBlock(config)(torch.randn(2, 8, 8, 8)).shape == (2, 16, 4, 4)
    finally:
        BLOCK_TYPES.pop("conv_pair", None)


def test_a_device_prices_a_lut():
    hyperspace = synthetic_hyperspace()
    lut = synthetic_lut(hyperspace, hyperspace.space("synthetic-000-000"), rows_per_cell=2)
    priced = lut.priced(run("device")["OneNanosecondAMac"]())
    np.testing.assert_allclose(priced.columns["latency_ms"], priced.columns["mflops"], rtol=1e-5)
    assert priced.header.device == "toy"


def test_a_teacher_is_any_module_with_features(tmp_path):
    teacher = run("teacher")["Blur"]()
    config = DistillConfig(epochs_fp32=1, epochs_int8=1, batch_size=512)
    data = load_dataset("digits")
    task = StageTask(synthetic_hyperspace(), 1, 0, teacher, data, seed=0)
    stage = StageRun(task, config, tmp_path)
    stage.run()
    assert stage.losses[-1].largest < stage.losses[0].largest


def test_a_dataset_is_a_function_of_that_name():
    try:
        run("dataset")
        data = load_dataset("stripes")
        assert (len(data.train_images), len(data.test_images), data.classes) == (40, 20, 2)
    finally:
        DATASETS.pop("stripes", None)


def test_every_room_is_in_the_table():
    package = ROOT / "nni_spaceevo"
    rooms = {p.name for p in package.iterdir() if p.is_dir() and (p / "__init__.py").is_file()}
    for room in rooms:
        assert f"`{room}/`" in TEXT


@pytest.mark.parametrize("name", ["block type", "device", "teacher", "dataset"])
def test_every_guide_has_code(name):
    assert name in BLOCKS
