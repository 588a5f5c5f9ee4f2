"""Instance discrimination: every image is a class of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from superself.basics.validate import require_count, require_fraction, require_nonnegative, require_positive
from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding
from superself.losses import InfoNCE
from superself.networks import MemoryBank

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class InstanceDiscriminationSupervisor(JointEmbedding):
    """One view of each image: which row of the memory bank is it?

    L = -log exp(v . m_i / t) / sum_j exp(v . m_j / t) + lambda ||v - m_i||^2, averaged over images: v is the embedding of a view
    of image i, m_j the row of image j, all of unit length; chance level: ln N for N images. After the step, row i becomes
    the normalised mean of its old value and v. An image's row changes once per epoch, so short runs learn more from many
    epochs over few images.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, arXiv:1805.01978, Sec. 3.1
        (Eq. 2, the softmax over the whole bank) and Sec. 3.3 (proximal term).
    Deviations: rows start as embeddings by the untrained network, not at random; with ``negatives``, a softmax over the
        image's own row and those drawn instead of noise-contrastive estimation (Sec. 3.2), one draw for the whole batch.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes one view; see Supervisor.
        temperature: t, 0.07 in the paper; the authors' code has 0.1 for CIFAR-10.
        momentum: fraction of a row that is kept when its image is seen; 0.5 in the authors' code.
        negatives: rows drawn for each step, 4096 in the paper for ImageNet; None compares with the whole bank.
        proximal: lambda, weight of the squared distance to the image's row; 0, as in the authors' code, leaves it out.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E): a module, a dictionary of arguments of MLP, or None for the
            paper's linear layer with E = 128.
        loss: called with embedding (B, E), the image's row (B, E), rows (K, E) and which of these are the image's own (B, K);
            None for the softmax.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if a number is out of range, or ``augment`` does not make one view.
    """

    presets = {"npid-cifar10": {"temperature": 0.1}, "npid-imagenet": {"negatives": 4096}}
    family = "contrastive"
    paper = ("Wu et al. 2018", "https://arxiv.org/abs/1805.01978")
    good_for = "long runs over images that differ from each other: a row of its bank changes once per epoch"
    compares_images = False
    loss_meaning = "cross-entropy of the image among all images; 0 is perfect"
    likely_causes = (
        "too few epochs: an image's row changes once per epoch (train longer, or on fewer images)",
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the images are nearly all alike, or the data set has many duplicates",
    )
    n_views = 1
    needs_index = True

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "moco-v1",
        temperature: float = 0.07,
        momentum: float = 0.5,
        negatives: int | None = None,
        proximal: float = 0.0,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        require_positive("temperature", temperature, "divides similarities")
        require_fraction("momentum", momentum, "is the fraction of a row that is kept", upper_open=True)
        if negatives is not None:
            require_count("negatives", negatives, "is the number of rows drawn for each step")
        require_nonnegative("proximal", proximal, "is the weight of the distance to the image's row")
        self.temperature, self.momentum, self.negatives, self.proximal = temperature, momentum, negatives, proximal

    def _build(self) -> None:
        super()._build()  # self.model
        self.bank = MemoryBank(len(self.images), self.embedding_width, self.momentum)

    def _before_epoch(self, epoch: int) -> None:
        if not self.bank.filled:
            self.bank.fill(self._embed_data_set())

    def _forward(self, data: Batch) -> Tensor:
        (view,) = self.views(data)  # (B, C, h, w)
        embedding = self.model(view).float()  # (B, E)
        row = self.bank.rows(data.index)  # (B, E), as it was after the image's last view
        rows, own = self.bank.negatives(data.index, self.negatives, self.generator)  # (K, E), (B, K)
        loss = self.loss(embedding, row, rows, own)  # Eq. 2
        unit = normalize(embedding, dim=1)
        if self.proximal:
            loss = loss + self.proximal * (unit - row).square().sum(1).mean()  # Sec. 3.3
        self.note("cosine_to_own_row", (unit.detach() * row).sum(1))
        self.bank.remember(embedding, data.index)  # written after the step
        return loss

    def _after_step(self) -> None:
        self.bank.commit()

    def _default_loss(self) -> InfoNCE:
        return InfoNCE(self.temperature)

    @property
    def chance_loss(self) -> float:
        """ln of the number of candidates, plus 2 lambda, the proximal term of orthogonal directions."""
        return math.log(self.bank.candidates(self.negatives)) + 2 * self.proximal
