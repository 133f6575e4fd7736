"""Training of the quantized-for-all supernet as a one-shot strategy of NNI, on Lightning.

The evaluator says what is trained on and how it is judged; how it is trained is `SupernetConfig`'s.
Lightning runs the loop, and `SupernetTrainer` does the steps.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, cast

import torch
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import Lightning, LightningModule, Trainer
from nni.nas.execution import ExecutionEngine
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from nni.nas.oneshot.pytorch.strategy import OneShotStrategy
from nni.nas.space import ExecutableModelSpace, RawFormatModelSpace
from torch import Tensor

from ..errors import ConfigError
from ..files import convert, exclusive, plain
from ..network.checkpoint import load_checkpoint, save_checkpoint, settings
from ..quant import set_precision
from ..supernet.config import SupernetConfig
from ..supernet.recalibration import recalibrate
from ..supernet.trainer import SupernetTrainer
from ..supernet.weights import save_supernet
from .subnet_space import SubnetModelSpace

# Settings of `SupernetConfig` that Lightning has its own for.
_LIGHTNINGS = ("device", "evaluate_every", "evaluated_subnets")


class QuantizedSupernet(OneShotStrategy):
    """Trains a `SubnetModelSpace` so that every subnet is INT8: FP32 first, then LSQ+.

    The largest, the smallest and a few random subnets learn in each step, the others from the
    largest. The evaluator's trainer must run as many epochs as both phases have, on batches of
    (images, labels); its optimizer is not used. Validation, and the result, are those of the
    largest subnet, BatchNorm recalibrated. Afterwards the model space has the trained weights.

    Parameters
    ----------
    folder : where `<space>.training.pt`, from which a killed training continues at the epoch in
        which it was, and in the end `<space>.pt` lie; other images need another folder
    config : how it is trained; where it is trained and when it is judged are Lightning's to say, so
        its `device`, `evaluate_every` and `evaluated_subnets` are not looked at
    **changes : fields of `SupernetConfig` that are other than in `config`, as plain data

    Raises
    ------
    ConfigError
        A wrong setting; or, when it starts, a model space or an evaluator that does not fit.
    CheckpointError
        The checkpoint in the folder is of another space or of other settings.
    LockedError
        Another process is training the same space in the folder.
    """

    def __init__(
        self, folder: Path | str, config: SupernetConfig | None = None, **changes: Any
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        if theirs := [key for key in _LIGHTNINGS if key in changes]:
            raise ConfigError(
                f"QuantizedSupernet: {theirs[0]} is what the evaluator's trainer says; expected it "
                "there alone"
            )
        data = {**plain(config or SupernetConfig()), **plain(changes)}
        self.config = convert(data, SupernetConfig, "QuantizedSupernet")

    def extra_repr(self) -> str:
        """The text between the parentheses of `repr`."""
        return f"{self.folder}, {self.config.fp32.epochs} + {self.config.int8.epochs} epochs"

    def configure_oneshot_module(self, training_module: LightningModule) -> SandwichModule:
        """What Lightning trains in place of the evaluator's module."""
        return SandwichModule(training_module, self.config, self.folder)

    def _initialize(
        self, model_space: ExecutableModelSpace, engine: ExecutionEngine
    ) -> ExecutableModelSpace:
        space = getattr(model_space, "model_space", model_space)
        if not isinstance(space, SubnetModelSpace):
            raise ConfigError(
                f"QuantizedSupernet: the model space is a {type(space).__name__}; expected a "
                "SubnetModelSpace"
            )
        if not isinstance(model_space.evaluator, Lightning):
            raise ConfigError(
                f"QuantizedSupernet: the evaluator is a {type(model_space.evaluator).__name__}; "
                "expected one of NNI's Lightning evaluators, such as Classification"
            )
        self._check_trainer(model_space.evaluator.trainer)
        return super()._initialize(cast(RawFormatModelSpace, model_space), engine)

    def _run(self) -> None:
        mutated = cast(RawFormatModelSpace, self._mutated_model_space).model_space
        with exclusive(_checkpoint(self.folder, cast(SubnetModelSpace, mutated))):
            super()._run()

    def _check_trainer(self, trainer: Trainer) -> None:
        for what, given, expected, why in (
            ("max_epochs", trainer.max_epochs, self.config.epochs, "those of both phases"),
            ("devices", trainer.num_devices, 1, "several train with SupernetRun and torchrun"),
            ("num_nodes", trainer.num_nodes, 1, "several train with SupernetRun and torchrun"),
        ):
            if given != expected:
                raise ConfigError(
                    f"QuantizedSupernet: the evaluator's trainer has {what} {given}; expected "
                    f"{expected}, {why}"
                )
        if trainer.precision not in ("32-true", "bf16-mixed"):
            # Others scale the loss, and so the gradients that are clipped, or have too few digits.
            raise ConfigError(
                f"QuantizedSupernet: the evaluator's trainer has precision {trainer.precision}; "
                "expected 32-true or bf16-mixed"
            )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the folder has it all."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load: training continues from the folder."""


def _checkpoint(folder: Path, space: SubnetModelSpace) -> Path:
    return folder / f"{space.supernet.space}.training.pt"


