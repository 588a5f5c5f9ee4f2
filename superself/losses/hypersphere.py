"""Alignment and uniformity of unit vectors: as measures of embeddings, and as a loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pdist

from superself.basics.distributed import gather
from superself.basics.validate import require_nonnegative, require_positive
from superself.losses.pairs import require_pairs


def alignment(first: Tensor, second: Tensor, alpha: float = 2.0) -> Tensor:
    """Mean distance, to the power of ``alpha``, of two views of the same images on the unit sphere; 0 is perfect.

    Source: Wang & Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the
        Hypersphere, arXiv:2005.10242, and the authors' code.
    Args:
        first: embeddings of one view, of any length.
        second: those of the other.
        alpha: power of the distance; with 2, the result is 2 - 2 cos.

    Shape:
        (N, D), (N, D) -> scalar ().
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = (normalize(view.float(), dim=1) for view in (first, second))
        squares = (first - second).square().sum(1)
        return (squares if alpha == 2 else squares.clamp(min=1e-12).pow(alpha / 2)).mean()


def uniformity(embeddings: Tensor, t: float = 2.0) -> Tensor:
    """Logarithm of the mean Gaussian potential of all pairs of different images on the unit sphere; lower is more uniform.

    log mean exp(-t ||x - y||^2): 0 when all images have the same direction, near -2 t for random directions in many
    dimensions (-4 for t = 2), and never below -4 t.

    Source: see ``alignment``.
    Args:
        embeddings: of any length.
        t: sharpness of the Gaussian.

    Shape:
        (N, D) -> scalar ().
    Raises:
        ValueError: if there are fewer than two images.
    """
    if len(embeddings) < 2:
        raise ValueError(f"uniformity compares pairs of images, and got {len(embeddings)}; pass two or more.")
    with torch.autocast(embeddings.device.type, enabled=False):
        exponents = -t * pdist(normalize(embeddings.float(), dim=1)).square()  # (N (N - 1) / 2,)
        return exponents.logsumexp(0) - math.log(len(exponents))


class Hypersphere(nn.Module):
    """Two views of an image are close on the unit sphere, and all images are spread over it.

    L = alignment(z, z') + weight * (uniformity(z) + uniformity(z')) / 2, in float32, over the images of the batches of all
    processes. It serves algorithms whose loss takes the embeddings of two views:

        BarlowTwinsSupervisor("my_images", projector={"out_features": 128, "layers": 2}, loss=Hypersphere())

    Source: Wang & Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the
        Hypersphere, arXiv:2005.10242, and the authors' code.
    Deviations: none.
    Args:
        t: sharpness of the Gaussian in the uniformity; lightly has 1.
        weight: lambda, of the uniformity.
        alpha: power of the distance in the alignment.
    Shape:
        first and second view (B, D), of any length -> scalar ().
    Raises:
        ValueError: if an argument is out of range, the shapes differ, or there is a single image.
    """

    def __init__(self, t: float = 2.0, weight: float = 1.0, alpha: float = 2.0) -> None:
        super().__init__()
        require_positive("t", t, "is the sharpness of the Gaussian in the uniformity")
        require_nonnegative("weight", weight, "is lambda, of the uniformity")
        require_positive("alpha", alpha, "is the power of the distance in the alignment")
        self.t, self.weight, self.alpha = t, weight, alpha

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of a batch."""
        require_pairs(first, second)
        first, second = gather(first.float()), gather(second.float())  # each (N, D)
        spread = (uniformity(first, self.t) + uniformity(second, self.t)) / 2
        return alignment(first, second, self.alpha) + self.weight * spread
