"""ContextNet: what was in the hole of the image?"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, softplus

from superself.adversarial import AdversarialSupervisor
from superself.augment import RandomBlocks
from superself.data import ImageSpec, mean_prediction_loss
from superself.evaluation.figures import show_columns
from superself.networks import MapNet, Upsampling, build_backbone, map_shape

GRID = 7  # places a side of the map between encoder and decoder
OVERLAP = 7 / 128  # of the shorter side, with the centre as the region


class ContextNetSupervisor(AdversarialSupervisor):
    """Takes regions out of each image and predicts them from what is left, against a discriminator of regions.

    L = (1 - a) L_rec + a L_adv. L_rec is the squared error in the region alone, a mean over its pixels and channels, with those
    of its border that the network is shown counted ``overlap_weight`` times. L_adv = -log D(region of the prediction). The
    hole is filled with 0, which is the mean after normalisation.

    The discriminator is not conditioned on the context: it sees an image that is 0 but for the region, true or predicted.

    Source: Pathak et al., Context Encoders, arXiv:1604.07379, Eqs. 1 and 2, "Joint loss", "Channel-wise fully-connected layer",
        "Region masks"; the 7 pixels, their weight and the rate of the discriminator as in the authors' code, which has 4 pixels.
    Deviations: blocks are squares of one size. The decoder gives whole images, of which the region is used; with random blocks
        the authors' discriminator sees all of it, and their squared error counts all of it. Both players step at once,
        with the optimiser's own betas (the authors: 0.5, 0.999). L_rec is divided by the sum of the weights, not by the number
        of values.
        Maps larger than 7 x 7 are pooled to that before the channel-wise layer; a vector is a 1 x 1 map.
        Adam with lr 1e-3 and batches of 32 was tried on CIFAR-10, for about 400 steps (bench/RESULTS.md).
    Args:
        dataset: see Supervisor, as are the options that are not listed here.
        region: "random" for blocks at random places, others for each image, or "center" for half of both sides.
        blocks: how many random blocks; they may overlap.
        block_size: their side as a share of the image's shorter side; four of a quarter hide up to 1/4 of the image.
        overlap: pixels at the border of the region that stay in the image and are predicted too; None for 7 of 128 with the
            centre, 0 with random blocks.
        overlap_weight: of the error there.
        adversarial_weight: a, the paper's lambda_adv; 0 trains without a discriminator.
        discriminator_lr: learning rate of the discriminator as a multiple of the first.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        predictor: from feature maps (B, D, h, w) to images (B, C, H, W); None for the channel-wise layer and a decoder.
        loss: of (prediction (B, C, H, W), target (B, C, H, W)) value by value, (B, C, H, W); None for the squared error.
    Shape:
        data: images (B, C, H, W) and their places (B,) -> loss ().
    Raises:
        ValueError: if ``region`` is unknown, blocks or weights are out of range, or ``overlap`` leaves no hole.
    """

    family = "predictive"
    fixed_image_size = True  # what the decoder gives
    loss_meaning = "squared error per value in the hole, normalised, and a little of the discriminator's; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimiser (try a tenth of it)",
        "what is in the hole cannot be told from around it (textures, noise); try smaller blocks",
        "the discriminator wins (try adversarial_weight=0)",
    )

    def __init__(
        self,
        dataset: Any = None,
        region: str = "random",
        blocks: int = 4,
        block_size: float = 0.25,
        overlap: int | None = None,
        overlap_weight: float = 10.0,
        adversarial_weight: float = 0.001,
        discriminator_lr: float = 0.1,
        backbone: str | nn.Module | None = None,
        predictor: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        loss = loss or nn.MSELoss(reduction="none")
        super().__init__(None, dataset, loss, collate_fn, discriminator_lr=discriminator_lr, **options)
        shape, side = self.images.shape, min(self.images.shape[1:])
        if region not in ("random", "center"):
            raise ValueError(f"region={region!r} is unknown; pass 'random' or 'center'.")
        if blocks < 1 or not 0 < block_size < 1:
            raise ValueError(
                f"blocks={blocks} of block_size={block_size} make no hole; pass blocks >= 1 and a size in (0, 1)."
            )
        if not 0 <= adversarial_weight < 1 or overlap_weight <= 0:
            raise ValueError(
                f"adversarial_weight={adversarial_weight} must be in [0, 1) and overlap_weight={overlap_weight} above 0."
            )
        self.overlap = (round(OVERLAP * side) if region == "center" else 0) if overlap is None else overlap
        length = side // 2 if region == "center" else max(1, round(block_size * side))
        if not 0 <= 2 * self.overlap < length:
            raise ValueError(
                f"overlap={overlap} at both sides leaves no hole in a region of {length} pixels; pass one from 0 to "
                f"{(length - 1) // 2}."
            )
        self.region, self.overlap_weight, self.adversarial_weight = region, overlap_weight, adversarial_weight
        self.place_blocks = RandomBlocks(blocks, block_size)
        backbone = build_backbone(backbone, shape)
        if predictor is None:
            predictor = ContextDecoder(map_shape(backbone, shape), shape)
        self.model = MapNet(backbone, predictor)
        if adversarial_weight:
            self.discriminator = Discriminator(shape)

    @property
    def chance_loss(self) -> float | None:
        """Predicting the mean of the region's pixels, before a discriminator that tells nothing; None without images."""
        if isinstance(self.images, ImageSpec):
            return None
        where = map(middle, self.images.shape[1:]) if self.region == "center" else ()
        return self._joint(mean_prediction_loss(self.images, self.preprocessing, *where), math.log(2))

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        images = self.preprocessing(data[0])  # (B, C, H, W)
        region, hole = self._masks(images)  # (B, 1, H, W)
        prediction = self.model(images * ~hole).float()  # (B, C, H, W)
        error = self.loss(prediction, images)
        if error.shape != images.shape:
            raise ValueError(
                f"loss gave shape {tuple(error.shape)} for images {tuple(images.shape)}; pass one that averages nothing."
            )
        weight = torch.where(hole, 1.0, self.overlap_weight) * region  # (B, 1, H, W)
        reconstruction = (weight * error).sum() / (weight.sum() * images.shape[1])  # Eq. 1
        if self.discriminator is None:
            return reconstruction
        real, fake = (self.discriminator(part * region).float() for part in (images, prediction))  # logits (B,)
        self.discriminator_loss = softplus(-real).mean() + softplus(fake).mean()  # Eq. 2
        return self._joint(reconstruction, softplus(-fake).mean())

    def _joint(self, reconstruction: Any, adversarial: Any) -> Any:
        """lambda_rec L_rec + lambda_adv L_adv."""
        return (1 - self.adversarial_weight) * reconstruction + self.adversarial_weight * adversarial

    def _masks(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The region that is predicted, and the hole, which is the region without its border (B, 1, H, W)."""
        B, _, H, W = images.shape
        outside = torch.ones(B, 1, H, W, device=images.device)
        if self.region == "random":
            outside = self.place_blocks(outside, self.generator)
        else:
            outside[:, :, middle(H), middle(W)] = 0
        shown = max_pool2d(outside, 2 * self.overlap + 1, stride=1, padding=self.overlap)
        return outside == 0, shown == 0

    def show_reconstruction(self, path: str | Path, dataset: Any = None, count: int = 8) -> Path:
        """Writes a PNG with a row for each image: with its hole, whole, predicted, and with the prediction in the hole.

        Args:
            path: of the file; folders are made.
            dataset: anything that ``open_images`` takes; None shows images that the network is trained on.
            count: rows.
        """

        def columns(images: Tensor) -> list[Tensor]:
            images = self.preprocessing(images)
            hole = self._masks(images)[1]
            prediction = self.model(images * ~hole).float()
            shown = (images * ~hole, images, prediction, torch.where(hole, prediction, images))
            return [self.preprocessing.undo(part) for part in shown]

        return show_columns(self, columns, path, dataset, count)


def middle(side: int) -> slice:
    """The middle half of a side."""
    return slice(side // 4, side // 4 + side // 2)


class ChannelwiseLinear(nn.Module):
    """A fully connected layer for each channel: from all places of its map to all places of another one.

    With n places there and m here it has D n m weights where one over all channels would have D^2 n m.

    Shape:
        (B, D, n) -> (B, D, m).
    """

    def __init__(self, channels: int, places: int, out_places: int) -> None:
        super().__init__()
        bound = places**-0.5  # as in nn.Linear
        self.weight = nn.Parameter(torch.empty(channels, places, out_places).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels * out_places).uniform_(-bound, bound))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, D, m)."""
        bias = self.bias.view(len(self.weight), 1, -1)
        return torch.baddbmm(bias, maps.transpose(0, 1), self.weight).transpose(0, 1)


class ContextDecoder(nn.Sequential):
    """The channel-wise layer, a convolution of stride 1 across the channels, and upsampling to an image.

    Args:
        maps: (D, h, w) of the maps that come in; larger ones than 7 x 7 are pooled.
        shape: (C, H, W) of the images.
        width: channels after the convolution.
    Shape:
        maps (B, D, h, w) -> images (B, C, H, W).
    """

    def __init__(self, maps: tuple[int, int, int], shape: tuple[int, int, int], width: int = 128) -> None:
        features, *size = maps
        pooled = tuple(min(side, GRID) for side in size)
        super().__init__(
            nn.AdaptiveAvgPool2d(pooled),
            nn.Flatten(2),
            ChannelwiseLinear(features, math.prod(pooled), GRID**2),
            nn.Unflatten(2, (GRID, GRID)),
            nn.Conv2d(features, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            Upsampling(width, shape, start=(GRID, GRID)),
        )


class Discriminator(nn.Sequential):
    """As DCGAN's, at half its width: convolutions of stride 2, batch norm but for the first, leaky ReLU; then a mean of places.

    Shape:
        (B, C, H, W) -> logits (B,), positive for true images.
    """

    def __init__(self, shape: tuple[int, int, int], width: int = 32) -> None:
        channels, *size = shape
        stages = max(1, int(math.log2(min(size) / 4)))  # to about 4 pixels
        widths = [min(width << stage, 8 * width) for stage in range(stages)]
        layers = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 1), nn.Flatten(0))
