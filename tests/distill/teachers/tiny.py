"""A small network as they are found in the wild, with all that hides where its blocks end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nni_spaceevo.distill.data import ImageData


class Inverted(nn.Module):
    """An inverted residual: wide inside, with a shortcut where it can have one."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        wide = 4 * cin
        self.layers = nn.Sequential(
            *(nn.Conv2d(cin, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)),
            nn.Conv2d(wide, wide, 3, 1, 1, groups=wide, bias=False),
            *(nn.BatchNorm2d(wide), nn.ReLU(inplace=True), nn.Conv2d(wide, cout, 1, bias=False)),
            nn.BatchNorm2d(cout),
        )
        self.shortcut = cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, cin, h, w) to (n, cout, h, w)."""
        y = self.layers(x)
        if self.shortcut:
            y += x
        return y


class Tiny(nn.Module):
    """Stride 2, then blocks of the given widths, then a head of 1x1."""

    def __init__(self, widths: tuple[int, ...] = (12, 16, 16, 24), classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        channels = (8, *widths)
        self.blocks = nn.Sequential(*map(Inverted, channels, widths))
        self.head = nn.Sequential(nn.Conv2d(widths[-1], 32, 1), nn.BatchNorm2d(32), nn.ReLU6(True))
        self.classify = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, 3, h, w)."""
        x = self.head(self.blocks(self.stem(images)))
        return self.classify(x.mean((2, 3)).view(images.size(0), -1))


# Where `synthetic_hyperspace` reads it: all its stages have the size of the stem.
NODES = ("stem.2", "blocks.0.layers.7", "blocks.2.add", "blocks.3.layers.7")
WIDTHS = (8, 12, 16, 24)


def trained_tiny() -> Tiny:
    """As after training: its norms have seen something."""
    torch.manual_seed(0)
    network = Tiny().train()
    with torch.no_grad():
        for _ in range(8):
            network(torch.randn(8, 3, 16, 16))
    return network.eval()


def grey_images() -> ImageData:
    """Grey images without labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (72, 1, 16, 16), dtype=torch.uint8, generator=generator)
    return ImageData(images[:48], None, images[48:], None, mean=(0.5,), std=(0.25,))
