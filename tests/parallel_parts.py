"""What a process computes of a shared batch; `test_parallel.py` runs it in three processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from nni_spaceevo import parallel
from nni_spaceevo.distill.loss import nsr_loss
from nni_spaceevo.errors import TrainingError
from nni_spaceevo.parallel import Ranks, joined
from nni_spaceevo.quant import ActivationQuantizer

IMAGES = (7, 2)


def results(ranks: Ranks, images: int) -> dict[str, Any]:
    """Everything about a batch of so many images, as one process sees it."""
    part = ranks.part(images)
    draw = torch.Generator().manual_seed(images)
    x, goal = torch.randn(2, images, 4, 3, 3, dtype=torch.float64, generator=draw) * 2 + 1
    x, goal = x[part].clone().requires_grad_(), goal[part]
    weight = torch.nn.Parameter(torch.randn(4, dtype=torch.float64, generator=draw))
    bias = torch.nn.Parameter(torch.randn(4, dtype=torch.float64, generator=draw))
    running = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    norm = {"training": True, "momentum": 0.1, "eps": 1e-5}
    quantizer = ActivationQuantizer(unsigned=False)
    quantizer.enabled = True
    with ranks.sharing(images):
        y = parallel.batch_norm(x, *running, weight, bias, **norm)
        loss = nsr_loss(y, goal)
        loss.backward()
        quantized = quantizer(x.detach().float())
        (quantized * goal).float().sum().backward()
        narrow = parallel.batch_norm(
            x.detach().bfloat16(), *(v.float() for v in (*running, weight, bias)), **norm
        )
        extent = parallel.extent(x)
        elements = parallel.elements(x)
    ranks.add_gradients([weight, bias, *quantizer.parameters()])
    return {
        "y": y.detach(),
        "x gradient": x.grad,
        "weight gradient": weight.grad,
        "bias gradient": bias.grad,
        "running mean": running[0],
        "running variance": running[1],
        "loss": ranks.total(loss.detach()),
        "quantized": quantized.detach(),
        "scale gradient": quantizer.log_scale.grad,
        "zero point gradient": quantizer.zero_point.grad,
        "narrow": narrow.detach(),
        "extent": torch.stack(extent),
        "elements": elements,
    }


def main(folder: Path) -> None:
    """Write what this process sees."""
    with joined(torch.device("cpu")) as ranks:
        found: dict[Any, Any] = {images: results(ranks, images) for images in IMAGES}
        found["first"] = ranks.from_first(ranks.rank + 5)
        ranks.require_same("as all", "the stage")
        try:
            ranks.require_same(str(ranks.rank // 2), "the stage")
        except TrainingError as error:
            found["refused"] = str(error)
    torch.save(found, folder / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
