"""DINO: a student matches the sharpened outputs of its own slow average on other views."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from superself.basics.validate import require_bool, require_count, require_fraction, require_positive
from superself.data import Batch
from superself.joint_embedding import Head
from superself.losses import DINOLoss
from superself.multi_crop import MultiCropEmbedding
from superself.networks import MomentumEncoder, Prototypes
from superself.training import Duration, Schedule, check_duration

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

WARMUP = Schedule(0.07, shape="constant", warmup="30 epochs", warmup_start=0.04)


class DINOSupervisor(MultiCropEmbedding):
    """The student predicts, from every view, the teacher's distribution over K outputs for the large views of the image.

    L = -sum_k softmax((g - c) / t')_k log softmax(f / t)_k, averaged over images and pairs of different views: g is the
    teacher's output for a large view, f the student's for any other view, c the centre of the teacher's outputs. The teacher
    is a moving average of the student and gets no gradient; it is what ``get_backbone`` returns. Chance level: ln K.

    Source: Caron et al., DINO, arXiv:2104.14294, and the authors' code.
    Deviations: K is smaller; temperatures warm up step by step; AdamW, clip=3 and the schedule of the weight decay are passed
        to ``supervise``.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two large views and any number of small ones; see Supervisor.
        small_crops: small views of the recipe; None for its 8, 0 for backbones that take images of one size only.
        out_dim: K; the paper has 65536.
        momentum: of the teacher at the first step, from where it rises to 1 by half a cosine; or a Schedule. For runs of a
            few hundred steps use 0.99 or less.
        teacher_temperature: t', a number or a Schedule; by default it rises from 0.04 to 0.07 in 30 epochs.
        student_temperature: t.
        center_momentum: of the centre.
        freeze_last_layer: how long the last layer keeps its random weights: steps, a fraction of the run, or ``epochs(1)``.
        use_bn: batch norm in the projector, for convolutional backbones.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module, which becomes the student's.
        projector: from features (B, D) to embeddings (B, E): a module, a dictionary of arguments of MLP, or None for the
            paper's MLP with E = 256. The last layer follows it.
        loss: called with the outputs of the student, (B, K) of each view, of the teacher, (B, K) of each large view, and t';
            None for DINOLoss.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if an argument is out of range, or ``augment`` makes fewer than two views.
    """

    family = "contrastive"
    paper = ("Caron et al. 2021", "https://arxiv.org/abs/2104.14294")
    good_for = "vision transformers, and features for kNN; exports the slow teacher"
    compares_images = False
    loss_meaning = (
        "cross-entropy of the student with the teacher; only good while teacher_entropy is neither 0 nor ln K"
    )
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it), or gradients are not clipped (try clip=3)",
        "the teacher is too soft (try teacher_temperature=0.04), or its momentum is too low",
        "the last layer moves too early (try freeze_last_layer=epochs(3)), or the projector of a ResNet needs use_bn=True",
    )
    presets = {
        "dino-paper": {"out_dim": 65536, "momentum": 0.996},
        "dino-small": {"use_bn": True, "teacher_temperature": 0.04},
    }

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "dino",
        small_crops: int | None = None,
        out_dim: int = 1024,
        momentum: float | Schedule = 0.996,
        teacher_temperature: float | Schedule = WARMUP,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
        freeze_last_layer: Duration = "1 epochs",
        use_bn: bool = False,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, small_crops, augment=augment, **options)
        require_count("out_dim", out_dim, "is the width of the outputs", minimum=2)
        require_fraction("momentum", momentum, "is the fraction of the teacher that is kept")
        if isinstance(teacher_temperature, Schedule):
            require_positive("teacher_temperature", teacher_temperature.bounds()[0], "is its lowest value")
        else:
            require_positive("teacher_temperature", teacher_temperature, "divides the outputs of the teacher")
        require_positive("student_temperature", student_temperature, "divides the outputs of the student")
        require_fraction("center_momentum", center_momentum, "is the fraction of the centre that is kept")
        check_duration("freeze_last_layer", freeze_last_layer, lowest=0)
        require_bool("use_bn", use_bn, "puts batch norm into the projector")
        self.out_dim, self.momentum, self.teacher_temperature = out_dim, momentum, teacher_temperature
        self.student_temperature, self.center_momentum = student_temperature, center_momentum
        self.freeze_last_layer, self.use_bn = freeze_last_layer, use_bn

    def _build(self) -> None:
        super()._build()  # self.model = the student up to the last layer
        self.last_layer = Prototypes(self.embedding_width, self.out_dim)
        self.teacher, self.teacher_last_layer = MomentumEncoder(self.model), MomentumEncoder(self.last_layer)

    def _forward(self, data: Batch) -> Tensor:
        views = self.views(data)  # each (B, C, h, w)
        large = views[: self.n_views]
        student = self.last_layer(self._embed_views(self.model, views)).chunk(len(views))  # f, each (B, K)
        teacher = self.teacher_last_layer(self.teacher(torch.cat(large))).chunk(len(large))  # g
        temperature = self.scheduled(self.teacher_temperature)
        if not isinstance(self.loss, DINOLoss):
            return self.loss(student, teacher, temperature)
        loss, entropy = self.loss.with_entropy(student, teacher, temperature)
        self.note("teacher_entropy", entropy)
        self.note("kl", loss.detach() - entropy)
        return loss

    def _after_step(self) -> None:
        kept = self._rising_momentum()
        self.teacher.update(self.model, kept)
        self.teacher_last_layer.update(self.last_layer, kept)
        if isinstance(self.loss, DINOLoss):
            self.loss.commit()

    def _frozen(self) -> Iterable[nn.Parameter]:
        return self.last_layer.parameters() if self.is_within(self.freeze_last_layer) else ()

    def embed(self, images: Tensor) -> Tensor:
        """The teacher's embeddings (B, E) of preprocessed images (B, C, h, w)."""
        return self.teacher(images)

    @property
    def exported_backbone(self) -> nn.Module:
        """The teacher's, which is better than the student's during the whole run."""
        return self.teacher.average.backbone

    @property
    def trained_backbone(self) -> nn.Module:
        """The student's."""
        return self.model.backbone

    def get_backbone(self, averaged: bool = False) -> nn.Module:
        """The teacher's backbone, with its ``preprocessing``; the parameters that the student trains are not frozen.

        Args:
            averaged: return a copy with the moving average of its weights instead, of a run with ``average=``.
        Raises:
            ValueError: if the run has no average.
        """
        backbone = super().get_backbone(averaged)
        for exported, trained in zip(backbone.parameters(), self.trained_backbone.parameters(), strict=True):
            exported.requires_grad_(trained.requires_grad)
        return backbone

    def _is_trained(self, name: str) -> bool:
        return not name.startswith("teacher")

    def _default_loss(self) -> DINOLoss:
        return DINOLoss(self.out_dim, self.student_temperature, center_momentum=self.center_momentum)

    def _projector_arguments(self, width: int) -> dict[str, Any]:
        norm = "batch" if self.use_bn else None
        return {"out_features": 256, "hidden": 2048, "layers": 3, "norm": norm, "activation": "gelu"}

    def _make_projector(self, width: int) -> nn.Module:
        projector = super()._make_projector(width)
        for layer in projector if projector is not self.given.projector else ():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        return projector

    @property
    def chance_loss(self) -> float:
        """ln K: teacher or student gives all outputs the same probability."""
        return math.log(self.out_dim)
