"""Denoising autoencoder: the clean image from a corrupted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from superself.augment import Compose, GaussianNoise, PixelMask, Transform
from superself.basics.distributed import mean
from superself.basics.validate import require_bool, require_choice, require_fraction, require_positive
from superself.data import Batch
from superself.evaluation import mean_prediction_loss, show_columns
from superself.networks import CombinedNet, Decoder, build_backbone, feature_width
from superself.supervisor import Supervisor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

NOISES = ("mask", "gaussian", "salt-and-pepper")


class DenoiseNetSupervisor(Supervisor):
    """Corrupts each image and predicts the clean one from the pooled features of the corrupted one.

    L = mean over all pixels and channels of (x - g(f(x~)))^2, where x~ is the image x with a fraction of its pixels destroyed,
    f the backbone and g the decoder; input and target are normalised alike. Chance level: about 1, the error of predicting
    the mean of each channel. A pixel is destroyed in all of its channels, because an intact channel would reveal the others.

    Source: Vincent et al., Extracting and Composing Robust Features with Denoising Autoencoders, ICML 2008,
        doi:10.1145/1390156.1390294, Sec. 2.3.
    Deviations: the whole network is trained at once, not layer by layer with tied weights; squared error of normalised colours
        instead of cross-entropy; each pixel is destroyed with probability p, not exactly a fraction p of them.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        p: probability that a pixel is destroyed, the paper's nu; not used by "gaussian".
        noise: "mask" sets pixels to 0, the mean after normalisation; "salt-and-pepper" to white or black; "gaussian" adds to
            every value.
        sigma: standard deviation of "gaussian", in units of the pixels' range; results are clipped to that range.
        corrupted_only: average the error over the pixels that the noise changed, not over all.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        predictor: from features (B, D) to images (B, C, H, W); None for a Decoder.
        loss: of (prediction (B, C, H, W), target (B, C, H, W)), a mean over all values; None for the squared error.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if ``noise`` is unknown, ``p`` not between 0 and 1, or ``sigma`` not above 0.
    """

    family = "predictive"
    paper = ("Vincent et al. 2008", "https://doi.org/10.1145/1390156.1390294")
    good_for = "the simplest baseline; cleaning images"
    compares_images = False
    fixed_image_size = True  # the decoder's
    loss_meaning = "squared error per value of the predicted clean image, normalised; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the backbone's features are too narrow for an image, or its last layer is saturated",
        "too much noise to predict more than the mean (lower p or sigma)",
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
        **options: Unpack[Options],
    ) -> None:
        super().__init__(None, dataset, loss, collate_fn, **options)
        require_fraction("p", p, "is the probability that a pixel is destroyed", lower_open=True, upper_open=True)
        require_choice("noise", noise, NOISES)
        require_positive("sigma", sigma, "is the standard deviation of the noise")
        require_bool("corrupted_only", corrupted_only, "averages the error over the changed pixels")
        self.p, self.noise, self.sigma, self.corrupted_only = p, noise, sigma, corrupted_only
        self.given.backbone, self.given.predictor = backbone, predictor

    def _build(self) -> None:
        self.loss = self.given.loss or nn.MSELoss()
        backbone = build_backbone(self.given.backbone, self.network_shape)
        predictor = self.given.predictor
        if predictor is None:
            predictor = Decoder(feature_width(backbone, self.network_shape), self.network_shape)
        self.model = CombinedNet(backbone, predictor)  # f, then g

    def _build_views(self) -> None:
        super()._build_views()
        self.corrupt = self._noise()

    def _forward(self, data: Batch) -> Tensor:
        corrupted, clean = self._corrupted_and_clean(self.raw_views(data)[0])
        prediction = self.model(corrupted).float()  # (B, C, H, W)
        if not self.corrupted_only:
            return self.loss(prediction, clean)  # Sec. 2.3
        destroyed = (corrupted != clean).any(1, keepdim=True)  # (B, 1, H, W)
        fraction = mean(destroyed.float().mean()).clamp(min=1e-6)
        return self.loss(torch.where(destroyed, prediction, clean), clean) / fraction

    def _corrupted_and_clean(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The corrupted images x~ and the clean ones x, both normalised."""
        clean = self.preprocessing(images)
        if self.noise == "mask":
            return self.corrupt(clean, self.generator), clean
        return self.preprocessing(self.corrupt(images, self.generator)), clean

    def _noise(self) -> Transform:
        if self.noise == "mask":
            return PixelMask(self.p)
        if self.noise == "gaussian":
            return GaussianNoise(self.sigma)
        # The second mask hits pixels of the first too, so that a fraction p / 2 is black and p / 2 white in the end.
        return Compose([PixelMask(self.p / (2 - self.p), 0.0), PixelMask(self.p / 2, 1.0)])

    @property
    def chance_loss(self) -> float | None:
        """The loss of predicting the mean of each channel, about 1; None without images."""
        return mean_prediction_loss(self) if self.has_data else None

    def show_reconstruction(self, path: str | Path, dataset: Any = None, count: int = 8) -> Path:
        """Writes a PNG with a row for each image: the corrupted image, the clean one, and the predicted one.

        Args:
            path: of the file; folders are made.
            dataset: anything that ``open_images`` takes; None shows images that the network is trained on.
            count: rows.
        """

        def columns(images: Tensor) -> list[Tensor]:
            corrupted, clean = self._corrupted_and_clean(images)
            return [self.preprocessing.undo(part) for part in (corrupted, clean, self.model(corrupted))]

        titles = ["corrupted", "original", "prediction"]
        return show_columns(self, columns, path, dataset, count, titles=titles, title="Denoising autoencoder")
