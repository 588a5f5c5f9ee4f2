"""BiGAN: learn to generate images from latents and, against the same discriminator, latents from images."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from superself.adversarial import AdversarialSupervisor
from superself.basics.validate import require_count, require_fraction
from superself.data import Batch
from superself.evaluation import show_columns
from superself.networks import CombinedNet, Decoder, build_backbone, feature_width
from superself.training import GroupRule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class BiGanSupervisor(AdversarialSupervisor):
    """An encoder E and a generator G against a discriminator D of pairs: is it (x, E(x)) or (G(z), z)?

    L_D = (-log D(x, E(x)) - log(1 - D(G(z), z))) / 2, averaged over images. The loss of E and G is the same with swapped
    labels, with gradients through both kinds of pairs and no reconstruction term. z is uniform in [-1, 1], and E ends in a
    tanh, so that both have the same range. The equilibrium is ln 2 for both players, and neither loss need fall on the way
    there: progress shows in ``show_reconstruction`` and in the squared error of ``reconstruct``.

    Source: Donahue et al., Adversarial Feature Learning, arXiv:1605.09782; uniform z, halved sums, swapped labels instead of the
        minimax loss, simultaneous steps and the beta1 of Adam as in the authors' code.
    Deviations: D judges by features of the image, of the latent, and their products (Miyato & Koyama, arXiv:1802.05637),
        without batch norm, which would make a pair's logit depend on the other pairs; z has 16 values, not the 200 of the
        authors' ImageNet runs; G ends in a plain convolution, because images are normalised; E is any backbone; D has its
        own learning rate, where the authors use one for both players.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        latent: Z, the number of values of z; with more, more of an image can be reconstructed, after more steps.
        discriminator_lr: learning rate of D as a multiple of ``lr``; at 2, D soon wins when lr is 1e-3.
        beta1: of Adam, or of any optimizer class with betas; None for the optimizer's own. An optimizer that a function or
            ``functools.partial`` makes is used unchanged.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        predictor: the head of E, from features (B, D) to (B, Z), before the tanh; None for a linear layer.
        decoder: G, from latents (B, Z) to images (B, C, H, W), normalised; None for a Decoder.
        discriminator: D, from images (B, C, H, W) and latents (B, Z) to logits (B,); None for a PairDiscriminator.
        loss: of logits (B,) to be called real and logits (B,) to be called generated; None for the cross-entropy.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if ``latent`` is below 1, ``beta1`` not in [0, 1), or ``discriminator_lr`` not positive.
    """

    presets = {"bigan-imagenet": {"latent": 200, "discriminator_lr": 1.0}}
    family = "generative"
    paper = ("Donahue et al. 2017", "https://arxiv.org/abs/1605.09782")
    good_for = "generating and encoding at once; features come second"
    compares_images = False
    fixed_image_size = True  # the decoder's
    smallest_image = 2
    loss_meaning = "adversarial cross-entropy; equilibrium at 0.693 (ln 2) for both players, lower is not always better"
    likely_causes = (
        "the discriminator wins: the loss is far above 0.693 (try a lower discriminator_lr)",
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "too few steps: a latent of many values needs many thousands (try a smaller latent)",
    )

    def __init__(
        self,
        dataset: Any = None,
        latent: int = 16,
        discriminator_lr: float = 0.5,
        beta1: float | None = 0.5,
        backbone: str | nn.Module | None = None,
        predictor: nn.Module | None = None,
        decoder: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(None, dataset, loss, collate_fn, discriminator_lr=discriminator_lr, **options)
        require_count("latent", latent, "is the number of values of z")
        if beta1 is not None:
            require_fraction("beta1", beta1, "is the decay rate of Adam's first moment", upper_open=True)
        self.latent, self.beta1 = latent, beta1
        self.given.backbone, self.given.predictor = backbone, predictor
        self.given.decoder, self.given.discriminator = decoder, discriminator

    def _build(self) -> None:
        self.loss = self.given.loss or balanced_cross_entropy
        shape, given = self.network_shape, self.given
        backbone, predictor = build_backbone(given.backbone, shape), given.predictor
        if predictor is None:
            predictor = nn.Linear(feature_width(backbone, shape), self.latent)
        self.model = CombinedNet(backbone, predictor)  # E
        self.decoder = Decoder(self.latent, shape, width=64) if given.decoder is None else given.decoder  # G
        self.discriminator = (
            PairDiscriminator(shape, self.latent) if given.discriminator is None else given.discriminator
        )

    def _forward(self, data: Batch) -> Tensor:
        (x,) = self.views(data)  # (B, C, H, W)
        z = self.draw_latents(len(x)).to(x.device)  # (B, Z)
        images = torch.cat([x, self.decoder(z).float()])  # (2B, C, H, W)
        latents = torch.cat([self.encode(x), z])  # (2B, Z)
        real, generated = self.judge(images, latents).float().chunk(2)  # logits (B,) each
        loss = self.loss(generated, real)  # of E and G: labels are swapped
        real, generated = self.train_discriminator(images, latents).float().chunk(2)
        return self.both_losses(loss, self.loss(real, generated))

    def _group_rules(self) -> list[GroupRule]:
        optimizer = self.run.settings.optimizer
        betas = inspect.signature(optimizer).parameters.get("betas") if inspect.isclass(optimizer) else None
        if self.beta1 is None or betas is None or not isinstance(betas.default, tuple):
            return super()._group_rules()
        betas = (self.beta1, *betas.default[1:])
        return [GroupRule("*", betas=betas), GroupRule("discriminator", lr_factor=self.discriminator_lr, betas=betas)]

    def draw_latents(self, count: int) -> Tensor:
        """Latents z (count, Z), uniform in [-1, 1]."""
        return 2 * torch.rand(count, self.latent, generator=self.generator) - 1

    def encode(self, images: Tensor) -> Tensor:
        """E(x): latents (B, Z) in [-1, 1] of normalised images (B, C, H, W)."""
        return self.model(images).float().tanh()

    def reconstruct(self, images: Tensor) -> Tensor:
        """G(E(x)): normalised images (B, C, H, W), from images that are not normalised, of the size of the views."""
        return self.decoder(self.encode(self.preprocessing(images))).float()

    def show_reconstruction(self, path: str | Path, dataset: Any = None, count: int = 8) -> Path:
        """Writes a PNG with a row for each image x: the image, G(E(x)), and G(z) of an unrelated z.

        Args:
            path: of the file; folders are made.
            dataset: anything that ``open_images`` takes; None shows images that the network is trained on.
            count: rows.
        """

        def columns(images: Tensor) -> list[Tensor]:
            generated = self.decoder(self.draw_latents(len(images)).to(images.device))
            shown = (self.preprocessing(images), self.reconstruct(images), generated)
            return [self.preprocessing.undo(part) for part in shown]

        titles = ["image x", "reconstruction G(E(x))", "sample G(z)"]
        return show_columns(self, columns, path, dataset, count, titles=titles, title="BiGAN: images and what G makes")


def balanced_cross_entropy(positive: Tensor, negative: Tensor) -> Tensor:
    """Cross-entropy of logits (B,) that should be positive and of as many that should be negative, averaged over all."""
    return (softplus(-positive).mean() + softplus(negative).mean()) / 2


class PairDiscriminator(nn.Module):
    """Judges a pair by its image, by its latent, and by the products of their features, which show whether they match.

    Each pair is judged independently: with batch norm, the logits of a pair would depend on the others.

    Source: the products as for classes in Miyato & Koyama, arXiv:1802.05637.
    Args:
        shape: (C, H, W) of the images.
        latent: number of values of a latent.
        width: channels of the first convolution; twice as many at each halving of the size, up to 8 times.
        hidden: features of the image, and of the latent.
    Shape:
        images (B, C, H, W), latents (B, Z) -> logits (B,), positive for an image and its encoding.
    """

    def __init__(self, shape: tuple[int, int, int], latent: int, width: int = 32, hidden: int = 128) -> None:
        super().__init__()
        channels, *size = shape
        halvings = max(1, math.ceil(math.log2(min(size) / 4)))  # to about 4 pixels
        widths = [width << min(stage, 3) for stage in range(halvings)]
        layers: list[nn.Module] = []
        for before, after in pairwise([channels, *widths]):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.image_features = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * widths[-1], hidden), nn.LayerNorm(hidden)
        )
        self.latent_features = nn.Sequential(
            nn.Linear(latent, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
        )
        self.image_alone = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(hidden, 1))
        self.latent_alone = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(hidden, 1, bias=False))

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        """Logits (B,)."""
        image, latent = self.image_features(images), self.latent_features(latents)  # (B, H) each
        together = (image * latent).sum(1) / math.sqrt(image.shape[1])
        return self.image_alone(image)[:, 0] + self.latent_alone(latent)[:, 0] + together
