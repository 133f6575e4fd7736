"""BatchNorm's statistics: those of a subnet's own features, taken with the device's arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nni_spaceevo.errors import TrainingError
from nni_spaceevo.quant import FP32, INT8
from nni_spaceevo.supernet.recalibration import recalibrate

from .tiny import tiny_hyperspace, uniform, used_supernet


def batches(count, n=6):
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(n, 1, 12, 12, generator=rng) * (i + 1) + i for i in range(count)]


def test_statistics_are_the_means_over_the_batches():
    norm = nn.BatchNorm2d(1)
    momentum, images = norm.momentum, batches(3)
    recalibrate(norm, images)
    means = torch.stack([b.mean() for b in images])
    variances = torch.stack([b.var() for b in images])
    torch.testing.assert_close(norm.running_mean, means.mean().view(1))
    torch.testing.assert_close(norm.running_var, variances.mean().view(1))
    assert norm.momentum == momentum
    assert not norm.training


def test_it_does_not_matter_what_the_statistics_were():
    hyperspace = tiny_hyperspace()
    subnets = []
    for filled in (0.0, 7.0):
        supernet = used_supernet(hyperspace, uniform(hyperspace), INT8)
        for name, buffer in supernet.named_buffers():
            if "running" in name:
                buffer.fill_(filled)
        subnets.append(supernet.extract(supernet.largest))
        recalibrate(subnets[-1], batches(2))
    a, b = (s.state_dict() for s in subnets)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("precision", "biases"), [(FP32, set()), (INT8, {"bias"})], ids=["fp32", "int8"]
)
def test_nothing_else_changes(precision, biases):
    hyperspace = tiny_hyperspace()
    supernet = used_supernet(hyperspace, uniform(hyperspace), precision)
    subnet = supernet.extract(supernet.largest)
    before = {k: v.clone() for k, v in subnet.state_dict().items()}
    recalibrate(subnet, batches(2))
    after = subnet.state_dict()
    changed = {k.rpartition(".")[2] for k in after if not torch.equal(before[k], after[k])}
    assert changed == {"running_mean", "running_var"} | biases


def test_a_batch_of_one_image_is_refused_and_the_momentum_stays():
    norm = nn.BatchNorm2d(1)
    with pytest.raises(TrainingError, match="a batch of 1 images is too small"):
        recalibrate(norm, [*batches(1), *batches(1, n=1)])
    assert norm.momentum == 0.1
    with pytest.raises(TrainingError, match="no images; expected at least one batch"):
        recalibrate(norm, [])


class Active(nn.Module):
    """A supernet as a network, as NNI's model space is one: of its largest subnet at the moment."""

    def __init__(self, supernet):
        super().__init__()
        self.supernet = supernet

    def forward(self, images):
        return self.supernet(images, self.supernet.largest)


def test_a_supernet_keeps_its_biases():
    hyperspace = tiny_hyperspace()
    active = Active(used_supernet(hyperspace, uniform(hyperspace), INT8))
    before = {k: v.clone() for k, v in active.state_dict().items()}
    recalibrate(active, batches(2))
    after = active.state_dict()
    changed = {k.rpartition(".")[2] for k in after if not torch.equal(before[k], after[k])}
    assert changed == {"running_mean", "running_var"}
