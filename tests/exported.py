"""Backbones with statistics as after training, and the raw images that they are compared on."""

import torch
from torch import nn

from superself.data import Preprocessing
from superself.networks import build_backbone, pool_features


def as_trained(backbone, shape, **options):
    """The backbone with running statistics other than at the start, and a preprocessing as ``get_backbone`` attaches it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 2)
    means = tuple(0.3 + 0.1 * channel for channel in range(shape[0]))
    values = {"dtype": "uint8", "mean": means, "std": (0.25,) * shape[0], **options}
    backbone.preprocessing = Preprocessing(shape, **values).for_raw_images()
    return backbone.eval()


def built(name, shape, norm="batch", **options):
    """A named backbone with random weights, as trained."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        channels = 3 if options.get("sobel") else shape[0]
        return as_trained(build_backbone(name, (channels, *shape[1:]), norm), shape, **options)


def raw_images(shape, count=3, dtype=torch.uint8):
    """Images as they are in the files."""
    high = {torch.uint8: 256, torch.uint16: 10_000}[dtype]
    return torch.randint(0, high, (count, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.int32).to(
        dtype
    )


@torch.no_grad()
def features_of(backbone, images):
    """The pooled features of raw images."""
    return pool_features(backbone(backbone.preprocessing(images)))
