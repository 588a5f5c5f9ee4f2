"""Split-brain autoencoder: predict the colours from the lightness, and the lightness from the colours."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, interpolate

from superself.basics.distributed import mean
from superself.basics.validate import require_bool, require_count, require_number
from superself.data import Batch
from superself.evaluation import map_views, show_columns
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

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

ANNEALING = (
    0.38  # temperature of predicted colours in pictures; Zhang et al., Colorful Image Colorization, arXiv:1603.08511
)


class SplitBrainNetSupervisor(Supervisor):
    """One half of the network predicts the colour ab from the lightness L, the other L from ab, as classes on a small map.

    L = cross-entropy of the bin of ab, predicted from L, plus cross-entropy of the bin of L, predicted from ab, averaged over
    positions and images. Chance level: predicting the frequencies of the bins for every image. 0 is out of reach, since
    lightness does not determine colour. Neither half sees the channels that it predicts.

    Source: Zhang et al., Split-Brain Autoencoders, arXiv:1611.09842, Sec. 3.1 (Eq. 2), Sec. 3.2 (Eq. 3), Sec. 4.1: bins of
        10 x 10 units of ab and of 2 units of L, one-hot.
    Deviations: the halves are two networks of full width; ab has the 261 bins that contain colours of sRGB, where the paper
        has 313; the target at a position of the map is the mean colour of that part of the image; backbones without maps
        predict through a ``Decoder``; any optimizer.
    Args:
        dataset: see Supervisor, also for the options that are not listed here; ``normalize`` is not accepted.
        ab_step: side of the bins of ab.
        l_step: width of the bins of L.
        resolution: longer side of the predicted map, which is at most a quarter of the image's.
        rebalance: give rare colours more weight, which makes more colourful pictures: 1 / (p / 2 + 1 / 2Q) for one of Q bins
            that has a fraction p of the batch, as in arXiv:1603.08511 without its smoothing of p.
        backbone: None for two EfficientFeatures, a name for two of these, a pair (for L, for ab), or LabHalves.
        predictor: from the feature maps of the halves to the logits of ab (B, Q, h, w) and of L (B, 50, h, w).
        loss: of (logits (B, Q, h, w), bins (B, h, w), weights of the bins (Q,) or None); None for the cross-entropy.
    Shape:
        batch of images (B, 3, H, W) -> loss ().
    Raises:
        ValueError: if the images are not RGB, ``normalize`` is given, or a number is out of range.
        TypeError: if ``backbone`` is a single module.
    """

    family = "predictive"
    paper = ("Zhang et al. 2017", "https://arxiv.org/abs/1611.09842")
    good_for = "RGB images whose colours depend on what is shown; can colour grey pictures; two networks"
    loss_meaning = "cross-entropy of the bin of the colour plus that of the lightness; lower is better"
    likely_causes = (
        "too few steps: the frequencies of colours are learnt first, what they belong to comes later",
        "the learning rate is too high for this optimizer (try a tenth of it)",
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
        **options: Unpack[Options],
    ) -> None:
        super().__init__(None, dataset, loss, collate_fn, **without_normalization(options))
        require_number("ab_step", ab_step, "is the size of the bins of ab")
        require_number("l_step", l_step, "is the size of the bins of L")
        if not 2 <= ab_step <= 100 or not 0 < l_step <= 50:
            raise ValueError(
                f"ab_step={ab_step} and l_step={l_step} are the sizes of the bins of ab and L; pass ab_step from 2 to 100, and "
                "l_step above 0 and up to 50."
            )
        require_count("resolution", resolution, "is the longer side of the predicted map, in pixels")
        require_bool("rebalance", rebalance, "gives rare colours more weight")
        self.ab_step, self.l_step, self.resolution, self.rebalance = ab_step, l_step, resolution, rebalance
        self.given.backbone, self.given.predictor = backbone, predictor

    def _build(self) -> None:
        self.loss = self.given.loss or weighted_cross_entropy
        sides = self.network_shape[1:]
        shrink = max(4, max(sides) / self.resolution)
        size = tuple(max(1, round(side / shrink)) for side in sides)  # (h, w) of the map; later images may be larger
        self.bins = LabBins(self.ab_step, self.l_step, size)
        backbone = build_halves(self.given.backbone, self.network_shape)
        predictor = self.given.predictor
        if predictor is None:
            predictor = PerHalf(
                map_head(backbone.lightness, (1, *sides), (len(self.bins.ab), *size)),
                map_head(backbone.colour, (2, *sides), (len(self.bins.lightness), *size)),
            )
        self.model = HalvesNet(backbone, predictor, maps=True)  # F1 and F2

    def _forward(self, data: Batch) -> Tensor:
        (images,) = self.views(data)  # (B, 3, H, W) in [0, 1]
        ab_logits, l_logits = self.model(images)  # F1 of L: (B, Q, h, w); F2 of ab: (B, 50, h, w)
        ab, lightness = self.bins(self.model.backbone.lab(images))  # (B, h, w) each
        weights = rare_bin_weights(mean(self.bins.frequencies(ab, lightness)[0])) if self.rebalance else None
        ab_loss, l_loss = self.loss(ab_logits.float(), ab, weights), self.loss(l_logits.float(), lightness, None)
        self.note("ab_loss", ab_loss)
        self.note("L_loss", l_loss)
        return ab_loss + l_loss  # Eq. 2 for each half

    @property
    def compares_images(self) -> bool:
        """Whether bins are weighted by their frequencies in the batch."""
        return self.rebalance

    @property
    def chance_loss(self) -> float | None:
        """Entropy of the bins of ab plus that of L: the best prediction that is the same everywhere; None without images."""
        if not self.has_data:
            return None
        found = map_views(self, lambda images: self.bins(self.model.backbone.lab(images)))
        ab, lightness = self.bins.frequencies(*map(torch.cat, zip(*found, strict=True)))
        if self.rebalance:
            ab = ab * rare_bin_weights(ab)
        return sum(torch.special.entr(p / p.sum()).sum().item() for p in (ab, lightness))

    def show_reconstruction(self, path: str | Path, dataset: Any = None, count: int = 8) -> Path:
        """Writes a PNG with a row for each image: the image; its L; the ab predicted from L; its ab; the L predicted from ab.

        Predicted ab are shown with the true L, and the image's ab at a constant lightness. Predicted maps are enlarged.

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

        titles = ["image", "lightness L", "colour predicted from L", "colour ab", "L predicted from ab"]
        return show_columns(
            self, columns, path, dataset, count, titles=titles, title="Split-brain: each half predicts the other"
        )


