"""RotateNet: which way up is the image?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms.functional import gaussian_blur

from superself.networks import MLP, CombinedNet, build_backbone, feature_width
from superself.supervisor import Supervisor

SMOOTHING = 1.5  # pixels; less leaves what is near a pixel's size, which an interpolation at 45 degrees keeps otherwise than at 0


class RotateNetSupervisor(Supervisor):
    """Rotates each image by every angle of a set and classifies the angle.

    L = mean over images and angles of the cross-entropy of the predicted angle; chance is ln K for K angles, 0 is perfect.

    Source: Gidaris et al., Unsupervised Representation Learning by Predicting Image Rotations, arXiv:1803.07728, Sec. 3.
    Deviations: the head is an MLP of two layers on pooled features, for any backbone; a square of the shorter side,
        at a random place, is rotated when images are not square.
    Args:
        dataset: see Supervisor, as are the options that are not listed here.
        rotations: angles in degrees, counter-clockwise.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        predictor: from features (B, D) to logits (B, K); None for the MLP.
        loss: of (logits (B, K), targets (B,)); None for the cross-entropy.
    Shape:
        data: images (B, C, H, W) and their places (B,) -> loss ().
    Raises:
        ValueError: if there are fewer than two different rotations.
    """

    family = "patch"
    loss_meaning = "cross-entropy of the rotation; 0 is perfect"
    likely_causes = (
        "the images have no upright position (textures, microscopy, seen from above), so that rotation cannot be told",
        "the learning rate is too high for this optimiser (try a tenth of it)",
        "the images come out of the data set already turned at random",
    )

    def __init__(
        self,
        dataset: Any = None,
        rotations: Sequence[float] = (0, 90, 180, 270),
        backbone: str | nn.Module | None = None,
        predictor: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(None, dataset, loss or nn.CrossEntropyLoss(), collate_fn, **options)
        self.rotations = tuple(rotations)
        if len({angle % 360 for angle in self.rotations}) < max(2, len(self.rotations)):
            raise ValueError(
                f"rotations={self.rotations} must be two or more different angles, for example (0, 90, 180, 270)."
            )
        backbone = build_backbone(backbone, self.images.shape)
        if predictor is None:
            predictor = MLP(feature_width(backbone, self.images.shape), len(self.rotations), hidden=512)
        self.model = CombinedNet(backbone, predictor)

    @property
    def chance_loss(self) -> float:
        """ln K: every angle equally likely."""
        return math.log(len(self.rotations))

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        images = self.preprocessing(data[0])  # (B, C, H, W)
        views = rotated_views(images, self.rotations, self.generator)  # (K * B, C, S, S)
        targets = torch.arange(len(self.rotations), device=views.device).repeat_interleave(len(images))  # (K * B,)
        return self.loss(self.model(views).float(), targets)


def rotated_views(images: Tensor, rotations: Sequence[float], generator: torch.Generator) -> Tensor:
    """All rotations of all images, the first rotation of every image first.

    Multiples of 90 degrees move pixels and change none. Any other angle needs interpolation and has corners without an
    image; so that neither tells the angle, all views of such a set (0 and 90 degrees too) go through the same smoothing, a
    Gaussian, which has no direction, and the same interpolation at a random shift below a pixel, and keep only the square
    that lies inside the image at any angle.

    Shape:
        images (B, C, H, W) -> (K * B, C, S, S); S is the shorter side, divided by sqrt(2) for angles other than right ones.
    """
    side = min(images.shape[-2:])
    top, left = (int(torch.randint(length - side + 1, (), generator=generator)) for length in images.shape[-2:])
    square = images[..., top : top + side, left : left + side]  # (B, C, side, side)
    if all(angle % 90 == 0 for angle in rotations):
        return torch.cat([square.rot90(round(angle / 90), dims=(-2, -1)) for angle in rotations])
    square = gaussian_blur(square, [2 * min(4, side // 4) + 1] * 2, [SMOOTHING] * 2)
    return torch.cat([_turned_inside(square, angle, generator) for angle in rotations])


def _turned_inside(square: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """The inscribed square of each image, turned counter-clockwise by ``degrees`` at a random shift below a pixel."""
    B, C, side, _ = square.shape
    inside = int((side - 2) / math.sqrt(2))  # one pixel less on each side, for the shift and the smoothed border
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    scale = inside / side
    theta = torch.tensor([[cos * scale, -sin * scale, 0.0], [sin * scale, cos * scale, 0.0]]).repeat(B, 1, 1)
    theta[:, :, 2] = (torch.rand(B, 2, generator=generator) - 0.5) * 2 / side
    grid = affine_grid(theta, [B, C, inside, inside], align_corners=False)
    return grid_sample(square, grid.to(square.device), padding_mode="border", align_corners=False)
