"""What only a GPU can show. Skipped, and said so, where torch sees none."""

import msgspec
import numpy as np
import pytest
import torch
from distill.small_problem import DISTILL, small_problem
from supernet import tiny
from supernet.tiny import stripes, tiny_hyperspace, uniform

from nni_spaceevo.distill.stage import StageRun, StageTask
from nni_spaceevo.hyperspace import SpaceCode, load_hyperspace
from nni_spaceevo.quant import INT8, ActivationQuantizer, WeightQuantizer, set_precision
from nni_spaceevo.supernet.config import SupernetConfig
from nni_spaceevo.supernet.run import SupernetRun, new_supernet
from nni_spaceevo.supernet.trainer import SupernetTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

GPU = torch.device("cuda", 0)
CONFIG = msgspec.structs.replace(tiny.CONFIG, device="cuda", mixed_precision=True)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("unsigned", [False, True])
def test_an_activation_is_quantized_as_on_a_cpu(order, unsigned):
    torch.manual_seed(0)
    x, upstream = torch.randn(2, 8, 12, 9, 9).unbind()
    found = []
    for device in ("cpu", "cuda"):
        quantizer = ActivationQuantizer(unsigned=unsigned).to(device)
        quantizer.enabled = True
        there = x.to(device).contiguous(memory_format=order).detach().requires_grad_()
        quantizer(there)
        y = quantizer(there)
        y.backward(upstream.to(device))
        learned = [p.grad for p in quantizer.parameters()]
        found.append([t.detach().cpu() for t in (y, there.grad, *learned)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=5e-3, atol=1e-4)


def test_quantizers_do_not_wait_for_the_gpu():
    quantizers = ActivationQuantizer(unsigned=False).to(GPU), WeightQuantizer(8).to(GPU)
    x, weight = torch.randn(2, 4, 5, 5, device=GPU), torch.randn(8, 4, 3, 3, device=GPU)

    def train():
        y = torch.nn.functional.conv2d(quantizers[0](x), quantizers[1](weight, weight))
        y.square().mean().backward()

    for quantizer in quantizers:
        quantizer.enabled = True
    train()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_of_a_supernet_is_that_of_a_cpu():
    hyperspace = tiny_hyperspace()
    losses = []
    for device in ("cpu", "cuda"):
        supernet = new_supernet(hyperspace, uniform(hyperspace), CONFIG).to(device)
        trainer = SupernetTrainer(supernet, SupernetConfig(batch_size=32))
        data = stripes()
        set_precision(supernet, INT8)
        supernet.train()
        images = data.train_batch(torch.arange(32), 8).to(device)
        plan = trainer.plan(0, 1, 3, 32)
        trainer._initialize_quantizers(images, plan)
        losses.append(trainer.step(images, data.labels[:32].to(device), plan))
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def test_a_supernet_learns_in_mixed_precision_and_continues(tmp_path):
    hyperspace, data = tiny_hyperspace(), stripes()

    def stop(epoch):
        raise KeyboardInterrupt

    def run(folder):
        return SupernetRun(hyperspace, uniform(hyperspace), data, CONFIG, folder, device=GPU)

    whole = run(tmp_path / "whole")
    whole.run()
    assert whole.epochs[-1].largest < whole.epochs[0].largest
    assert np.mean(list(vars_of(whole.epochs[-1].int8))) > 0.5
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts").run(stop)
    again = run(tmp_path / "parts")
    again.run()
    assert again.epochs[-1].largest == pytest.approx(whole.epochs[-1].largest, rel=0.2)


def test_a_stage_is_distilled_in_mixed_precision_and_continues(tmp_path):
    small = small_problem(tmp_path)
    config = msgspec.structs.replace(DISTILL, mixed_precision=True, device="cuda")
    losses = {}
    for device in ("cpu", "cuda"):
        task = StageTask(small.hyperspace, 1, 1, small.teacher, small.data, 3, torch.device(device))
        run = StageRun(task, config, tmp_path / device)
        run.run()
        losses[device] = [(e.largest, e.smallest, e.random) for e in run.losses]
        assert {p.device.type for p in run.model.parameters()} == {device}
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=0.1)

    def stop(loss):
        raise KeyboardInterrupt

    task = StageTask(small.hyperspace, 1, 1, small.teacher, small.data, 3, GPU)
    with pytest.raises(KeyboardInterrupt):
        StageRun(task, config, tmp_path / "parts").run(stop)
    again = StageRun(task, config, tmp_path / "parts")
    again.run()
    found = [(e.largest, e.smallest, e.random) for e in again.losses]
    np.testing.assert_allclose(found, losses["cuda"], rtol=0.02)


def vars_of(accuracies):
    """Its figures."""
    return (getattr(accuracies, key) for key in accuracies.__struct_fields__)


def test_every_block_type_of_the_presets_trains():
    for name in ("onnxw", "mobilew"):
        hyperspace = load_hyperspace(name)
        blocks = len(hyperspace.block_types)
        stages = len(hyperspace.searchable)
        for start in range(0, blocks, stages):
            choice = tuple((start + i) % blocks for i in range(stages))
            space = SpaceCode(hyperspace.name, choice, (0,) * stages)
            supernet = new_supernet(hyperspace, space, CONFIG).to(GPU)
            trainer = SupernetTrainer(supernet, CONFIG)
            trainer.start_epoch(CONFIG.fp32.epochs)
            images = torch.randn(4, 3, 160, 160, device=GPU)
            labels = torch.arange(4, device=GPU)
            plan = trainer.plan(CONFIG.fp32.epochs, 0, 3, 4)
            assert np.isfinite(trainer.step(images, labels, plan)).all()
