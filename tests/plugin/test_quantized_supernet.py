"""The supernet as a one-shot strategy of NNI: what it trains, how it continues, what it refuses."""

from __future__ import annotations

import atexit
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.space import RawFormatModelSpace
from nni.nas.strategy import RegularizedEvolution
from pytorch_lightning import Callback
from supernet.tiny import CONFIG, stripes, tiny_hyperspace, uniform
from torch import nn
from torch.utils.data import TensorDataset

from nni_spaceevo.errors import CheckpointError, ConfigError, LockedError, TrainingError
from nni_spaceevo.files import exclusive
from nni_spaceevo.plugin.quantized_supernet import QuantizedSupernet
from nni_spaceevo.plugin.subnet_space import SubnetModelSpace
from nni_spaceevo.quant import uninitialized
from nni_spaceevo.supernet.model import Subnet
from nni_spaceevo.supernet.recalibration import recalibrate
from nni_spaceevo.supernet.weights import load_supernet

pytestmark = pytest.mark.filterwarnings("ignore")

TINY = tiny_hyperspace()
CODE = uniform(TINY)
DATA = stripes()
HELD_OUT = TensorDataset(DATA.test_images, DATA.test_labels)


def new_space() -> SubnetModelSpace:
    torch.manual_seed(0)
    return SubnetModelSpace(TINY, CODE)


def evaluator(
    epochs: int = CONFIG.epochs,
    batch_size: int = 32,
    shift: int = 0,
    count: int | None = None,
    train: DataLoader | None = None,
    **kwargs: Any,
) -> Classification:
    images = TensorDataset(DATA.images[:count], DATA.labels[:count] + shift)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    return Classification(
        num_classes=4,
        max_epochs=epochs,
        train_dataloaders=train or DataLoader(images, batch_size=batch_size, shuffle=True),
        val_dataloaders=DataLoader(HELD_OUT, batch_size=20),
        accelerator="cpu",
        enable_model_summary=False,
        **quiet,
        **kwargs,
    )


def train(folder: Path, space: SubnetModelSpace | None = None, **kwargs: Any) -> QuantizedSupernet:
    strategy = QuantizedSupernet(folder, CONFIG)
    model_space = RawFormatModelSpace(space or new_space(), evaluator(**kwargs))
    strategy(model_space, SequentialExecutionEngine())
    return strategy


def weights(space: SubnetModelSpace) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in space.supernet.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> QuantizedSupernet:
    return train(tmp_path_factory.mktemp("whole"))


def accuracy(subnet: Subnet) -> float:
    recalibrate(subnet, DATA.images.split(32))
    named = subnet(DATA.test_images).argmax(1)
    return float((named == DATA.test_labels).float().mean())


# ---- training -----------------------------------------------------------------------------------


def test_the_model_space_becomes_an_int8_supernet_that_knows_the_classes(
    finished: QuantizedSupernet,
) -> None:
    supernet = finished.supernet.supernet
    assert supernet.image.enabled and uninitialized(supernet) == []
    for code in (supernet.largest, supernet.smallest):
        assert accuracy(supernet.extract(code)) > 0.4  # Of four classes.


def test_its_file_is_the_supernet(finished: QuantizedSupernet) -> None:
    loaded = load_supernet(finished.folder / "tiny-00-00.pt", TINY, CODE)
    assert equal(loaded.state_dict(), finished.supernet.supernet.state_dict())
    space = SubnetModelSpace(TINY, CODE, finished.folder / "tiny-00-00.pt")
    assert equal(weights(space), weights(finished.supernet))


def test_its_result_is_the_accuracy_of_the_largest_subnet_recalibrated(
    finished: QuantizedSupernet,
) -> None:
    (model,) = finished.engine.list_models()
    largest = finished.supernet.supernet.extract(finished.supernet.supernet.largest)
    named = largest(DATA.test_images).argmax(1)  # Statistics as the last evaluation left them.
    assert model.metric == pytest.approx(float((named == DATA.test_labels).float().mean()))
    (best,) = finished.list_models()
    assert best.executable_model().code == TINY.largest_subnet(CODE)


