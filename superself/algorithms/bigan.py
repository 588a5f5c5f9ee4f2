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

    The loss of D is the cross-entropy, (-log D(x, E(x)) - log(1 - D(G(z), z))) / 2; that of E and G is the same with swapped labels,
    with gradients through both kinds of pairs. There is no reconstruction term: G(E(x)) comes to look like x because only
    then the pairs cannot be told apart. z is uniform in [-1, 1], and E ends in a tanh, so that both have the same range.

    Source: Donahue et al., Adversarial Feature Learning, arXiv:1605.09782; uniform z of 200 values, the halved sums of both losses,
        simultaneous steps and the beta1 of Adam as in the authors' code.
    Deviations: TODO
    """

    family = "generative"
    loss_meaning = (
        "a game: cross-entropy of the pairs with swapped labels; at the equilibrium 0.693 (ln 2) for both players"
    )
    likely_causes = (
        "the discriminator wins, which its loss near 0 shows (try a lower discriminator_lr)",
        "the learning rate is too high for this optimiser (try a tenth of it)",
        "too few steps: a latent of many values needs many thousands (try a smaller latent)",
    )

    def __init__(
        self,
        dataset: Any = None,
        latent: int = 16,
        discriminator_lr: float = 1.0,
        gradient_penalty: float = 0.2,
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
            raise ValueError(f"beta1={beta1} must be in [0, 1), or None for the optimiser's own.")
        shape, self.latent, self.beta1 = self.images.shape, latent, beta1
        self.gradient_penalty = gradient_penalty
        backbone = build_backbone(backbone, shape)
        self.model = CombinedNet(backbone, predictor or nn.Linear(feature_width(backbone, shape), latent))  # E
        self.decoder = decoder or Decoder(latent, shape, width=64)  # G
        self.discriminator = discriminator or PairDiscriminator(shape, latent)  # D

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
                optimizer = partial(optimizer, betas=(self.beta1, betas.default[1]))
        return super()._init_data_optimizer(optimizer, batch_size, shuffle, num_workers, collate_fn, lr, lr_scheduler)

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        x = self.preprocessing(data[0])  # (B, C, H, W)
        z = self.draw(len(x)).to(x.device)  # (B, Z)
        images, latents = torch.cat([x, self.decoder(z).float()]), torch.cat([self.encode(x), z])
        real, generated = self.discriminator(images, latents).float().chunk(2)  # logits (B,) each
        self.discriminator_loss = self.loss(real, generated) + self._penalty(images, latents, real, generated)
        return self.loss(generated, real)

    def _penalty(self, images: Tensor, latents: Tensor, real: Tensor, generated: Tensor) -> Tensor:
        """Mean squared slope of the logits where the pairs are: it damps the circles that two players run around each other."""
        if not (self.gradient_penalty and torch.is_grad_enabled()):
            return real.new_zeros(())
        slopes = torch.autograd.grad(real.sum() + generated.sum(), (images, latents), create_graph=True)
        pixels = images[0].numel()  # the slope for each pixel falls with their number
        of_image, of_latent = (slope.float().square().flatten(1).sum(1).mean() for slope in slopes)
        return self.gradient_penalty * (pixels / 1000 * of_image + of_latent)

    def draw(self, count: int) -> Tensor:
        """Latents (count, Z), uniform in [-1, 1]."""
        return 2 * torch.rand(count, self.latent, generator=self.generator) - 1

    def encode(self, images: Tensor) -> Tensor:
        """E(x): latents (B, Z) in [-1, 1] of normalised images."""
        return self.model(images).float().tanh()

    def reconstruct(self, images: Tensor) -> Tensor:
        """G(E(x)): normalised images (B, C, H, W) from images as stored."""
        return self.decoder(self.encode(self.preprocessing(images))).float()

    def show_reconstruction(self, path: str | Path, dataset: Any = None, count: int = 8) -> Path:
        """Writes a PNG with a row for each image x: itself, G(E(x)), and beside them G(z) of a latent that was drawn.

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
    """Half the cross-entropy of saying yes to the first logits (B,) and no to the second ones."""
    return (softplus(-first).mean() + softplus(second).mean()) / 2


class PairDiscriminator(nn.Module):
    """Tells pairs of an image and a latent apart by features of the image, of the latent, and their products.

    Every pair by itself: a norm over the batch would tell generated images by their company.

    Shape:
        images (B, C, H, W), latents (B, Z) -> logits (B,), positive for pairs of an encoder.
    """

    def __init__(self, shape: tuple[int, int, int], latent: int, width: int = 32, hidden: int = 128) -> None:
        super().__init__()
        channels, *size = shape
        stages = max(1, math.ceil(math.log2(min(size) / 4)))  # to about 4 pixels
        widths = [channels, *(min(width << stage, 8 * width) for stage in range(stages))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.of_image = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * widths[-1], hidden), nn.LayerNorm(hidden)
        )
        self.of_latent = nn.Sequential(
            nn.Linear(latent, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
        )
        self.image_alone = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(hidden, 1))
        self.latent_alone = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(hidden, 1))

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        """Logits (B,)."""
        image, latent = self.of_image(images), self.of_latent(latents)  # (B, H) each
        together = (image * latent).sum(1) / math.sqrt(image.shape[1])
        return self.image_alone(image)[:, 0] + self.latent_alone(latent)[:, 0] + together
