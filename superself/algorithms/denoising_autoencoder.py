"""DenoiseNet: the clean image from a corrupted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from superself.augment import Compose, GaussianNoise, PixelMask
from superself.data import ImageSpec, mean_prediction_loss
from superself.evaluation.figures import show_columns
from superself.networks import CombinedNet, Decoder, build_backbone, feature_width
from superself.supervisor import Supervisor


class DenoiseNetSupervisor(Supervisor):
    """Corrupts each image and predicts the clean one from the pooled features of the corrupted one.

    L = mean over all pixels and channels of (x - g(f(x~)))^2, where x~ is the image x with a share of its pixels destroyed, f the
    backbone and g the decoder; input and target are normalised alike. Predicting the mean of each channel gives about 1.

    Noise hits a pixel in all of its channels, because a channel that is left would tell the others. "mask" gives the
    network 0 there, which is the mean after normalisation; "salt-and-pepper" white or black; "gaussian" adds to every value.

    Source: Vincent et al., Extracting and Composing Robust Features with Denoising Autoencoders, ICML 2008,
        doi:10.1145/1390156.1390294, Sec. 2.3.
    Deviations: the whole network is trained at once, not layer by layer with tied weights; squared error of normalised colours in
        place of cross-entropy; each pixel is destroyed with probability p, not exactly a share p of them.
        Adam with lr 1e-3 and batches of 32 was tried on CIFAR-10, for about 340 steps (bench/RESULTS.md).
    Args:
        dataset: see Supervisor, as are the options that are not listed here.
        p: share of the pixels that are destroyed, the paper's nu; not used by "gaussian".
        noise: "mask", "gaussian" or "salt-and-pepper".
        sigma: standard deviation of "gaussian", where 1 is the range of the pixels.
        corrupted_only: count the error of the pixels that the noise changed only.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        predictor: from features (B, D) to images (B, C, H, W); None for a Decoder.
        loss: of (prediction (B, C, H, W), target (B, C, H, W)), a mean over all values; None for the squared error.
    Shape:
        data: images (B, C, H, W) and their places (B,) -> loss ().
    Raises:
        ValueError: if ``noise`` is unknown, ``p`` no share above 0, or ``sigma`` not above 0.
    """

    family = "predictive"
    fixed_image_size = True  # what the decoder gives
    loss_meaning = "squared error per value of the predicted clean image, normalised; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimiser (try a tenth of it)",
        "the backbone's features are too narrow to hold an image, or its last layer is saturated",
        "too much noise: no more than the mean can be told from what is left (lower p or sigma)",
    )

    def __init__(
        self,
        dataset: Any = None,
        p: float = 0.25,
        noise: str = "mask",
        sigma: float = 0.2,
        corrupted_only: bool = False,
        backbone: str | nn.Module | None = None,
        predictor: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(None, dataset, loss or nn.MSELoss(), collate_fn, **options)
        if not 0 < p < 1:
            raise ValueError(f"p={p} is the share of pixels that are destroyed; pass a number above 0 and below 1.")
        if sigma <= 0:
            raise ValueError(f"sigma={sigma} is the standard deviation of the noise; pass a number above 0.")
        noises = {
            "mask": PixelMask(p),
            "gaussian": GaussianNoise(sigma),
            "salt-and-pepper": Compose(
                [PixelMask(p / (2 - p), 0.0), PixelMask(p / 2, 1.0)]
            ),  # p / 2 of each in the end
        }
        if noise not in noises:
            raise ValueError(f"noise={noise!r} is unknown; pass one of {', '.join(map(repr, noises))}.")
        self.noise, self.corrupted_only = noise, corrupted_only
        self.corrupt = noises[noise]
        backbone = build_backbone(backbone, self.images.shape)
        if predictor is None:
            predictor = Decoder(feature_width(backbone, self.images.shape), self.images.shape)
        self.model = CombinedNet(backbone, predictor)  # f, then g

    @property
    def chance_loss(self) -> float | None:
        """That of predicting the mean of each channel: about 1; None without images."""
        known = not isinstance(self.images, ImageSpec)
        return mean_prediction_loss(self.images, self.preprocessing) if known else None

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        corrupted, clean = self._views(data[0])
        prediction = self.model(corrupted).float()  # (B, C, H, W)
        if not self.corrupted_only:
            return self.loss(prediction, clean)
        destroyed = (corrupted != clean).any(1, keepdim=True)  # (B, 1, H, W)
        return self.loss(torch.where(destroyed, prediction, clean), clean) / destroyed.float().mean().clamp(min=1e-6)

    def _views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The corrupted and the clean images, both normalised: x~ and x."""
        clean = self.preprocessing(images)
        if self.noise == "mask":
            return self.corrupt(clean, self.generator), clean
        return self.preprocessing(self.corrupt(images, self.generator)), clean

    def show_reconstruction(self, path: str | Path, dataset: Any = None, count: int = 8) -> Path:
        """Writes a PNG with a row for each image: the corrupted image, the clean one, and the predicted one.

        Args:
            path: of the file; folders are made.
            dataset: anything that ``open_images`` takes; None shows images that the network is trained on.
            count: rows.
        """

        def columns(images: Tensor) -> list[Tensor]:
            corrupted, clean = self._views(images)
            return [self.preprocessing.undo(part) for part in (corrupted, clean, self.model(corrupted))]

        return show_columns(self, columns, path, dataset, count)