class SandwichModule(BaseOneShotLightningModule):
    """Steps of `SupernetTrainer` in Lightning's loop, and an evaluator's module to judge them.

    Parameters
    ----------
    training_module : the evaluator's
    config : how the supernet is trained
    folder : where its files lie
    """

    def __init__(
        self, training_module: LightningModule, config: SupernetConfig, folder: Path
    ) -> None:
        super().__init__(training_module)
        self.config, self.folder = config, folder
        self._trainer_of_steps: SupernetTrainer | None = None
        self._metrics: dict[str, float] = {}

    @property
    def space(self) -> SubnetModelSpace:
        """The model space that is trained."""
        return cast(SubnetModelSpace, self.model)

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return _checkpoint(self.folder, self.space)

    @property
    def weights_path(self) -> Path:
        """The trained supernet."""
        return self.folder / f"{self.space.supernet.space}.pt"

    @property
    def _made_for(self) -> dict[str, str]:
        deciding = {k: v for k, v in self.config.deciding.items() if k not in _LIGHTNINGS}
        return {**self.space.supernet.made_for, **settings("supernet", deciding)}

    # ---- training -----------------------------------------------------------------------------

    @property
    def steps(self) -> SupernetTrainer:
        """What does the steps."""
        if self._trainer_of_steps is None:
            self._trainer_of_steps = SupernetTrainer(self.space.supernet, self.config)
        return self._trainer_of_steps

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of the weights, by which Lightning counts steps."""
        return self.steps.optimizer

    def on_fit_start(self) -> None:
        """Continue from the checkpoint if there is one."""
        if self.path.is_file():
            state = load_checkpoint(self.path, self._made_for)
            self.steps.load_state_dict(state)
            progress = self.trainer.fit_loop.epoch_progress.current
            progress.processed = progress.completed = state["epochs"]
            self._metrics = state["metrics"]
        # Lightning starts to load the first epoch's images before the epoch.
        self._seed()
        super().on_fit_start()

    def on_train_epoch_start(self) -> None:
        """Let order and augmentation of the images follow from the epoch alone."""
        self._seed()
        self.steps.start_epoch(self.trainer.current_epoch)
        super().on_train_epoch_start()

    def _seed(self) -> None:
        torch.manual_seed(self.config.seed * 2**20 + self.trainer.current_epoch)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Refuse a label that is no class, while it can be looked at without waiting for a GPU.

        What is validated with is the evaluator's to understand.

        Raises
        ------
        ConfigError
            Names the label and the classes; or a batch to train on is no pair.
        """
        if not self.trainer.training:
            return super().on_before_batch_transfer(batch, dataloader_idx)
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ConfigError(
                f"QuantizedSupernet: the evaluator's batches are of type {type(batch).__name__}; "
                "expected pairs of images and labels"
            )
        supernet, labels = self.space.supernet, batch[1]
        classes = supernet.hyperspace.stages[-1].widths[-1]
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
            raise ConfigError(
                f"QuantizedSupernet: the evaluator's images have label {wrong}; the last stage of "
                f"{supernet.space} has {classes} classes, expected 0 to {classes - 1}"
            )
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """One step of the sandwich rule.

        Raises
        ------
        TrainingError
            A loss is not finite; names epoch and subnet.
        ConfigError
            The batches are not as large as the settings say, one has a single image, or the loader
            has no length.
        """
        images, labels = batch
        if batch_idx == 0 and len(images) != self.config.batch_size:
            raise ConfigError(
                f"QuantizedSupernet: the evaluator's batches have {len(images)} images; expected "
                f"{self.config.batch_size}, the batch_size of the settings"
            )
        if len(images) < 2:
            raise ConfigError(
                f"QuantizedSupernet: batch {batch_idx} of the evaluator has one image, too few for "
                "BatchNorm; expected a loader with drop_last=True"
            )
        count = self.trainer.num_training_batches
        if not math.isfinite(count):
            raise ConfigError(
                "QuantizedSupernet: the evaluator's loader does not know how many batches it has; "
                "expected a length, for learning rates follow from it"
            )
        moment = (self.trainer.current_epoch, batch_idx, int(count))
        plan = self.steps.plan(*moment, len(images))
        losses = self.steps.gradients(images, labels, plan, self.manual_backward)
        self.optimizers().step()
        self.steps.range_optimizer.step()
        for name, loss in zip(("largest", "smallest", "random"), losses, strict=True):
            self.log(f"train_loss_{name}", float(loss))

    def on_train_epoch_end(self) -> None:
        """Write the checkpoint."""
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        content = {
            **self.steps.state_dict(),
            "epochs": self.trainer.current_epoch + 1,
            "metrics": metrics,
        }
        save_checkpoint(self.path, self._made_for, content)

    def on_fit_end(self) -> None:
        """Write the trained supernet."""
        if self.trainer.current_epoch >= self.config.epochs:
            supernet = self.space.supernet
            set_precision(supernet, self.steps.precision(self.config.epochs - 1))
            save_supernet(self.weights_path, supernet.eval())
        # Where nothing was left to train, the result is that of the last epoch.
        for name, value in self._metrics.items():
            self.trainer.callback_metrics.setdefault(name, torch.tensor(value))
        super().on_fit_end()

    # ---- evaluation ---------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Recalibrate BatchNorm for the largest subnet, on batches of the training images."""
        supernet = self.space.supernet
        self.space.activate(supernet.largest)
        if self.trainer.sanity_checking:
            return
        batches = itertools.islice(self.trainer.train_dataloader, self.config.recalibration_batches)
        images = (batch[0].to(self.device) for batch in batches)
        recalibrate(supernet, images, self.space)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """What the evaluator makes of a batch and the largest subnet."""
        return self.training_module.validation_step(*args, **kwargs)

    def export(self) -> Sample:
        """The largest subnet; to find better ones within a latency is another search."""
        return self.space.choices.sample(self.space.supernet.largest)