class LabBins(nn.Module):
    """The bins of ab and of L at every position of a small map.

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
        centres, bin_of_cell = ab_grid(ab_step)
        self.register_buffer("ab", centres.clone(), persistent=False)  # (Q, 2)
        self.register_buffer("bin_of_cell", bin_of_cell.clone(), persistent=False)  # (G, G)
        lightness = (torch.arange(math.ceil(100 / l_step)) + 0.5) * l_step
        self.register_buffer("lightness", lightness, persistent=False)  # (50,), centre of each bin

    def forward(self, lab: Tensor) -> tuple[Tensor, Tensor]:
        """The bin of the mean colour of each part of the images."""
        lab = adaptive_avg_pool2d(lab, self.size)
        edge = len(self.bin_of_cell) // 2
        a, b = (lab[:, 1:] / self.ab_step).round().long().clamp(-edge, edge).add(edge).unbind(1)
        return self.bin_of_cell[a, b], (lab[:, 0] / self.l_step).long().clamp(0, len(self.lightness) - 1)

    def frequencies(self, ab: Tensor, lightness: Tensor) -> tuple[Tensor, Tensor]:
        """The fraction of the positions that fall into each bin: (Q,) of ab, (50,) of L."""
        pairs = (ab, self.ab), (lightness, self.lightness)
        return tuple(torch.bincount(found.flatten(), minlength=len(bins)) / found.numel() for found, bins in pairs)

    def annealed_means(self, ab_logits: Tensor, l_logits: Tensor) -> tuple[Tensor, Tensor]:
        """The colour (B, 2, h, w) and lightness (B, 1, h, w) at each position, between mean and mode of the predicted bins."""
        ab, lightness = ((logits.float() / ANNEALING).softmax(1).movedim(1, -1) for logits in (ab_logits, l_logits))
        return (ab @ self.ab).movedim(-1, 1), (lightness @ self.lightness)[:, None]


@cache
def ab_grid(step: float) -> tuple[Tensor, Tensor]:
    """The centres of the cells of a grid over ab that contain colours of sRGB, and for every cell the nearest of these.

    It is enough to look at the faces of the RGB cube: the ab of colours inside the cube lie between those of its faces.

    Shape:
        -> centres (Q, 2), index of the nearest (G, G); the centre of cell (i, j) is ((i - G // 2) step, (j - G // 2) step).
    """
    from skimage.color import rgb2lab  # in float64, so that every machine finds the same bins

    levels = torch.linspace(0, 1, 86, dtype=torch.float64)
    u, v = torch.meshgrid(levels, levels, indexing="ij")
    ends = torch.zeros_like(u), torch.ones_like(u)
    faces = torch.stack(
        [torch.stack([u, v, end]).roll(turn, 0) for turn in range(3) for end in ends], 1
    )  # (3, 6, 86, 86)
    ab = torch.from_numpy(rgb2lab(faces.numpy(), channel_axis=0))[1:].flatten(1).T  # (n, 2)
    centres = ((ab / step).round().unique(dim=0) * step).float()
    edge = int(110 // step) + 1
    axis = torch.arange(-edge, edge + 1) * step
    cells = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).float()  # (G, G, 2)
    return centres, torch.cdist(cells, centres).argmin(-1)


def weighted_cross_entropy(logits: Tensor, bins: Tensor, weights: Tensor | None) -> Tensor:
    """Cross-entropy of bins (B, h, w) and logits (B, Q, h, w), averaged with the weights (Q,) of the bins."""
    if weights is None:
        return cross_entropy(logits, bins)
    return cross_entropy(logits, bins, weights, reduction="sum") / mean(weights[bins].sum())


def rare_bin_weights(frequencies: Tensor) -> Tensor:
    """Weights (Q,) of bins with these frequencies (Q,): the rarer a bin, the larger its weight."""
    return 1 / (frequencies / 2 + 1 / (2 * len(frequencies)))


def map_head(half: nn.Module, shape: tuple[int, int, int], target: tuple[int, int, int]) -> nn.Module:
    """A head from the feature maps of a half, whose inputs have ``shape``, to logits of the shape ``target``."""
    width, *size = map_shape(half, shape)
    if size == [1, 1]:  # from larger images, the maps of a convolutional network are larger
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Decoder(width, target))
    return Upsampling(width, target, width=128, start=tuple(size))


def lab_to_rgb(lab: Tensor) -> Tensor:
    """RGB in [0, 1] of Lab (B, 3, H, W); colours outside sRGB are clipped."""
    from skimage.color import lab2rgb

    return torch.from_numpy(lab2rgb(lab.double().cpu().numpy(), channel_axis=1)).float()
