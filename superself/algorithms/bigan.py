"""BiGAN: learn to generate images from latents and, against the same discriminator, latents from images."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.optim import Optimizer

from superself.adversarial import AdversarialSupervisor
from superself.data import BatchLoader
from superself.evaluation.figures import show_columns
from superself.networks import CombinedNet, Decoder, build_backbone, feature_width


class BiGanSupervisor(AdversarialSupervisor):
    """An encoder E and a generator G against a discriminator D of pairs: is it (x, E(x)) or (G(z), z)?

    L_D = (-log D(x, E(x)) - log(1 - D(G(z), z))) / 2, averaged over images; that of E and G is the same with swapped labels, with
    gradients through both kinds of pairs. There is no reconstruction term: G(E(x)) comes to look like x because only
    then the pairs cannot be told apart. z is uniform in [-1, 1], and E ends in a tanh, so that both have the same range.

    Losses of ln 2 for both players are the equilibrium of the game, and neither need fall on the way there: how well it goes
    is seen in ``show_reconstruction`` and measured by the squared error of ``reconstruct``.

    Source: Donahue et al., Adversarial Feature Learning, arXiv:1605.09782; uniform z, halved sums, swapped labels in place of the
        minimax loss, simultaneous steps and the beta1 of Adam as in the authors' code.
    Deviations: D judges by features of the image, of the latent, and their products, as for classes in Miyato & Koyama,
        arXiv:1802.05637, and has no batch norm, which would show what kind the other pairs are. z has 16 values, not the 200
        of the authors' ImageNet runs. Both are for short runs: after 400 steps of a small prototype on synthetic images of 16
        pixels, G(E(x)) was nearer to x than to other images with products and up to 16 values, not clearly so with an MLP on
        both parts, nor with 32 values or more. On CIFAR-10 the squared error of G(E(x)) was 1.26 times that of the mean image
        for x and 1.87 times for others after 3,800 steps (mobilenet_v3_small, batches of 64; bench/RESULTS.md); features were
        then better than random ones by kNN and a linear classifier, after 430 steps by the latter alone.
        The authors have one learning rate for both players. G ends in a plain convolution, as images are normalised, and E is
        any backbone.
    Args:
        dataset: see Supervisor, as are the options that are not listed here.
        latent: number of values of z, Z; the more, the more of an image can come back, and the more steps it takes.
        discriminator_lr: learning rate of D as a multiple of the first; at 2 it wins soon where lr is 1e-3.
        beta1: of Adam, or of any optimiser class with betas; None for the optimiser's own. An optimiser made by a function or
            ``functools.partial`` is left as it is. 0.9 was worse where it was tried.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        predictor: the head of E, from features (B, D) to (B, Z), before the tanh; None for a linear layer.
        decoder: G, from latents (B, Z) to images (B, C, H, W), normalised; None for a Decoder.
        discriminator: D, from images (B, C, H, W) and latents (B, Z) to logits (B,); None for a PairDiscriminator.
        loss: of logits (B,) to be called real and logits (B,) to be called generated; None for the cross-entropy.
    Shape:
        data: images (B, C, H, W) and their places (B,) -> loss ().
    Raises:
        ValueError: if ``latent`` is below 1, ``beta1`` not in [0, 1), or ``discriminator_lr`` not positive.
    """

    family = "generative"
    fixed_image_size = True  # what the decoder gives
    loss_meaning = (
        "a game: cross-entropy of the pairs with swapped labels; at its equilibrium 0.693 (ln 2) for both players"
    )
    likely_causes = (
        "the discriminator wins: the loss is far above 0.693 (try a lower discriminator_lr)",
        "the learning rate is too high for this optimiser (try a tenth of it)",
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
        **options: Any,
    ) -> None:
        super().__init__(None, dataset, loss or tell_apart, collate_fn, discriminator_lr=discriminator_lr, **options)
        if latent < 1:
            raise ValueError(f"latent={latent} is the number of values of z; pass a whole number of at least 1.")
        if beta1 is not None and not 0 <= beta1 < 1:
            raise ValueError(f"beta1={beta1} must be in [0, 1); pass None for the optimiser's own.")
        shape, self.latent, self.beta1 = self.images.shape, latent, beta1
        backbone = build_backbone(backbone, shape)
        predictor = nn.Linear(feature_width(backbone, shape), latent) if predictor is None else predictor
        self.model = CombinedNet(backbone, predictor)  # E
        self.decoder = Decoder(latent, shape, width=64) if decoder is None else decoder  # G
        self.discriminator = PairDiscriminator(shape, latent) if discriminator is None else discriminator  # D

    def _init_data_optimizer(
        self,
        optimizer: Callable[..., Optimizer],
        batch_size: int,
        shuffle: bool,
        num_workers: int,
        collate_fn: Callable[..., Any] | None,
        lr: float,
        lr_scheduler: Callable[..., Any] | None,
    ) -> tuple[BatchLoader, Optimizer, Any]:
        if self.beta1 is not None and inspect.isclass(optimizer):
            betas = inspect.signature(optimizer).parameters.get("betas")
            if betas is not None:
                optimizer = partial(optimizer, betas=(self.beta1, *betas.default[1:]))
        return super()._init_data_optimizer(optimizer, batch_size, shuffle, num_workers, collate_fn, lr, lr_scheduler)

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        x = self.preprocessing(data[0])  # (B, C, H, W)
        z = self.draw(len(x)).to(x.device)  # (B, Z)
        images, latents = torch.cat([x, self.decoder(z).float()]), torch.cat([self.encode(x), z])
        real, generated = self.discriminator(images, latents).float().chunk(2)  # logits (B,) each
        self.discriminator_loss = self.loss(real, generated)
        return self.loss(generated, real)

    def draw(self, count: int) -> Tensor:
        """Latents z (count, Z), uniform in [-1, 1]."""
        return 2 * torch.rand(count, self.latent, generator=self.generator) - 1

    def encode(self, images: Tensor) -> Tensor:
        """E(x): latents (B, Z) in [-1, 1] of normalised images (B, C, H, W)."""
        return self.model(images).float().tanh()

    def reconstruct(self, images: Tensor) -> Tensor:
        """G(E(x)): normalised images (B, C, H, W) from images as stored."""
        return self.decoder(self.encode(self.preprocessing(images))).float()

    def show_reconstruction(self, path: str | Path, dataset: Any = None, count: int = 8) -> Path:
        """Writes a PNG with a row for each image x: the image, G(E(x)), and G(z) of a z that has nothing to do with it.

        Args:
            path: of the file; folders are made.
            dataset: anything that ``open_images`` takes; None shows images that the network is trained on.
            count: rows.
        """

        def columns(images: Tensor) -> list[Tensor]:
            generated = self.decoder(self.draw(len(images)).to(images.device))
            shown = (self.preprocessing(images), self.reconstruct(images), generated)
            return [self.preprocessing.undo(part) for part in shown]

        return show_columns(self, columns, path, dataset, count)


def tell_apart(first: Tensor, second: Tensor) -> Tensor:
    """Half the sum of the cross-entropies of saying yes to the first logits (B,) and no to the second ones (B,)."""
    return (softplus(-first).mean() + softplus(second).mean()) / 2


class PairDiscriminator(nn.Module):
    """Judges a pair by its image, by its latent, and by the products of their features, which alone can tell if they belong.

    Every pair is judged by itself: a norm over the batch would show what kind the others are.

    Source: the products as for classes in Miyato & Koyama, arXiv:1802.05637.
    Args:
        shape: (C, H, W) of the images.
        latent: values of a latent.
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
        self.of_image = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * widths[-1], hidden), nn.LayerNorm(hidden)
        )
        self.of_latent = nn.Sequential(
            nn.Linear(latent, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
        )
        self.image_alone = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(hidden, 1))
        self.latent_alone = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(hidden, 1, bias=False))

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        """Logits (B,)."""
        image, latent = self.of_image(images), self.of_latent(latents)  # (B, H) each
        together = (image * latent).sum(1) / math.sqrt(image.shape[1])
        return self.image_alone(image)[:, 0] + self.latent_alone(latent)[:, 0] + together
