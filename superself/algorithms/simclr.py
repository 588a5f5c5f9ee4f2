"""SimCLR: find the other view of the same image among the views of a batch; also with the losses DCL and HCL."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from superself.basics.validate import (
    require_choice,
    require_count,
    require_fraction,
    require_nonnegative,
    require_positive,
)
from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding
from superself.losses import DCL, DCLW, HCL, NTXent
from superself.losses.two_views import compare_views
from superself.networks import FeatureQueue

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

OBJECTIVES = ("nt-xent", "dcl", "dclw", "hcl")


class SimCLRSupervisor(JointEmbedding):
    """Find the other view of the same image among the views of all images of the batch.

    L = -log exp(z_i.z_j / t) / sum_k exp(z_i.z_k / t), averaged over the 2B embeddings of a batch: j is the other view of i,
    k runs over all but i; chance level: ln(2B - 1). DCL leaves the positive out of the sum, HCL gives hard negatives more
    weight; their formulas are in ``superself.losses``. Larger batches have more negatives and usually give better features.

    Source: Chen et al., SimCLR, arXiv:2002.05709, and the authors' code; Yeh et al., DCL, arXiv:2110.06848; Robinson
        et al., HCL, arXiv:2010.04592.
    Deviations: any optimizer instead of LARS; the optional memory bank, which is not part of the paper.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two views; see Supervisor.
        temperature: t; 0.5 for small batches and few pixels, as for CIFAR-10, 0.1 for ImageNet at large batches, and for DCL.
        objective: "nt-xent", "dcl", "dclw" (DCL that weights positives) or "hcl".
        sigma: of the weights in "dclw"; smaller weighs images more differently.
        beta: of "hcl"; how much more hard negatives count.
        tau_plus: of "hcl"; the assumed share of negatives of the anchor's class.
        memory_bank_size: rows of a bank of recent embeddings; with it, all negatives come from the bank and none from the
            batch, for batches too small to hold enough. 0 for none.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E): a module, a dictionary of arguments of MLP, or None for the
            authors' MLP with E = 128.
        loss: called with the embeddings of both views (B, E), and with a bank also with its rows (K, E) and which of them
            show the same image (B, K), or None for batches without index, once per direction; None for the objective's.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if an argument is out of range, or ``augment`` does not make two views.
    """

    projector_defaults = {"out_features": 128, "layers": 2, "norm": "batch", "last_norm": "batch"}
    family = "contrastive"
    paper = ("Chen et al. 2020", "https://arxiv.org/abs/2002.05709")
    good_for = "the plain contrastive baseline; presets `dcl` and `dclw` for small batches, `hcl` where most negatives are easy"
    compares_images = True
    loss_meaning = "cross-entropy of finding the other view of the same image; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the temperature is too low for such small batches (try 0.5)",
        "the views of an image have nothing in common, or colours alone tell the images apart (see augment=)",
    )
    presets = {
        "simclr-cifar10": {"augment": {"name": "simclr", "strength": 0.5, "blur": False}, "temperature": 0.5},
        "simclr-paper": {"augment": {"name": "simclr", "strength": 1.0, "blur": True}, "temperature": 0.1},
        "dcl": {"objective": "dcl", "temperature": 0.1},
        "dclw": {"objective": "dclw", "temperature": 0.1, "sigma": 0.5},
        "hcl": {"objective": "hcl", "temperature": 0.5, "beta": 1.0, "tau_plus": 0.1},
    }

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "simclr",
        temperature: float = 0.5,
        objective: str = "nt-xent",
        sigma: float = 0.5,
        beta: float = 1.0,
        tau_plus: float = 0.1,
        memory_bank_size: int = 0,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        require_positive("temperature", temperature, "divides similarities")
        require_choice("objective", objective, OBJECTIVES)
        require_positive("sigma", sigma, "divides similarities in the weights of positives")
        require_nonnegative("beta", beta, "is how much more hard negatives count")
        require_fraction("tau_plus", tau_plus, "is the share of negatives of the anchor's class", upper_open=True)
        require_count("memory_bank_size", memory_bank_size, "is the number of rows of the memory bank", minimum=0)
        self.temperature, self.objective, self.memory_bank_size = temperature, objective, memory_bank_size
        self.sigma, self.beta, self.tau_plus = sigma, beta, tau_plus
        if objective in ("dcl", "dclw"):
            self.loss_meaning = (
                "similarity of negatives minus that of the two views; lower is better, and it goes below 0"
            )

    def _build(self) -> None:
        super()._build()  # self.model = backbone f and projector g
        size = self.memory_bank_size
        self.queue = FeatureQueue(size, self.embedding_width) if size else None
        # The weights of "dclw" depend on all positives of the batch.
        self.compares_images = not size or self.objective == "dclw"

    def _forward(self, data: Batch) -> Tensor:
        views = torch.cat(self.views(data))  # (2B, C, h, w)
        embeddings = self.model(views)  # (2B, E); batch norm sees both views together, as in the authors' code
        first, second = embeddings.chunk(2)  # (B, E) each
        self._note_similarities(first, second, data.index)
        if self.queue is None:
            return self.loss(first, second)
        bank = self.queue.features, self._same_image(data.index)
        index = None if data.index is None else data.index.repeat_interleave(2)
        self.queue.remember(torch.stack([first, second], 1).flatten(0, 1), index)  # enqueued after the step
        return (self.loss(first, second, *bank) + self.loss(second, first, *bank)) / 2

    def _after_step(self) -> None:
        if self.queue is not None:
            self.queue.commit()

    def _same_image(self, index: Tensor | None) -> Tensor | None:
        """Which rows of the bank show the images of the batch (B, K)."""
        return None if index is None else self.queue.same_image(index)

    @torch.no_grad()
    def _note_similarities(self, first: Tensor, second: Tensor, index: Tensor | None) -> None:
        with torch.autocast(first.device.type, enabled=False):
            first, second = normalize(first.float(), dim=1), normalize(second.float(), dim=1)
            if self.queue is None:
                positives, others, same_image = compare_views(first, second)
            else:
                positives = (first * second).sum(1).repeat(2)
                others, same_image = torch.cat([first, second]) @ self.queue.features.T, self._same_image(index)
                same_image = None if same_image is None else same_image.repeat(2, 1)
                self.note("queue_filled", self.queue.filled)
        negatives = others if same_image is None else others.masked_fill(same_image, -1)
        self.note("top1", (positives > negatives.amax(1)).float())
        self.note("positive_cosine", positives)

    def _default_loss(self) -> nn.Module:
        losses = {
            "nt-xent": lambda: NTXent(self.temperature),
            "dcl": lambda: DCL(self.temperature),
            "dclw": lambda: DCLW(self.temperature, self.sigma),
            "hcl": lambda: HCL(self.temperature, self.beta, self.tau_plus),
        }
        return losses[self.objective]()

    @property
    def chance_loss(self) -> float | None:
        """ln of the number of candidates, with DCL without the positive; None before a run, which sets the batch size."""
        if self.queue is not None:
            negatives = self.memory_bank_size
        else:
            negatives = 0 if self.run is None else 2 * self.run.settings.batch_size - 2
        candidates = negatives + (self.objective in ("nt-xent", "hcl"))
        return math.log(candidates) if candidates > 1 else None
