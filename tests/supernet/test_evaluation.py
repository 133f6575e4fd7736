"""How good a subnet is: extracted, recalibrated, and run on all held-out images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nni_spaceevo.errors import ConfigError, TrainingError
from nni_spaceevo.network.folding import settle_biases
from nni_spaceevo.quant import INT8
from nni_spaceevo.supernet.evaluation import calibrated_subnet, evaluate
from nni_spaceevo.supernet.recalibration import recalibrate

from .tiny import stripes, tiny_hyperspace, uniform, used_supernet

TINY = tiny_hyperspace()
DATA = stripes()


def test_accuracy_and_loss_are_those_of_all_held_out_images():
    data = stripes(test=300)
    supernet = used_supernet(TINY, uniform(TINY))
    subnet = supernet.extract(supernet.smallest)
    logits = subnet(data.test_images)
    found = evaluate(subnet, data)
    right = (logits.argmax(1) == data.test_labels).sum().item()
    assert found.accuracy == right / 300
    assert found.loss == pytest.approx(F.cross_entropy(logits, data.test_labels).item(), rel=1e-5)


def test_evaluation_leaves_the_supernet_as_it_is():
    supernet = used_supernet(TINY, uniform(TINY), INT8).train()
    before = {k: v.clone() for k, v in supernet.state_dict().items()}
    subnet = calibrated_subnet(supernet, supernet.largest, DATA, 32, 2)
    evaluate(subnet, DATA)
    assert supernet.training and not subnet.training
    assert all(torch.equal(v, before[k]) for k, v in supernet.state_dict().items())


def test_its_biases_are_those_that_a_device_adds():
    supernet = used_supernet(TINY, uniform(TINY), INT8)
    code = supernet.largest
    subnet = calibrated_subnet(supernet, code, DATA, 32, 2)
    plain = supernet.extract(code)
    images = DATA.train_batch(torch.arange(64), code.resolution)
    recalibrate(plain, images.split(32), plain)
    settled = {name: value.clone() for name, value in subnet.state_dict().items()}
    assert any(not torch.equal(value, settled[name]) for name, value in plain.state_dict().items())
    settle_biases(plain, images)
    for network in (plain, subnet):
        torch.testing.assert_close(network.state_dict(), settled, rtol=1e-6, atol=1e-7)
        settle_biases(network, images)


def test_it_is_the_same_whatever_subnet_was_judged_before():
    supernet = used_supernet(TINY, uniform(TINY), INT8)
    first, _, again = (
        evaluate(calibrated_subnet(supernet, code, DATA, 32, 2), DATA)
        for code in (supernet.largest, supernet.smallest, supernet.largest)
    )
    assert first == again


def test_one_image_is_too_few_and_labels_are_needed():
    supernet = used_supernet(TINY, uniform(TINY))
    with pytest.raises(TrainingError, match="a batch of 1 images is too small"):
        calibrated_subnet(supernet, supernet.largest, stripes(train=1), 32, 2)
    bare = replace(DATA, test_labels=None)
    with pytest.raises(ConfigError, match="held-out images have no labels"):
        evaluate(supernet.extract(supernet.largest), bare)
