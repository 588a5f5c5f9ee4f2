"""Split-brain autoencoder: tell the colours from the lightness, and the lightness from the colours."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, interpolate

from superself.data import ImageSpec
from superself.evaluation.figures import show_columns
from superself.networks import (
    Decoder,
    HalvesNet,
    PerHalf,
    Upsampling,
    build_halves,
    map_shape,
    without_normalization,
)
from superself.supervisor import Supervisor

ANNEALING = (
    0.38  # temperature of the colours that are shown: Zhang et al., Colorful Image Colorization, arXiv:1603.08511
)


class SplitBrainNetSupervisor(Supervisor):
    """Two halves of a network: one predicts the colour ab from the lightness L, the other L from ab, as classes on a small map.

    L = cross-entropy of the bin of ab, predicted from L, plus that of the bin of L, predicted from ab, averaged over places and
    images. Knowing nothing gives what predicting the frequencies of the bins gives, the same for every image; 0 would be perfect
    and is out of reach, since the lightness of a thing does not tell its colour. Neither half sees what it has to predict.

    Source: Zhang et al., Split-Brain Autoencoders, arXiv:1611.09842, Sec. 3.1 (Eq. 2), Sec. 3.2 (Eq. 3), Sec. 4.1: bins of
        10 x 10 units of ab and of 2 units of L, one-hot.
    Deviations: the halves are two networks of full width; ab has the 261 bins that colours of sRGB fall into, where the paper
        has 313; a place of the map has the mean colour of its part of the image; backbones without maps predict through a
        ``Decoder``; Adam (lr 1e-3 and batches of 64 were tried on CIFAR-10, with small halves).
    Args:
        dataset: see Supervisor, as are the options that are not listed here; ``normalize`` is not taken.
        ab_step: side of the bins of ab.
        l_step: width of the bins of L.
        resolution: longer side of the predicted map, which is at most a quarter of the image's.
        rebalance: count rare colours more, which makes bolder pictures: 1 / (p / 2 + 1 / 2Q) for one of Q bins with the share p
            of the batch, as in arXiv:1603.08511 without its smoothing of p.
        backbone: None for two EfficientFeatures, a name for two of these, a pair (for L, for ab), or LabHalves.
        predictor: from the feature maps of the halves to the logits of ab (B, Q, h, w) and of L (B, 50, h, w).
        loss: of (logits (B, Q, h, w), bins (B, h, w), weights of the bins (Q,) or None); None for the cross-entropy.
    Shape:
        data: images (B, 3, H, W) and their places (B,) -> loss ().
    Raises:
        ValueError: if the images are not RGB, ``normalize`` is given, or a number is out of its range.
        TypeError: if ``backbone`` is a single module.
    """

    family = "predictive"
    loss_meaning = "cross-entropy of the bin of the colour plus that of the lightness; lower is better"
    likely_causes = (
        "too few steps: how frequent colours are is learnt first, what they belong to comes later",
        "the learning rate is too high for this optimiser (try a tenth of it)",
        "the images have hardly any colour, or colours that do not depend on what is shown",
    )

    def __init__(
        self,
        dataset: Any = None,
        ab_step: float = 10,
        l_step: float = 2,
        resolution: int = 16,
        rebalance: bool = False,
        backbone: Any = None,
        predictor: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(None, dataset, loss or cross_entropy, collate_fn, **without_normalization(options))
        if not 2 <= ab_step <= 100 or not 0 < l_step <= 50 or resolution < 1:
            raise ValueError(
                f"ab_step={ab_step}, l_step={l_step}, resolution={resolution} give no bins or no map; pass ab_step from 2 to "
                "100, l_step above 0 and up to 50, and resolution >= 1."
            )
        self.rebalance = rebalance
        sides = self.images.shape[1:]
        shrink = max(4, max(sides) / resolution)
        size = tuple(max(1, round(side / shrink)) for side in sides)
        self.bins = LabBins(ab_step, l_step, size)
        backbone = build_halves(backbone, self.images.shape)
        if predictor is None:
            predictor = PerHalf(
                map_head(backbone.lightness, (1, *sides), (len(self.bins.ab), *size)),
                map_head(backbone.colour, (2, *sides), (len(self.bins.lightness), *size)),
            )
        self.model = HalvesNet(backbone, predictor, maps=True)  # F1 and F2
        self._chance: float | None = None

    @property
    def chance_loss(self) -> float | None:
        """Entropy of the bins in the data, of ab and of L: what one answer for all images gives at best; None without images."""
        if self._chance is None and len(self.images) and not isinstance(self.images, ImageSpec):
            parts = self.images.sample(512).split(32)
            labs = (self.model.backbone.lab(self.preprocessing(part.to(self.device))) for part in parts)
            ab, lightness = (torch.cat(bins) for bins in zip(*map(self.bins, labs), strict=True))
            ab_share, l_share = self.bins.shares(ab, lightness)
            if self.rebalance:
                ab_share = ab_share * rare_first(ab_share)
            self._chance = sum(torch.special.entr(p / p.sum()).sum().item() for p in (ab_share, l_share))
        return self._chance

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        images = self.preprocessing(data[0])  # (B, 3, H, W) in [0, 1]
        ab_logits, l_logits = self.model(images)  # F1 of L: (B, Q, h, w); F2 of ab: (B, 50, h, w)
        ab, lightness = self.bins(self.model.backbone.lab(images))  # (B, h, w) each
        weights = rare_first(self.bins.shares(ab, lightness)[0]) if self.rebalance else None
        return self.loss(ab_logits.float(), ab, weights) + self.loss(l_logits.float(), lightness, None)  # Eq. 2, twice

    def show_reconstruction(self, path: str | Path, dataset: Any = None, count: int = 8) -> Path:
        """Writes a PNG with a row for each image: the image; its L; the ab predicted from it; its ab; the L predicted from it.

        Predicted ab stand on the true L; the ab that is given is shown at one lightness. Predicted maps are enlarged.

        Args:
            path: of the file; folders are made.
            dataset: anything that ``open_images`` takes; None shows images that the network is trained on.
            count: rows.
        """

        def columns(images: Tensor) -> list[Tensor]:
            images = self.preprocessing(images)
            lightness, ab = self.model.backbone.lab(images).split([1, 2], 1)
            predicted = self.bins.annealed_means(*self.model(images))
            ab_of_l, l_of_ab = (interpolate(mean, size=images.shape[2:], mode="bilinear") for mean in predicted)
            grey, bright = torch.zeros_like(ab), torch.full_like(lightness, 65.0)
            pairs = (lightness, grey), (lightness, ab_of_l), (bright, ab), (l_of_ab, grey)
            return [images, *(lab_to_rgb(torch.cat(pair, 1)) for pair in pairs)]

        return show_columns(self, columns, path, dataset, count)


class LabBins(nn.Module):
    """The bins of ab and of L at every place of a small map.

    Args:
        ab_step: side of the square bins of ab.
        l_step: width of the bins of L.
        size: (h, w) of the map.
    Shape:
        Lab (B, 3, H, W) -> bins of ab (B, h, w), bins of L (B, h, w).
    """

    def __init__(self, ab_step: float, l_step: float, size: tuple[int, int]) -> None:
        super().__init__()
        self.ab_step, self.l_step, self.size = ab_step, l_step, size
        middles, bin_of_cell = ab_grid(ab_step)
        self.register_buffer("ab", middles.clone(), persistent=False)  # (Q, 2)
        self.register_buffer("bin_of_cell", bin_of_cell.clone(), persistent=False)  # (G, G)
        lightness = (torch.arange(math.ceil(100 / l_step)) + 0.5) * l_step
        self.register_buffer("lightness", lightness, persistent=False)  # (50,), middles too

    def forward(self, lab: Tensor) -> tuple[Tensor, Tensor]:
        """The bin of the mean colour of each part of the images."""
        lab = adaptive_avg_pool2d(lab, self.size)
        edge = len(self.bin_of_cell) // 2
        a, b = (lab[:, 1:] / self.ab_step).round().long().clamp(-edge, edge).add(edge).unbind(1)
        return self.bin_of_cell[a, b], (lab[:, 0] / self.l_step).long().clamp(0, len(self.lightness) - 1)

    def shares(self, ab: Tensor, lightness: Tensor) -> tuple[Tensor, Tensor]:
        """What share of the places each bin has: (Q,) of ab, (50,) of L."""
        pairs = (ab, self.ab), (lightness, self.lightness)
        return tuple(torch.bincount(found.flatten(), minlength=len(bins)) / found.numel() for found, bins in pairs)

    def annealed_means(self, ab_logits: Tensor, l_logits: Tensor) -> tuple[Tensor, Tensor]:
        """A colour (B, 2, h, w) and a lightness (B, 1, h, w) for each place, between the mean of the bins and the likeliest."""
        ab, lightness = ((logits.float() / ANNEALING).softmax(1).movedim(1, -1) for logits in (ab_logits, l_logits))
        return (ab @ self.ab).movedim(-1, 1), (lightness @ self.lightness)[:, None]


@cache
def ab_grid(step: float) -> tuple[Tensor, Tensor]:
    """The cells of a grid over ab that have colours of sRGB in them, and for every cell the nearest of these.

    The outermost colours are found on the faces of the cube of RGB; every colour inside has its ab between those of others.

    Shape:
        -> middles (Q, 2), index of the nearest (G, G); cell (i, j) is around ((i - G // 2) step, (j - G // 2) step).
    """
    from skimage.color import rgb2lab  # in float64, so that every machine finds the same bins

    levels = torch.linspace(0, 1, 86, dtype=torch.float64)
    u, v = torch.meshgrid(levels, levels, indexing="ij")
    ends = torch.zeros_like(u), torch.ones_like(u)
    faces = torch.stack(
        [torch.stack([u, v, end]).roll(turn, 0) for turn in range(3) for end in ends], 1
    )  # (3, 6, 86, 86)
    ab = torch.from_numpy(rgb2lab(faces.numpy(), channel_axis=0))[1:].flatten(1).T  # (n, 2)
    middles = ((ab / step).round().unique(dim=0) * step).float()
    edge = int(110 // step) + 1
    axis = torch.arange(-edge, edge + 1) * step
    cells = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).float()  # (G, G, 2)
    return middles, torch.cdist(cells, middles).argmin(-1)


def rare_first(share: Tensor) -> Tensor:
    """Weights (Q,) of bins that have these shares of the places: the rarer, the larger."""
    return 1 / (share / 2 + 1 / (2 * len(share)))


def map_head(half: nn.Module, shape: tuple[int, int, int], target: tuple[int, int, int]) -> nn.Module:
    """A head from the feature maps of a half, for its inputs of ``shape``, to logits of the shape ``target``."""
    width, *size = map_shape(half, shape)
    if size == [1, 1]:
        return nn.Sequential(nn.Flatten(), Decoder(width, target))
    return Upsampling(width, target, width=128, start=tuple(size))


def lab_to_rgb(lab: Tensor) -> Tensor:
    """RGB in [0, 1] of Lab (B, 3, H, W); colours that sRGB does not have are cut off."""
    from skimage.color import lab2rgb

    return torch.from_numpy(lab2rgb(lab.double().cpu().numpy(), channel_axis=1)).float()
