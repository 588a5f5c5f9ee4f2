"""Context encoder: what was in the hole of the image?"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, softplus

from superself.adversarial import AdversarialSupervisor
from superself.augment import RandomBlocks
from superself.basics.distributed import mean
from superself.basics.validate import require_choice, require_count, require_fraction, require_positive
from superself.data import Batch
from superself.evaluation import mean_prediction_loss, show_columns
from superself.networks import MapNet, Upsampling, build_backbone, map_shape

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

GRID = 7  # positions along each side of the map between encoder and decoder
OVERLAP = 7 / 128  # fraction of the shorter side, if the region is the centre


class ContextNetSupervisor(AdversarialSupervisor):
    """Removes a region of each image and predicts it from the rest, against a discriminator D of regions.

    L = (1 - a) L_rec + a L_adv. L_rec is the mean squared error over the pixels and channels of the region. The network still
    sees the region's border, whose pixels have the weight ``overlap_weight``; the rest of the region is a hole, filled with
    0, the mean after normalisation. L_adv = -log D(predicted region); D gets images that are 0 outside the region.

    Source: Pathak et al., Context Encoders, arXiv:1604.07379, Eqs. 1 and 2, "Joint loss", "Channel-wise fully-connected layer",
        "Region masks"; weight of the overlap and rate of the discriminator as in the authors' code, whose overlap is 4 pixels.
    Deviations: blocks are squares of one size; the decoder gives whole images, of which only the region counts (with random
        blocks, the authors' squared error and discriminator use all of it); both players step at once, with the optimizer's
        own betas (the authors: 0.5, 0.999); L_rec is divided by the sum of the weights; maps larger than 7 x 7 are pooled to
        that before the channel-wise layer, and a vector is a 1 x 1 map.
    Args:
        dataset: see Supervisor, also for the options that are not listed here. Let ``augment`` not pad the images, because
            padding is easily predicted.
        region: "random" for blocks at random positions, different for each image, or "center" for half of both sides.
        blocks: how many random blocks; they may overlap.
        block_size: their side as a fraction of the image's shorter side; four of a quarter hide up to 1/4 of the image.
        overlap: width in pixels of the border of the region, which the network sees and predicts too; None for 7 of 128
            with "center", 0 with random blocks.
        overlap_weight: weight of the error there; 1 in the hole.
        adversarial_weight: a, the paper's lambda_adv; 0 trains without a discriminator.
        discriminator_lr: learning rate of the discriminator as a multiple of ``lr``.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        predictor: from feature maps (B, D, h, w) to images (B, C, H, W); None for the channel-wise layer and a decoder.
        loss: of (prediction (B, C, H, W), target (B, C, H, W)) value by value, (B, C, H, W); None for the squared error.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if ``region`` is unknown, blocks or weights are out of range, or ``overlap`` leaves no hole.
    """

    presets = {"context-encoder-center": {"region": "center", "overlap": 4}}
    family = "predictive"
    paper = ("Pathak et al. 2016", "https://arxiv.org/abs/1604.07379")
    good_for = "filling holes; scenes whose parts follow from their surroundings"
    compares_images = False
    fixed_image_size = True  # the decoder's
    smallest_image = 2
    loss_meaning = "squared error per value in the hole, normalised, plus the weighted adversarial loss; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the surroundings say little about what is in the hole (textures, noise); try smaller blocks",
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
        **options: Unpack[Options],
    ) -> None:
        super().__init__(None, dataset, loss, collate_fn, discriminator_lr=discriminator_lr, **options)
        require_choice("region", region, ("random", "center"))
        require_count("blocks", blocks, "is the number of blocks")
        require_fraction(
            "block_size",
            block_size,
            "is the side of a block as a fraction of the image's",
            lower_open=True,
            upper_open=True,
        )
        if overlap is not None:
            require_count("overlap", overlap, "is a width in pixels", minimum=0)
        require_positive("overlap_weight", overlap_weight, "weights the error in the overlap")
        require_fraction(
            "adversarial_weight", adversarial_weight, "is the weight of the adversarial loss", upper_open=True
        )
        self.region, self.blocks, self.block_size = region, blocks, block_size
        self.overlap, self.overlap_weight, self.adversarial_weight = overlap, overlap_weight, adversarial_weight
        self.given.backbone, self.given.predictor = backbone, predictor

    def _build(self) -> None:
        self.loss = self.given.loss or nn.MSELoss(reduction="none")
        backbone = build_backbone(self.given.backbone, self.network_shape)
        predictor = self.given.predictor
        if predictor is None:
            predictor = ContextDecoder(map_shape(backbone, self.network_shape), self.network_shape)
        self.model = MapNet(backbone, predictor)
        self.discriminator = Discriminator(self.network_shape) if self.adversarial_weight else None

    def _build_views(self) -> None:
        super()._build_views()
        self.place_blocks = RandomBlocks(self.blocks, self.block_size)
        self.border = self._border()  # pixels

    def _border(self) -> int:
        """Width in pixels of the border of the region, which the network sees."""
        side = min(self.view_shape[1:])
        center = self.region == "center"
        border = (round(OVERLAP * side) if center else 0) if self.overlap is None else self.overlap
        length = side // 2 if center else max(1, round(self.block_size * side))
        if 2 * border >= length:
            raise ValueError(
                f"overlap={self.overlap} on both sides leaves no hole in a region of {length} pixels; pass an overlap from 0 to "
                f"{(length - 1) // 2}."
            )
        return border

    def _forward(self, data: Batch) -> Tensor:
        (images,) = self.views(data)  # (B, C, H, W)
        region, hole = self._masks(images)  # (B, 1, H, W)
        prediction = self.model(images * ~hole).float()  # (B, C, H, W)
        error = self.loss(prediction, images)
        if error.shape != images.shape:
            raise ValueError(
                f"loss returned shape {tuple(error.shape)} for images of shape {tuple(images.shape)}, but the error of every "
                'value is needed; pass a loss that does not average, for example nn.L1Loss(reduction="none").'
            )
        weight = self._weight(region, hole)  # (B, 1, H, W)
        reconstruction = (weight * error).sum() / (mean(weight.sum()) * images.shape[1])  # Eq. 1
        self.note("reconstruction_loss", reconstruction)
        if self.discriminator is None:
            return reconstruction
        real = self.train_discriminator(images * region).float()  # logits (B,)
        fake = self.train_discriminator(prediction * region).float()
        adversarial = softplus(-self.judge(prediction * region).float()).mean()
        discriminator_loss = softplus(-real).mean() + softplus(fake).mean()  # Eq. 2
        return self.both_losses(self._joint(reconstruction, adversarial), discriminator_loss)

    def _weight(self, region: Tensor, hole: Tensor) -> Tensor:
        """The weight of the error at each pixel: 1 in the hole, more in the overlap, 0 elsewhere."""
        return torch.where(hole, 1.0, self.overlap_weight) * region

    def _joint(self, reconstruction: Any, adversarial: Any) -> Any:
        """lambda_rec L_rec + lambda_adv L_adv, the paper's "Joint loss"."""
        return (1 - self.adversarial_weight) * reconstruction + self.adversarial_weight * adversarial

    def _masks(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The region that is predicted, and the hole, which is the region without its border; (B, 1, H, W) bool each."""
        B, _, H, W = images.shape
        outside = torch.ones(B, 1, H, W, device=images.device)
        if self.region == "random":
            outside = self.place_blocks(outside, self.generator)
        else:
            outside[:, :, middle_half(H), middle_half(W)] = 0
        shown = max_pool2d(outside, 2 * self.border + 1, stride=1, padding=self.border)
        return outside == 0, shown == 0

    @property
    def chance_loss(self) -> float | None:
        """Predicting the mean colour of the region, with a discriminator that gives 1/2 to everything; None without images."""
        if not self.has_data:
            return None
        reconstruction = mean_prediction_loss(self, lambda views: self._weight(*self._masks(views)))
        return self._joint(reconstruction, math.log(2))

    def show_reconstruction(self, path: str | Path, dataset: Any = None, count: int = 8) -> Path:
        """Writes a PNG with a row for each image: with its hole, complete, predicted, and with the prediction in the hole.

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

        titles = ["with the hole", "original", "prediction", "hole filled in"]
        return show_columns(self, columns, path, dataset, count, titles=titles, title="Context encoder: inpainting")


def middle_half(side: int) -> slice:
    """The pixels of the middle half of a side."""
    return slice(side // 4, side // 4 + side // 2)


class ChannelwiseLinear(nn.Module):
    """A fully connected layer for each channel: from all positions of its input map to all positions of its output map.

    From n to m positions it has D n m weights, while one layer over all channels would have D^2 n m.

    Shape:
        (B, D, n) -> (B, D, m).
    """

    def __init__(self, channels: int, positions: int, out_positions: int) -> None:
        super().__init__()
        bound = positions**-0.5  # as in nn.Linear
        self.weight = nn.Parameter(torch.empty(channels, positions, out_positions).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels * out_positions).uniform_(-bound, bound))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, D, m)."""
        bias = self.bias.view(len(self.weight), 1, -1)
        return torch.baddbmm(bias, maps.transpose(0, 1), self.weight).transpose(0, 1)


class ContextDecoder(nn.Sequential):
    """The channel-wise layer, a convolution of stride 1 across the channels, and upsampling to an image.

    Args:
        maps: (D, h, w) of the input maps; those larger than 7 x 7 are pooled.
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
    """DCGAN's discriminator at half its width: strided convolutions, batch norm after all but the first, leaky ReLU, pooling.

    Shape:
        (B, C, H, W) -> logits (B,), positive for real images.
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
