"""Instance discrimination: every image is a class of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Optimizer

from superself.augment import recipe
from superself.losses import InfoNCE
from superself.networks import MLP, CombinedNet, MemoryBank, build_backbone, feature_width
from superself.supervisor import Supervisor


class InstanceDiscriminationSupervisor(Supervisor):
    """One view of each image: which row of the memory bank is it?

    L = -log exp(v . m_i / t) / sum_j exp(v . m_j / t) + lambda ||v - m_i||^2, averaged over images: v is the embedding of a view
    of image i, m_j the row of image j, all of length one. Row i becomes the mean of its old value and v, of length one again,
    after the step. Chance is ln N for N images. A row starts at random and is written once an epoch, so nothing is learnt before
    the second epoch, where rows are still half random.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, arXiv:1805.01978, Sec. 3.1
        (Eq. 2, the softmax over the whole bank) and Sec. 3.3 (proximal term).
    Deviations: with ``negatives`` the softmax is over the image's own row and those drawn, where Sec. 3.2 has noise-contrastive
        estimation (the authors' later release has the softmax too); one draw serves the whole batch.
        Adam with lr 1e-3 and batches of 32 was tried on CIFAR-10: 45 epochs over 250 images are better than random weights by
        kNN and for a linear classifier, 27 over 500 for the latter alone (bench/RESULTS.md), 6 over 1,000 for neither: with few
        steps it is better to go through fewer images more often. Temperatures of 0.07 and 0.2 were alike.
    Args:
        dataset: see Supervisor, as are the options that are not listed here.
        augment: name of a recipe or transform that makes one view of a batch; the default is the authors' code's.
        temperature: t, 0.07 in the paper; the authors' code has 0.1 for CIFAR-10.
        momentum: share of a row that is kept when its image is seen; 0.5 in the authors' code.
        negatives: rows drawn for each step, 4096 in the paper for ImageNet; None compares with the whole bank.
        proximal: lambda, weight of the distance to the image's row before this step; 0, as in the authors' code, leaves it
            out.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        predictor: from features (B, D) to embeddings (B, E); None for the paper's linear layer with E = 128.
        loss: of (embedding (B, E), own row (B, E), rows (K, E), which of them are own (B, K)); None for the softmax.
    Shape:
        data: images (B, C, H, W) and their places (B,) -> loss ().
    Raises:
        ValueError: if a number is out of its range, or ``augment`` does not make one view.
    """

    family = "contrastive"
    loss_meaning = "cross-entropy of the image among all images; 0 is perfect"
    likely_causes = (
        "too few epochs: an image's row is written once an epoch and starts at random (train longer, or on fewer images)",
        "the learning rate is too high for this optimiser (try a tenth of it)",
        "the images are nearly all alike, or the same image is there many times",
    )

    def __init__(
        self,
        dataset: Any = None,
        augment: str | Callable[..., Any] = "moco-v1",
        temperature: float = 0.07,
        momentum: float = 0.5,
        negatives: int | None = None,
        proximal: float = 0.0,
        backbone: str | nn.Module | None = None,
        predictor: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(None, dataset, loss or InfoNCE(temperature), collate_fn, **options)
        if negatives is not None and negatives < 1:
            raise ValueError(
                f"negatives={negatives} rows leave nothing to tell an image from; pass at least 1, or None."
            )
        if proximal < 0:
            raise ValueError(f"proximal={proximal} is the weight of a distance; pass 0 or more.")
        self.negatives, self.proximal = negatives, proximal
        self.views = recipe(augment, self.images.shape[1:], views=1)
        backbone = build_backbone(backbone, self.images.shape)
        if predictor is None:
            predictor = MLP(feature_width(backbone, self.images.shape), 128, layers=1)
        self.model = CombinedNet(backbone, predictor)
        self.bank = MemoryBank(len(self.images), feature_width(self.model, self.images.shape), momentum)

    @property
    def chance_loss(self) -> float:
        """ln of the number of candidates, and two for each unit of the proximal term: any row is as likely as the own one."""
        return math.log(self.bank.candidates(self.negatives)) + 2 * self.proximal

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        images, places = data
        (view,) = self.views(images, self.generator)  # (B, C, H, W)
        embedding = self.model(self.preprocessing(view)).float()  # (B, E)
        row = self.bank.rows(places)  # (B, E), as the image's last view left it
        loss = self.loss(embedding, row, *self.bank.negatives(places, self.negatives, self.generator))
        if self.proximal:
            loss = loss + self.proximal * (normalize(embedding, dim=1) - row).square().sum(1).mean()  # Sec. 3.3
        self.bank.remember(embedding, places)
        return loss

    def _update(self, loss: Tensor, optimizer: Optimizer, lr_scheduler: Any) -> None:
        super()._update(loss, optimizer, lr_scheduler)
        self.bank.commit()
