"""How a module forms its sums, for benchmarks that compare two ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor, nn

from nni_spaceevo.network import fourier


class MemoryOrder:
    """Lets a module compute in torch's usual order in memory at first, and in another once told.

    Ways to compute are compared in one order, none by way of frequencies: in another order, and by
    frequencies, sums round otherwise, which ReLU and quantizers turn into other gradients.

    Parameters
    ----------
    module : whose weights are put in order
    *places : modules of the package in which `channels_last` puts features in order
    """

    def __init__(self, module: nn.Module, *places: str) -> None:
        self._module, self._places = module, places
        self.use(torch.contiguous_format)

    def use(self, order: torch.memory_format) -> None:
        """From now on in this order."""
        self._order = order
        self._module.to(memory_format=order)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within, features are in the order of the weights."""

        def ordered(features: Tensor) -> Tensor:
            return features.contiguous(memory_format=self._order)

        with ExitStack() as stack:
            for place in self._places:
                target = f"nni_spaceevo.{place}.channels_last"
                stack.enter_context(mock.patch(target, ordered))
            if self._order == torch.contiguous_format:
                stack.enter_context(mock.patch.object(fourier, "saves_time", lambda *_: False))
            yield
