"""CMC: match each image's lightness to its colours, and the other way round."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from superself.basics.distributed import gather
from superself.basics.validate import require_choice, require_count, require_fraction, require_positive
from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding
from superself.losses import InfoNCE
from superself.networks import HalvesNet, MemoryBank, PerHalf, build_halves, feature_width, without_normalization
from superself.networks.modes import evaluation_mode

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class ContrastiveMultiviewCodingSupervisor(JointEmbedding):
    """Two encoders, one for the lightness L and one for the colours ab: each image's two embeddings find each other among many.

    L = -log exp(l_i . m_i / t) / sum_j exp(l_i . m_j / t), averaged over images, plus the same with ab as the anchor and the
    bank of L: l_i is the embedding of the lightness of image i, m_i its row in the memory bank of ab, and j runs over i and K
    other images; chance level: 2 ln(K + 1). L and ab come from the same augmented RGB view; rows move after the step.

    Source: Tian et al., Contrastive Multiview Coding, arXiv:1906.05849, "Contrastive learning with two views"; numbers, views and
        positives out of the banks as in the authors' code.
    Deviations: a softmax over the positive and K negatives (InfoNCE) instead of noise-contrastive estimation; one draw of
        negatives per batch; two encoders of full width; any optimizer.
    Args:
        dataset: see Supervisor, also for the options that are not listed here; ``normalize`` is not accepted.
        augment: makes one view; see Supervisor.
        temperature: t; the authors have 0.07 for ImageNet and 0.1 for STL-10.
        momentum: fraction of a bank's row that is kept when its image is seen.
        negatives: K, rows drawn for each step; the whole bank if it has no more.
        features: "both", or "L" for a backbone that returns the features of the lightness alone; both halves are trained.
            None takes "both", or the setting of the LabHalves that were passed.
        contrast: "bank", or "batch" to compare the current embeddings of the batch, which learns from the first step and
            more in short runs.
        backbone: None for two EfficientFeatures, a name for two of these, a pair (for L, for ab), or LabHalves.
        projector: from the outputs of the halves to two embeddings (B, E): PerHalf, a dictionary of arguments of MLP for both,
            or None for the authors' linear layers with E = 128.
        loss: called with embedding (B, E), positive (B, E), rows (K, E) and which of these are the image's own (B, K); None
            for InfoNCE.
    Shape:
        batch of images (B, 3, H, W) -> loss ().
    Raises:
        ValueError: if the images are not RGB, ``normalize`` is given, a number is out of range or a word unknown.
        TypeError: if ``backbone`` is a single module.
    """

    presets = {"cmc-stl10": {"temperature": 0.1}}
    family = "contrastive"
    paper = ("Tian et al. 2020", "https://arxiv.org/abs/1906.05849")
    good_for = (
        "RGB images whose colours depend on what is shown; needs neither strong views nor large batches; two networks"
    )
    loss_meaning = "cross-entropy of the matching channel view among all candidates, both directions; 0 is perfect"
    likely_causes = (
        "too few epochs: an image's rows change once per epoch and start at random (try 20, or contrast='batch')",
        "the images have hardly any colour, or all the same colours",
        "the learning rate is too high for this optimizer (try a tenth of it)",
    )
    n_views = 1
    needs_index = True

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "resized-crop-flip",
        temperature: float = 0.07,
        momentum: float = 0.5,
        negatives: int = 16384,
        features: str | None = None,
        contrast: str = "bank",
        backbone: Any = None,
        projector: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            dataset, backbone, projector, loss, collate_fn, augment=augment, **without_normalization(options)
        )
        require_positive("temperature", temperature, "divides similarities")
        require_fraction("momentum", momentum, "is the fraction of a row that is kept", upper_open=True)
        require_count("negatives", negatives, "is the number of rows drawn for each step")
        require_choice("contrast", contrast, ("bank", "batch"))
        if features is not None:
            require_choice("features", features, ("both", "L"))
        self.temperature, self.momentum, self.negatives, self.contrast = temperature, momentum, negatives, contrast
        self.given.features = features

    def _build(self) -> None:
        self.loss = self.given.loss or self._default_loss()
        backbone = build_halves(self.given.backbone, self.network_shape, self.given.features)
        halves = zip((1, 2), (backbone.lightness, backbone.colour), strict=True)
        widths = [feature_width(half, (channels, *self.network_shape[1:])) for channels, half in halves]
        projector = self.given.projector
        if not isinstance(projector, nn.Module):
            projector = PerHalf(*(self._make_head(projector, width, self.projector_defaults) for width in widths))
        self.model = HalvesNet(backbone, projector)
        with torch.no_grad(), evaluation_mode(self.model):
            embedding, _ = self.model(torch.zeros(2, *self.network_shape, device=self.device))
        self.embedding_width = embedding.shape[1]  # E, of each half
        self.l_bank, self.ab_bank = (
            MemoryBank(len(self.images), self.embedding_width, self.momentum) for _ in range(2)
        )

    def _forward(self, data: Batch) -> Tensor:
        (view,) = self.views(data)  # (B, 3, h, w) in RGB
        lightness, colour = (z.float() for z in self.model(view))  # (B, E) each
        to_colour = self._find(lightness, colour, self.ab_bank, data.index)
        to_lightness = self._find(colour, lightness, self.l_bank, data.index)
        self.l_bank.remember(lightness, data.index)  # both are written after the step
        self.ab_bank.remember(colour, data.index)
        self.note("loss_L_to_ab", to_colour)
        self.note("loss_ab_to_L", to_lightness)
        return to_colour + to_lightness

    def _after_step(self) -> None:
        self.l_bank.commit()
        self.ab_bank.commit()

    def _find(self, anchor: Tensor, other: Tensor, bank: MemoryBank, index: Tensor) -> Tensor:
        """The loss of finding the other half of each image, whose embeddings are in ``bank``."""
        if self.contrast == "batch":
            others, places = gather(normalize(other, dim=1)), gather(index)  # (B, E), (B,) of all processes
            return self.loss(anchor, other, others, index[:, None] == places)
        return self.loss(anchor, bank.rows(index), *bank.negatives(index, self.negatives, self.generator))

    def _default_loss(self) -> InfoNCE:
        return InfoNCE(self.temperature)

    def embed(self, images: Tensor) -> Tensor:
        """The embeddings of both halves, concatenated (B, 2 E)."""
        return torch.cat(self.model(images), 1)

    @property
    def compares_images(self) -> bool:
        """Whether candidates come from the batch."""
        return self.contrast == "batch"

    @property
    def chance_loss(self) -> float | None:
        """2 ln of the number of candidates: rows of a bank, or images of the batch; None if there is only one."""
        candidates = self.ab_bank.candidates(self.negatives)
        if self.contrast == "batch":
            candidates = 1 if self.run is None else self.run.settings.batch_size
        return 2 * math.log(candidates) if candidates > 1 else None
