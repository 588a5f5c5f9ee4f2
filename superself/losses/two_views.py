"""What NT-Xent, DCL and HCL share: which pairs of two views of a batch are positives and which are negatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from superself.basics.distributed import gather, own_rows
from superself.basics.validate import require_positive
from superself.losses.memory_bank import MemoryBankLoss


def compare_views(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The similarities of all 2B embeddings of a batch to those of the global batch, in float32.

    Shape:
        first (B, D), second (B, D) of unit length -> similarity to the other view of the same image (2B,), to all 2N
        embeddings of the N images of all processes (2B, 2N), and which of these show the same image (2B, 2N).
    """
    views = torch.stack([first, second])  # (2, B, D)
    everyone = gather(views.transpose(0, 1)).transpose(0, 1)  # (2, N, D)
    positives = (first * second).sum(1).repeat(2)
    return positives, views.flatten(0, 1) @ everyone.flatten(0, 1).T, own_rows(first).repeat(2, 2)


class TwoViewLoss(MemoryBankLoss):
    """Base of losses that compare two views of each image with each other and with those of other images.

    Every one of the 2B embeddings is an anchor. Its positive is the other view of its image, its negatives are both views of
    all other images of the global batch: 2B - 2. With negatives from elsewhere, the rows of ``first`` alone are anchors. An
    anchor without negatives has loss 0. A subclass writes ``loss_of_anchors``.

    Args:
        temperature: t, divides similarities; smaller is sharper.
        memory_bank_size: of a bank of earlier ``second``, which holds the negatives; see MemoryBankLoss.
    Shape:
        first (B, D), second (B, D) of any length -> scalar ().
        Or with negatives (K, D) of unit length, and exclude (B, K) bool or None: where it is true, a negative is left out for
        that anchor, for example because it shows the same image.
    Raises:
        ValueError: if a number is out of range or shapes do not match.
    """

    def __init__(self, temperature: float, memory_bank_size: int | Sequence[int] = 0) -> None:
        super().__init__(memory_bank_size)
        require_positive("temperature", temperature, "divides similarities")
        self.temperature = temperature

    def forward(
        self, first: Tensor, second: Tensor, negatives: Tensor | None = None, exclude: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch."""
        if first.shape != second.shape or first.ndim != 2:
            raise ValueError(
                f"first {tuple(first.shape)} and second {tuple(second.shape)} must have the same shape (B, D); pass the "
                "embeddings of two views of the same images."
            )
        if exclude is not None and negatives is None:
            raise ValueError("exclude= says which of the negatives= are left out; pass both, or neither.")
        remembers = negatives is None
        with torch.autocast(first.device.type, enabled=False):
            first, second = normalize(first.float(), dim=1), normalize(second.float(), dim=1)
            negatives = self.negatives(second) if negatives is None else negatives
            if negatives is None:
                positives, others, excluded = compare_views(first, second)
            else:
                if negatives.ndim != 2 or negatives.shape[1] != first.shape[1]:
                    raise ValueError(
                        f"negatives {tuple(negatives.shape)} and embeddings {tuple(first.shape)} differ in width; pass negatives "
                        "(K, D), or a memory bank of that width."
                    )
                positives, others = (first * second).sum(1), first @ negatives.float().T
                excluded = torch.zeros_like(others, dtype=torch.bool) if exclude is None else exclude
            loss = self._mean_loss(positives, others, excluded)
        if remembers:
            self.remember(second, loss)
        return loss

    def loss_of_anchors(self, positives: Tensor, negatives: Tensor, excluded: Tensor) -> Tensor:
        """The loss of each anchor.

        Shape:
            positives (A,) and negatives (A, M), similarities divided by t; excluded (A, M), where negatives are -inf -> (A,).
        """
        raise NotImplementedError

    def _mean_loss(self, positives: Tensor, others: Tensor, excluded: Tensor) -> Tensor:
        # Anchors without negatives: -inf everywhere would make their gradient NaN.
        alone = excluded.all(1, keepdim=True)
        excluded = excluded & ~alone
        negatives = (others / self.temperature).masked_fill(excluded, -torch.inf)
        losses = self.loss_of_anchors(positives / self.temperature, negatives, excluded)
        return losses.masked_fill(alone.squeeze(1), 0).mean()
