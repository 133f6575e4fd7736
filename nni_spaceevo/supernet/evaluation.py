"""How good a subnet of a supernet is: extracted, recalibrated, and run on held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..hyperspace import SubnetCode
from ..quant import Precision, set_precision
from .data import LabelledImages, calibration_batches, held_out_batches
from .model import Subnet, Supernet
from .recalibration import recalibrate

# Changes with what an evaluation computes: what is kept of other evaluations is not of this one.
EVALUATION = "with the biases of the INT8 file"
_BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """What a subnet reaches on the held-out images.

    Attributes
    ----------
    accuracy : share whose label it names
    loss : mean cross-entropy
    """

    accuracy: float
    loss: float


def calibrated_subnet(
    supernet: Supernet,
    code: SubnetCode,
    data: LabelledImages,
    batch_size: int,
    batches: int,
    precision: Precision | None = None,
) -> Subnet:
    """A subnet of its own, in evaluation mode, its BatchNorm measured on training images.

    In INT8 it is what is deployed as ONNX, bias for bias. The supernet is left as it is.

    Parameters
    ----------
    batch_size, batches : images a batch, and how many batches
    precision : that the subnet is to have; None for the supernet's

    Raises
    ------
    TrainingError
        A batch of one image.
    """
    subnet = supernet.extract(code)
    if precision is not None:
        set_precision(subnet, precision)
    device = next(subnet.parameters()).device
    images = calibration_batches(data, code.resolution, batch_size, batches)
    recalibrate(subnet, (batch.to(device) for batch in images))
    return subnet


@torch.no_grad()
def evaluate(subnet: Subnet, data: LabelledImages, which: Tensor | None = None) -> Evaluation:
    """Run a subnet, in evaluation mode, on held-out images.

    Parameters
    ----------
    which : numbers of the images (n,), at least one; all by default

    Raises
    ------
    ConfigError
        The images have no labels.
    """
    if data.test_labels is None:
        raise ConfigError("evaluation of a subnet: the held-out images have no labels")
    subnet.eval()
    device = next(subnet.parameters()).device
    right, loss = 0, 0.0
    batches = held_out_batches(data, subnet.code.resolution, _BATCH, which=which)
    for images, wanted in batches:
        assert wanted is not None
        labels = wanted.to(device)
        logits = subnet(images.to(device))
        right += int((logits.argmax(1) == labels).sum())
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
    count = data.test_size if which is None else len(which)
    return Evaluation(right / count, loss / count)
