"""Distillation in mixed precision, and where it computes. There need not be a GPU."""

import msgspec
import pytest
import torch
from torch import nn

from nni_spaceevo.distill.config import DistillConfig
from nni_spaceevo.distill.loss import nsr_loss
from nni_spaceevo.distill.stage import StageRun, StageTask
from nni_spaceevo.errors import CheckpointError
from nni_spaceevo.quant import ActivationQuantizer

CONFIG = DistillConfig(epochs_fp32=2, epochs_int8=1, batch_size=32)
MIXED = msgspec.structs.replace(CONFIG, mixed_precision=True)


class Smooth(nn.Module):
    """A teacher whose channels all vary, unlike those of one that was hardly trained."""

    widths, fingerprint = (6, 6, 8, 8), "smooth"

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(6, 1, 3, 3, generator=draw))
        self.second = nn.Parameter(torch.randn(8, 6, 3, 3, generator=draw) / 7)
        self.dtypes = set()

    @torch.no_grad()
    def stage_features(self, images, stage):
        before = torch.conv2d(images, self.first, padding=1, stride=2)
        after = torch.tanh(torch.conv2d(before, self.second, padding=1))
        self.dtypes.add(after.dtype)
        return before, after


class Seen:
    """Types of what enters and leaves the modules of a stage in training."""

    def __init__(self, model):
        self.outputs, self.inputs = {}, {}
        for path, module in model.named_modules():
            if not list(module.children()):
                module.register_forward_hook(self.hook(path))

    def hook(self, path):
        def see(module, inputs, output):
            self.inputs.setdefault(path, set()).add(inputs[0].dtype)
            self.outputs.setdefault(path, set()).add(output.dtype)

        return see


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """The same stage in float32 and in mixed precision, and what the latter's modules saw."""
    folder, runs = tmp_path_factory.mktemp("stages"), []
    for config in (CONFIG, MIXED):
        task = StageTask(small.hyperspace, 1, 1, Smooth(), small.data, seed=3)
        runs.append(StageRun(task, config, folder / str(config.mixed_precision)))
    seen = Seen(runs[1].model)
    for run in runs:
        run.run()
    return *runs, seen


class OnCPU:
    """A teacher that is no module and computes where it wants to."""

    widths, fingerprint = (1, 1, 1, 1), "on the CPU"

    def eval(self):
        return self

    def stage_features(self, images, stage):
        return images + torch.ones(1, 1, 16, 16), images


@pytest.mark.parametrize("teacher", [Smooth(), OnCPU()], ids=["module", "none"])
def test_features_come_on_the_device_whatever_the_teacher_is(small, teacher, tmp_path):
    # A device that is everywhere, and that computes shapes alone.
    device = torch.device("meta")
    task = StageTask(small.hyperspace, 1, 1, teacher, small.data, 3, device)
    run = StageRun(task, CONFIG, tmp_path)
    assert {p.device for p in run.model.parameters()} == {device}
    index = torch.arange(4)
    for features in (task.train_features(index, 16, range(4)), task.test_features(index, 16)):
        assert {f.device for f in features} == {device}


def test_convolutions_compute_in_bfloat16_the_teachers_too(trained):
    _, run, seen = trained
    assert run.task.teacher.dtypes == {torch.bfloat16}
    quantizers = [p for p, m in run.model.named_modules() if isinstance(m, ActivationQuantizer)]
    assert any(torch.bfloat16 in seen.inputs[p] for p in quantizers)


def test_weights_and_statistics_stay_in_float32_and_so_does_what_is_quantized(trained):
    _, run, seen = trained
    kinds = {v.dtype for v in run.model.state_dict().values()}
    assert kinds == {torch.float32, torch.bool, torch.int64}
    entry = run.model.entry
    assert seen.outputs["entry"] == {torch.bfloat16, torch.float32}  # without and with quantizers
    assert entry(torch.randn(2, 8, 4, 4).bfloat16()).dtype == torch.float32


def test_losses_are_those_of_float32_but_for_rounding(trained):
    plain, mixed, _ = trained
    for a, b in zip(plain.losses, mixed.losses, strict=True):
        assert (b.largest, b.smallest, b.random) == pytest.approx(
            (a.largest, a.smallest, a.random), rel=0.05
        )
    assert mixed.losses != plain.losses
    assert mixed.losses[-1].largest < mixed.losses[0].largest


def test_the_loss_of_bfloat16_features_is_computed_in_float32():
    teacher = torch.randn(4, 3, 5, 5).bfloat16()
    student = (teacher.float() + 0.01).bfloat16()
    loss = nsr_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss == nsr_loss(student.float(), teacher.float())


def test_mixed_precision_is_another_setting_and_the_device_is_not(trained, small, tmp_path):
    plain, _, _ = trained
    there = plain.path.parent
    again = StageRun(plain.task, msgspec.structs.replace(CONFIG, device="cpu", cache_gb=1), there)
    assert again.made_for == plain.made_for
    with pytest.raises(CheckpointError, match=r"distill\.mixed_precision False, expected True"):
        StageRun(plain.task, MIXED, there)


def test_a_mixed_run_that_was_stopped_continues_to_the_same_bits(trained, small, tmp_path):
    def stop(loss):
        raise KeyboardInterrupt

    _, whole, _ = trained
    task = StageTask(small.hyperspace, 1, 1, Smooth(), small.data, seed=3)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            StageRun(task, MIXED, tmp_path).run(stop)
    found = StageRun(task, MIXED, tmp_path).run().state_dict()
    assert all(torch.equal(found[k], v) for k, v in whole.model.state_dict().items())