def test_every_recalibration_is_for_the_largest_subnet(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watch(Callback):
        def on_validation_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
            seen.append((module.space.active, module.training, {m.momentum for m in norms}))

    train(tmp_path, callbacks=[Watch()])
    assert len(seen) > 2 * CONFIG.epochs
    assert set(map(str, seen)) == {str((TINY.largest_subnet(CODE), False, {0.1}))}


def test_two_runs_give_the_same_bits(finished: QuantizedSupernet, tmp_path: Path) -> None:
    torch.rand(3)
    assert equal(weights(train(tmp_path).supernet), weights(finished.supernet))


def test_it_trains_in_bfloat16_too(finished: QuantizedSupernet, tmp_path: Path) -> None:
    supernet = train(tmp_path, precision="bf16-mixed").supernet.supernet
    assert not equal(supernet.state_dict(), finished.supernet.supernet.state_dict())
    assert all(p.dtype == torch.float32 for p in supernet.parameters())
    assert accuracy(supernet.extract(supernet.largest)) > 0.4


class Stop(Callback):
    """Kills the training in an epoch, after one of its steps."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("killed")


@pytest.mark.parametrize("epoch", range(CONFIG.epochs))
def test_a_killed_training_continues_to_the_same_bits(
    finished: QuantizedSupernet, tmp_path: Path, epoch: int
) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, callbacks=[Stop(epoch)])
    assert not (tmp_path / "tiny-00-00.pt").exists()
    continued = train(tmp_path)
    assert equal(weights(continued.supernet), weights(finished.supernet))
    assert (tmp_path / "tiny-00-00.pt").is_file()


def test_a_finished_training_has_its_result_again(finished: QuantizedSupernet) -> None:
    again = train(finished.folder, callbacks=[Stop(epoch) for epoch in range(9)])
    assert equal(weights(again.supernet), weights(finished.supernet))
    (model,), (other,) = again.engine.list_models(), finished.engine.list_models()
    assert model.metric == other.metric


# ---- with NNI -----------------------------------------------------------------------------------


def run(experiment: NasExperiment) -> None:
    experiment.run()
    experiment.stop()
    # NNI would stop it once more when Python ends.
    atexit.unregister(experiment.stop)


def test_an_experiment_trains_and_another_one_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    space = new_space()
    first = NasExperiment(space, evaluator(), QuantizedSupernet("supernet", CONFIG))
    run(first)
    assert Path("supernet/tiny-00-00.pt").is_file()

    def judge(subnet: Subnet) -> None:
        import nni

        nni.report_final_result(accuracy(subnet))

    evolution = RegularizedEvolution(population_size=4, sample_size=2, seed=0)
    second = NasExperiment(space, FunctionalEvaluator(judge), evolution)
    second.config.execution_engine.max_model_count = 10
    run(second)
    (best,) = second.export_top_models(1, formatter="instance")
    assert best.image.enabled
    assert accuracy(best) == max(m.metric for m in second.strategy.list_models(sort=False))
    assert accuracy(best) > 0.4


# ---- what is refused ----------------------------------------------------------------------------


class Other(ModelSpace):
    """Another model space."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = LayerChoice([nn.Identity(), nn.ReLU()], label="some")


def start(space: ModelSpace, judge: Any, folder: Path) -> None:
    strategy = QuantizedSupernet(folder, CONFIG)
    strategy(RawFormatModelSpace(space, judge), SequentialExecutionEngine())


def test_what_does_not_fit_is_refused_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a Other; expected a SubnetModelSpace"):
        start(Other(), evaluator(), tmp_path)
    with pytest.raises(ConfigError, match="is a FunctionalEvaluator; expected one of NNI's Light"):
        start(new_space(), FunctionalEvaluator(print), tmp_path)
    with pytest.raises(ConfigError, match="max_epochs 7; expected 4, those of both phases"):
        start(new_space(), evaluator(7), tmp_path)
    with pytest.raises(ConfigError, match="devices 2; expected 1, several train with SupernetRun"):
        start(new_space(), evaluator(devices=2), tmp_path)
    with pytest.raises(ConfigError, match="precision 64-true; expected 32-true or bf16-mixed"):
        start(new_space(), evaluator(precision="64-true"), tmp_path)
    with pytest.raises(ConfigError, match="batches have 16 images; expected 32, the batch_size"):
        start(new_space(), evaluator(batch_size=16), tmp_path)
    for shift, label in ((1, 4), (-1, -1)):
        message = (
            rf"have label {label}; the last stage of tiny-00-00 has 4 classes, expected 0 to 3"
        )
        with pytest.raises(ConfigError, match=message):
            start(new_space(), evaluator(shift=shift), tmp_path)


def test_a_last_batch_of_one_image_is_refused_and_a_small_one_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch 1 of the evaluator has one image.*drop_last"):
        start(new_space(), evaluator(count=33), tmp_path / "one")
    start(new_space(), evaluator(count=40), tmp_path / "eight")
    assert (tmp_path / "eight" / "tiny-00-00.pt").is_file()


def test_batches_that_are_no_pairs_are_refused(tmp_path: Path) -> None:
    three = TensorDataset(DATA.images, DATA.labels, DATA.labels)
    with pytest.raises(ConfigError, match="expected pairs of images and labels"):
        start(new_space(), evaluator(train=DataLoader(three, batch_size=32)), tmp_path)


def test_two_trainings_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "tiny-00-00.training.pt"),
        pytest.raises(LockedError, match=r"tiny-00-00\.training\.pt"),
    ):
        train(tmp_path)


