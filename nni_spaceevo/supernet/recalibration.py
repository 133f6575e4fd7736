"""BatchNorm's statistics of one subnet: shared parameters, but statistics of its own.

Sub-networks of different widths see features of different statistics (Yu and Huang, ICCV 2019), so
they are measured anew, on training images, before a subnet is evaluated, searched or exported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from ..network import StaticNetwork
from ..network.folding import settle_biases


@torch.no_grad()
def recalibrate(
    module: nn.Module, batches: Iterable[Tensor], run: Callable[[Tensor], object] | None = None
) -> None:
    """Set the statistics of all BatchNorms to the means of those of some batches.

    Everything else is as in evaluation: quantizers compute what the device computes. Statistics
    make the biases of a static INT8 network, so these are rounded to those of its file then.

    Parameters
    ----------
    module : a subnet, or a supernet; left in evaluation mode
    batches : images (n, channels, h, w), at least one batch
    run : what is done with a batch, for a supernet `lambda images: supernet(images, subnet)`;
        `module` itself by default

    Raises
    ------
    TrainingError
        No batch, or a batch of one image, from which no statistics can be taken.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.train()
    count, one = 0, torch.empty(0)
    try:
        for count, images in enumerate(batches, 1):
            _require_several(images)
            one = images[:1]
            for norm in norms:
                norm.momentum = 1 / count  # A running mean over the batches so far.
            (run or module)(images)
    finally:
        module.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not count:
        raise TrainingError("BatchNorm recalibration: no images; expected at least one batch")
    if run is None and isinstance(module, StaticNetwork):
        settle_biases(module, one)


def _require_several(images: Tensor) -> None:
    if len(images) < 2:
        raise TrainingError(
            f"BatchNorm recalibration: a batch of {len(images)} images is too small to take "
            "statistics from; expected at least 2"
        )
