"""A space as a model space of NNI, from which NNI's strategies and ours choose subnets.

What NNI calls a model is here a subnet: freezing the model space gives it as a network of its own,
with the weights of the supernet that the model space is. NNI's one-shot strategies train it as it
stands, and multi-trial strategies search it afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from nni.mutable import Categorical, LabeledMutable, Sample
from nni.mutable.utils import label
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from numpy.random import RandomState
from torch import Tensor

from ..hyperspace import PlacedBlock, SpaceCode, SubnetChoices, SubnetCode, place
from ..supernet.model import Subnet, Supernet
from ..supernet.weights import load_supernet, load_weights
from .model_space import HyperspaceSource, as_hyperspace, portable


class SubnetModelSpace(ModelSpace, BaseSuperNetModule):
    """All subnets of a space: labels and values are those of `SubnetChoices`.

    It is a supernet already, so NNI keeps it and its weights in this process, on the sequential
    engine, unless the configuration of a `NasExperiment` says otherwise. In trials of their own,
    subnets have the weights of a file.

    Parameters
    ----------
    hyperspace : a hyperspace, or its YAML file or preset
    space : code of the space
    weights : file of a trained supernet, as `save_supernet` writes it; None for fresh weights

    Raises
    ------
    ConfigError
        Neither a file nor a preset; or a wrong key or value in the file.
    CodeError
        The space is none of the hyperspace.
    CheckpointError
        The weights are damaged, or of another space.
    """

    def __init__(
        self,
        hyperspace: HyperspaceSource,
        space: SpaceCode | str,
        weights: Path | str | None = None,
    ) -> None:
        super().__init__()
        self.supernet = Supernet(as_hyperspace(hyperspace), space)
        self.choices = SubnetChoices(self.supernet.hyperspace, self.supernet.space)
        for name, values in self.choices.values.items():
            # NNI refuses a slash in a label's text, but not between its parts.
            self.add_mutable(Categorical(values, label=label(name.split("/"))))
        if weights is not None:
            load_weights(Path(weights), self.supernet)
        self.active = self.supernet.largest

    def save_init_arguments(
        self,
        hyperspace: HyperspaceSource,
        space: SpaceCode | str,
        weights: Path | str | None = None,
    ) -> None:
        """What NNI writes into a trial's parameters to make a subnet anew there."""
        path = None if weights is None else str(Path(weights).resolve())
        super().save_init_arguments(hyperspace=portable(hyperspace), space=str(space), weights=path)

    # ---- subnets ------------------------------------------------------------------------------

    def freeze(self, sample: Sample) -> Subnet:
        """The subnet that a sample chooses, with its own copy of the supernet's weights.

        Raises
        ------
        nni.mutable.SampleValidationError
            The sample is not of this model space.
        """
        self.validate(sample)
        return self.supernet.extract(self.choices.subnet(sample))

    @classmethod
    def create_fixed_module(
        cls,
        sample: Sample,
        hyperspace: HyperspaceSource,
        space: SpaceCode | str,
        weights: Path | str | None = None,
    ) -> Subnet:
        """What NNI makes of this class where a sample has been chosen, as in a trial."""
        source = as_hyperspace(hyperspace)
        code = SubnetChoices(source, source.space(space)).subnet(sample)
        if weights is None:
            return Subnet(source, source.space(space), code)
        return load_supernet(Path(weights), source, space).extract(code)

    def blocks_of(self, sample: Sample) -> Sequence[PlacedBlock]:
        """The blocks of a sample's subnet on its resolution, as `LatencyProfiler` prices them."""
        subnet, h = self.choices.subnet(sample), self.supernet.hyperspace
        return place(h.all_blocks(self.supernet.space, subnet), subnet.resolution)

    # ---- the supernet, as NNI's one-shot strategies run it ------------------------------------

    def activate(self, subnet: SubnetCode) -> None:
        """Let `forward` run this subnet."""
        self.supernet.hyperspace.subnet(self.supernet.space, subnet)
        self.active = subnet

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, channels, h, w) through the active subnet."""
        return self.supernet(images, self.active)

    def resample(self, memo: Sample) -> Sample:
        """Draw a subnet and activate it; what `memo` has chosen already stays.

        What is drawn follows from torch's random numbers, as all of NNI's one-shot training.
        """
        sample = self._draw(self.simplify(), memo)
        self.activate(self.choices.subnet(sample))
        return sample

    def export(self, memo: Sample) -> Sample:
        """Draw a subnet without activating it; only what `memo` has not chosen yet."""
        left = {name: c for name, c in self.simplify().items() if name not in memo}
        return self._draw(left, {})

    def _draw(self, choices: dict[str, LabeledMutable], memo: Sample) -> Sample:
        state = RandomState(int(torch.randint(2**31, ())))
        known = dict(memo)
        return {name: choice.random(known, state) for name, choice in choices.items()}
