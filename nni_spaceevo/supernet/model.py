"""The supernet of a space, whose slices are all its subnets, and one subnet taken out of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..device import channels_last
from ..hyperspace import Hyperspace, SpaceCode, SubnetCode
from ..network import StageNet, StaticNetwork
from ..network.layers import copy_quantizers
from ..quant import ActivationQuantizer, Quantizer


class Supernet(nn.Module):
    """One network that can be every subnet of a space, sharing weights and quantizers.

    Parameters
    ----------
    hyperspace, space : the space

    Raises
    ------
    CodeError
        The space is none of the hyperspace.
    ConfigError
        A resolution does not fit the strides of the hyperspace.
    """

    def __init__(self, hyperspace: Hyperspace, space: SpaceCode | str) -> None:
        super().__init__()
        hyperspace.check_resolutions()
        self.hyperspace, self.space = hyperspace, hyperspace.space(space)
        self.image = ActivationQuantizer(unsigned=False)
        self.stages = nn.ModuleDict()
        head = hyperspace.head_stages
        self._head = tuple(elastic.largest() for elastic in head)
        widths: tuple[int, ...] = (hyperspace.in_channels,)
        for elastic in (*hyperspace.elastic_stages(self.space), *head):
            self.stages[elastic.stage.name] = StageNet(elastic, widths)
            widths = elastic.widths
        self.to(memory_format=torch.channels_last)

    @property
    def made_for(self) -> dict[str, str]:
        """Space and hyperspace, as files of its weights carry them."""
        return {"space": str(self.space), "hyperspace": self.hyperspace.fingerprint}

    @property
    def largest(self) -> SubnetCode:
        """The largest subnet of the space."""
        return self.hyperspace.largest_subnet(self.space)

    @property
    def smallest(self) -> SubnetCode:
        """The smallest subnet of the space."""
        return self.hyperspace.smallest_subnet(self.space)

    def features(self, images: Tensor, subnet: SubnetCode) -> Tensor:
        """What the last layer sees of images (n, channels, h, w): (n, features, 1, 1).

        Images of another size than the subnet's are resized to it.
        """
        x = self.image(channels_last(resized(images, subnet.resolution)))
        *stages, _ = zip(self.stages.values(), (*subnet.stages, *self._head), strict=True)
        for stage, chain in stages:
            x = stage(x, chain)
        return x

    def classify(self, features: Tensor) -> Tensor:
        """Logits (n, classes) of `features`."""
        *_, chain = self._head
        return self.stages[self.hyperspace.stages[-1].name](features, chain)

    def forward(self, images: Tensor, subnet: SubnetCode) -> Tensor:
        """Logits (n, classes) of images (n, channels, h, w), through one subnet."""
        return self.classify(self.features(images, subnet))

    def extract(self, subnet: SubnetCode) -> Subnet:
        """A subnet with its own copy of the active weights, statistics and ranges."""
        self.hyperspace.subnet(self.space, subnet)
        image, stages = ActivationQuantizer(unsigned=False), nn.ModuleDict()
        copy_quantizers(self.image, image)
        cin, chains = self.hyperspace.in_channels, (*subnet.stages, *self._head)
        for (name, stage), chain in zip(self.stages.items(), chains, strict=True):
            stages[name] = stage.extract(cin, chain)  # type: ignore[operator]
            cin = chain[-1].width
        static = Subnet.of_modules(subnet, image, stages)
        return static.to(next(self.parameters()).device).train(self.training)


class Subnet(StaticNetwork):
    """A subnet as a static network that takes images of any size.

    Parameters
    ----------
    hyperspace, space, code : the architecture
    """

    def __init__(self, hyperspace: Hyperspace, space: SpaceCode, code: SubnetCode) -> None:
        super().__init__(hyperspace, space, code)
        self.code = code
        self.to(memory_format=torch.channels_last)

    @classmethod
    def of_modules(
        cls, code: SubnetCode, image: ActivationQuantizer, stages: nn.ModuleDict
    ) -> Subnet:
        """A subnet of modules that are there already."""
        subnet = cls.__new__(cls)
        nn.Module.__init__(subnet)
        subnet.code, subnet.image, subnet.stages = code, image, stages
        for path, module in subnet.named_modules():
            if isinstance(module, Quantizer):
                module.path = path
        return subnet.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, channels, h, w), resized to the subnet's resolution."""
        return super().forward(channels_last(resized(images, self.code.resolution)))


def resized(images: Tensor, resolution: int) -> Tensor:
    """Images (n, c, h, w) at (n, c, resolution, resolution), bilinear; themselves if they fit."""
    size = (resolution, resolution)
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False)