def test_what_lightning_says_is_not_said_again(finished: QuantizedSupernet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="evaluate_every is what the evaluator's trainer says"):
        QuantizedSupernet(tmp_path, evaluate_every=1)
    other = msgspec.structs.replace(CONFIG, evaluate_every=9, evaluated_subnets=1)
    again = QuantizedSupernet(finished.folder, other)
    again(RawFormatModelSpace(new_space(), evaluator()), SequentialExecutionEngine())
    assert equal(weights(again.supernet), weights(finished.supernet))


def test_a_wrong_setting_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"QuantizedSupernet: .*unknown field `epochs`.*fp32, int8"
    ):
        QuantizedSupernet(tmp_path, epochs=3)
    strategy = QuantizedSupernet(tmp_path, CONFIG, dropout=0.5, int8=CONFIG.fp32)
    assert strategy.config == msgspec.structs.replace(CONFIG, dropout=0.5, int8=CONFIG.fp32)
    assert repr(strategy).endswith("2 + 2 epochs)")


def test_checkpoints_of_other_settings_and_spaces_are_refused(
    finished: QuantizedSupernet, tmp_path: Path
) -> None:
    other = QuantizedSupernet(finished.folder, CONFIG, dropout=0.5)
    with pytest.raises(CheckpointError, match=r"supernet\.dropout 0\.2, expected 0\.5"):
        other(RawFormatModelSpace(new_space(), evaluator()), SequentialExecutionEngine())
    content = (finished.folder / "tiny-00-00.training.pt").read_bytes()
    (tmp_path / "tiny-11-00.training.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="space tiny-00-00, expected tiny-11-00"):
        train(tmp_path, SubnetModelSpace(TINY, "tiny-11-00"))


def test_a_loss_that_is_not_finite_names_epoch_and_subnet(tmp_path: Path) -> None:
    space = new_space()
    with torch.no_grad():
        next(space.supernet.parameters()).fill_(np.nan)
        for parameter in space.supernet.parameters():
            parameter.mul_(np.nan)
    with pytest.raises(TrainingError, match=r"loss of subnet d1#2#3.* is nan in fp32 epoch 1"):
        train(tmp_path, space)
