"""CONTRIBUTING.md tells the truth: its code runs and does what the text says."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nni_spaceevo.distill.config import DistillConfig, PretrainedConfig
from nni_spaceevo.distill.data import load_dataset
from nni_spaceevo.distill.stage import StageRun, StageTask
from nni_spaceevo.distill.teachers import check_teacher
from nni_spaceevo.distill.teachers.pretrained import pretrained_teacher
from nni_spaceevo.hyperspace import (
    BLOCK_TYPES,
    BlockConfig,
    ConvStep,
    Recipe,
    block_kernels,
    block_type,
)
from nni_spaceevo.latency.devices import get_device
from nni_spaceevo.latency.lowering import RuntimeKernel
from nni_spaceevo.network import StaticBlock
from nni_spaceevo.testing import synthetic_hyperspace, synthetic_lut

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"### a ([\w ]+)\n((?:(?!\n##).)*)", TEXT, re.S))
BLOCKS = {name: re.findall(r"```python\n(.*?)```", text, re.S) for name, text in SECTIONS.items()}


def run(name, number=0):
    """The names that a block of code of a section defines."""
    code = BLOCKS[name][number]
    assert len(code.strip().splitlines()) <= 10
    names = {
        "block_type": block_type,
        "BlockConfig": BlockConfig,
        "ConvStep": ConvStep,
        "Recipe": Recipe,
        "np": np,
    }
    exec(code, names)
    return names


def test_a_block_type_is_one_recipe():
    try:
        run("block type")
        config = BlockConfig("conv_pair", 8, 16, 3, stride=2)
        assert [k.macs for k in block_kernels(config, 8)] == [8 * 16 * 9 * 16, 16 * 16 * 9 * 16]
        assert StaticBlock(config)(torch.randn(2, 8, 8, 8)).shape == (2, 16, 4, 4)
    finally:
        BLOCK_TYPES.pop("conv_pair", None)


def test_a_device_is_a_class_with_two_methods(tmp_path, monkeypatch):
    code = BLOCKS["device"][0]
    assert len(code.strip().splitlines()) <= 25
    (tmp_path / "mymodule.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    device = get_device("mymodule:MyDevice")
    kernel = RuntimeKernel("conv", 7, 16, 16, 3)
    blocks = [BlockConfig("conv", 3, 16, 3, 2, activation="relu")]
    for timed in (device.kernel(kernel, 2), device.idle(2), device.network(blocks, 16)):
        assert timed.least_us(1, 2) > 0
    assert device.machine().runtime == "my runtime 1.0"
    assert device.lowering().operators


def test_a_latency_model_prices_a_lut():
    hyperspace = synthetic_hyperspace()
    lut = synthetic_lut(hyperspace, hyperspace.space("synthetic-000-000"), rows_per_cell=2)
    priced = lut.priced(run("device", 1)["OneNanosecondAMac"]())
    np.testing.assert_allclose(priced.columns["latency_ms"], priced.columns["mflops"], rtol=1e-5)
    assert priced.header.device == "toy"


@pytest.fixture
def mymodule(tmp_path, monkeypatch):
    """A folder whose `mymodule.py` is all teachers and datasets that the guide shows."""
    codes = [BLOCKS[name][0] for name in ("teacher", "dataset")]
    assert all(len(code.strip().splitlines()) <= 10 for code in codes)
    (tmp_path / "mymodule.py").write_text("\n".join(codes))
    monkeypatch.delitem(sys.modules, "mymodule", raising=False)
    return tmp_path


def test_a_teacher_and_a_dataset_are_named_by_their_import_path(mymodule):
    hyperspace = synthetic_hyperspace()
    data = load_dataset("mymodule:stripes", mymodule)
    assert (data.train_size, data.test_size, data.train_labels) == (40, 20, None)
    named = PretrainedConfig(model="mymodule:Blur")
    teacher = pretrained_teacher(named, hyperspace, data, mymodule, seed=0)
    assert len(check_teacher(teacher, hyperspace, data)) == 3
    config = DistillConfig(epochs_fp32=3, epochs_int8=1, batch_size=8)
    stage = StageRun(StageTask(hyperspace, 1, 0, teacher, data, seed=0), config, mymodule)
    stage.run()
    assert stage.losses[-1].largest < stage.losses[0].largest


def test_every_room_is_in_the_table():
    package = ROOT / "nni_spaceevo"
    rooms = {p.name for p in package.iterdir() if p.is_dir() and (p / "__init__.py").is_file()}
    for room in rooms:
        assert f"`{room}/`" in TEXT


@pytest.mark.parametrize("name", ["block type", "device", "teacher", "dataset"])
def test_every_guide_has_code(name):
    assert BLOCKS[name]
