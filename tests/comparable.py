"""Labelled images and backbones whose accuracies are known, for the tests of comparisons."""

import torch
from torch import nn

from superself.data import Images, Preprocessing, open_images
from superself.data.sources import TensorSource


def stripes(images, seed, classes=("columns", "rows", "flat")):
    """Noise with a pattern that only its direction tells apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 3
    wave = 60 * torch.sin(torch.arange(8) * torch.pi / 2 + 0.5)
    patterns = torch.stack([wave.expand(8, 8), wave[:, None].expand(8, 8), torch.zeros(8, 8)])
    data = 128 + patterns[labels][:, None] + 40 * torch.randn(images, 3, 8, 8, generator=generator)
    names = list(classes)
    places = torch.tensor([names.index(name) for name in ("columns", "rows", "flat")])
    return Images(TensorSource(data.clamp(0, 255).byte(), places[labels], names))


class Directions(nn.Module):
    """What training might find: how much a picture changes along each axis."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.stack([x.diff(dim=2).square().mean((1, 2, 3)), x.diff(dim=3).square().mean((1, 2, 3))], dim=1)


def network(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3))


class Channel(nn.Module):
    """Reads the class from the brightness of one channel."""

    def __init__(self, number):
        super().__init__()
        self.number = number
        self.preprocessing = Preprocessing((3, 8, 8), "uint8", (0.0,) * 3, (1.0,) * 3)

    def forward(self, x):
        return torch.nn.functional.one_hot((2 * x[:, self.number].mean((1, 2))).round().long(), 3).float()


def told(images, errors):
    """Images whose channels tell the class by their brightness, channel c wrongly in the first errors[c] images."""
    labels = torch.arange(images) % 3
    shown = torch.stack([torch.where(torch.arange(images) < count, (labels + 1) % 3, labels) for count in errors], 1)
    return open_images(((127.5 * shown).byte()[:, :, None, None].expand(-1, -1, 8, 8).contiguous(), labels))
