"""RotateNet: which way up is the image?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms.functional import gaussian_blur

from superself.basics.validate import require_number, shortened
from superself.data import Batch
from superself.networks import MLP, CombinedNet, build_backbone, feature_width
from superself.supervisor import Supervisor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

SMOOTHING = 1.5  # pixels; details near a pixel's size survive an interpolation at 45 degrees differently than at 0


class RotateNetSupervisor(Supervisor):
    """Rotates each image by every angle of a set and classifies the angle.

    L = mean over images and angles of the cross-entropy of the predicted angle; chance level: ln K for K angles.

    Source: Gidaris et al., Unsupervised Representation Learning by Predicting Image Rotations, arXiv:1803.07728, Sec. 3;
        padded crop and flip as in the authors' loader for CIFAR-10.
    Deviations: the head is an MLP of two layers on pooled features, for any backbone; if images are not square, a square
        of the shorter side at a random place is rotated.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        rotations: angles in degrees, counter-clockwise.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        predictor: from features (B, D) to logits (B, K); None for the MLP.
        loss: of (logits (B, K), targets (B,)); None for the cross-entropy.
        augment: of the image before it is rotated; "crop-flip" pads by an eighth of the side, crops at random and flips. It must
            not rotate.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if there are fewer than two different rotations.
    """

    family = "patch"
    paper = ("Gidaris et al. 2018", "https://arxiv.org/abs/1803.07728")
    good_for = "images with an upright position: objects, scenes, people; not textures or aerial images"
    compares_images = False
    loss_meaning = "cross-entropy of the rotation; 0 is perfect"
    likely_causes = (
        "the images have no upright position (textures, microscopy, aerial views), so the rotation cannot be recognised",
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the data set already rotates its images at random",
    )

    def __init__(
        self,
        dataset: Any = None,
        rotations: Sequence[float] = (0, 90, 180, 270),
        backbone: str | nn.Module | None = None,
        predictor: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        *,
        augment: Any = "crop-flip",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(None, dataset, loss, collate_fn, augment=augment, **options)
        if isinstance(rotations, str) or not isinstance(rotations, Iterable):
            raise TypeError(
                f"rotations={shortened(rotations)} must be several angles in degrees, for example (0, 90, 180, 270)."
            )
        self.rotations = tuple(rotations)
        for angle in self.rotations:
            require_number("each of rotations", angle, "is an angle in degrees")
        if len({angle % 360 for angle in self.rotations}) < max(2, len(self.rotations)):
            raise ValueError(
                f"rotations={self.rotations} must be two or more different angles, for example (0, 90, 180, 270)."
            )
        self.given.backbone, self.given.predictor = backbone, predictor

    def _build(self) -> None:
        self.loss = self.given.loss or nn.CrossEntropyLoss()
        backbone, predictor = build_backbone(self.given.backbone, self.network_shape), self.given.predictor
        if predictor is None:
            predictor = MLP(feature_width(backbone, self.network_shape), len(self.rotations), hidden=512)
        self.model = CombinedNet(backbone, predictor)

    def _forward(self, data: Batch) -> Tensor:
        (images,) = self.views(data)  # (B, C, H, W)
        rotated = rotated_views(images, self.rotations, self.generator)  # (K * B, C, S, S)
        targets = torch.arange(len(self.rotations), device=rotated.device).repeat_interleave(len(images))  # (K * B,)
        logits = self.model(rotated).float()  # (K * B, K)
        self.note("accuracy", (logits.argmax(1) == targets).float())
        return self.loss(logits, targets)  # Sec. 3.1

    @property
    def chance_loss(self) -> float:
        """ln K: every angle equally likely."""
        return math.log(len(self.rotations))


def rotated_views(images: Tensor, rotations: Sequence[float], generator: torch.Generator) -> Tensor:
    """All rotations of all images: first every image at the first angle, then every image at the second, and so on.

    Multiples of 90 degrees only move pixels. Any other angle needs interpolation and leaves corners without an image. So
    that neither gives the angle away, all views of such a set (0 and 90 degrees included) go through the same isotropic
    Gaussian and the same interpolation at a random shift of less than a pixel, and keep only the square that lies inside
    the image at any angle.

    Shape:
        images (B, C, H, W) -> (K * B, C, S, S); S is the shorter side, divided by sqrt(2) for angles other than right ones.
    """
    side = min(images.shape[-2:])
    top, left = (int(torch.randint(length - side + 1, (), generator=generator)) for length in images.shape[-2:])
    square = images[..., top : top + side, left : left + side]  # (B, C, side, side)
    if all(angle % 90 == 0 for angle in rotations):
        return torch.cat([square.rot90(round(angle / 90), dims=(-2, -1)) for angle in rotations])
    with torch.autocast(images.device.type, enabled=False):
        square = gaussian_blur(square, [2 * min(4, side // 4) + 1] * 2, [SMOOTHING] * 2)
        return torch.cat([_rotate_inscribed_square(square, angle, generator) for angle in rotations])


def _rotate_inscribed_square(square: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """The inscribed square of each image, rotated counter-clockwise by ``degrees`` and shifted by less than a pixel."""
    B, C, side, _ = square.shape
    inside = int((side - 2) / math.sqrt(2))  # one pixel less on each side, for the shift and the smoothed border
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    scale = inside / side
    theta = torch.tensor([[cos * scale, -sin * scale, 0.0], [sin * scale, cos * scale, 0.0]]).repeat(B, 1, 1)
    theta[:, :, 2] = (torch.rand(B, 2, generator=generator) - 0.5) * 2 / side
    grid = affine_grid(theta, [B, C, inside, inside], align_corners=False)
    return grid_sample(square, grid.to(square.device), padding_mode="border", align_corners=False)
