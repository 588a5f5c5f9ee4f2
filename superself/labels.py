"""LabelSupervisor: trains a head on a frozen backbone (linear probe), or both together (fine-tuning), and predicts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from superself.basics.distributed import mean, world_size
from superself.basics.validate import require_count, require_positive
from superself.data import Batch, Images, Reading
from superself.data.batch import are_classes
from superself.evaluation.class_names import renumbered
from superself.evaluation.classification import Classification
from superself.evaluation.extraction import open_at_size, read_in_order
from superself.evaluation.predictions import Predictions
from superself.exporting import Exported
from superself.exporting.manifest import architecture_of, rebuild
from superself.networks import CombinedNet, build_backbone, feature_width
from superself.networks.modes import evaluation_mode
from superself.supervisor import Supervisor
from superself.training import GroupRule, read_checkpoint

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class LabelSupervisor(Supervisor):
    """Trains on labelled images: a head on a frozen backbone, or head and backbone together; then predicts.

    L = cross-entropy of the class, or ``multilabel_loss`` where an image can have several. A frozen backbone runs without
    gradients and in evaluation mode, and is not in the optimizer, so neither its weights nor its batch statistics change. After
    ``supervise()`` every module is in the mode it was in before, and every parameter has the ``requires_grad`` it had.

    Source: the two protocols of transfer, for example Zhang et al., arXiv:1603.08511 (linear) and fine-tuning.
    Deviations: none.
    Args:
        model: CombinedNet of a backbone and a head with one logit per class; None makes it from ``backbone``.
        dataset: labelled: "imagefolder:PATH", or a torch Dataset of (image, label); opened at the image size that the
            backbone was trained on, unless ``image_size`` is given.
        loss: of (predictions (B, K), labels (B, ...)), for example ``nn.MSELoss()`` for vectors; None for those above.
        backbone: for example ``supervisor.get_backbone()``, or a name; it gets a linear head with a logit for each class.
        freeze: False trains the backbone too (fine-tuning; a tenth of the learning rate is a good start).
        backbone_lr: learning rate of the backbone with ``freeze=False``; None for that of the head, ``lr``.
        classes: their names, or how many there are; None finds them in the data set, or in the run that is loaded.
        multilabel: whether an image can have several classes; None finds out: labels (N, K) of 0, 1 and NaN for unknown.
    Shape:
        data: images (B, C, H, W) and labels (B, ...) -> loss ().
    Raises:
        ValueError: if the data set has no labels, or all parameters of a backbone to fine-tune have requires_grad=False.
    """

    loss_meaning = "cross-entropy of the class; 0 is perfect"

    def __init__(
        self,
        model: CombinedNet | None = None,
        dataset: Any = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        *,
        backbone: str | nn.Module | None = None,
        freeze: bool = True,
        backbone_lr: float | None = None,
        classes: Sequence[str] | int | None = None,
        multilabel: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        _check(model, backbone, freeze, backbone_lr, classes)
        known = getattr(backbone if model is None else model.backbone, "preprocessing", None)
        if known is not None:
            options.setdefault("sobel", known.sobel)
            if not isinstance(dataset, Images):
                options.setdefault("image_size", known.shape[1:])
                if known.reading is not None and not options.keys() & known.reading.options().keys():
                    options.update(known.reading.options())
        super().__init__(model, dataset, loss, collate_fn, **options)
        self.given.model, self.given.backbone = model, backbone
        self.freeze, self.backbone_lr, self.multilabel = freeze, backbone_lr, multilabel
        self.classes = list(classes) if isinstance(classes, Sequence) else classes
        self.trains_backbone = not freeze
        self._architecture: tuple[str, dict[str, Any]] | None = None  # of a backbone that was passed as a module
        if known is not None and isinstance(dataset, Images):
            self.preprocessing = known.for_images(dataset)
        elif known is not None:
            steps = options.get("norm"), options.get("num_channels"), options.get("single_channel", False)
            self.preprocessing = replace(known, reading=Reading.of(*steps), raw=False)

    def _build(self) -> None:
        makes_head = self.given.model is None and self.given.backbone is not None
        self._find_classes(load=makes_head)
        self._choose_loss()
        if makes_head:
            backbone = build_backbone(self.given.backbone, self.network_shape)
            head = nn.Linear(feature_width(backbone, self.network_shape), self._count_classes())
            self.model = CombinedNet(backbone, head)

    def _find_classes(self, load: bool) -> None:
        """Takes classes and kind of labels from the data set; ``load`` decodes it where they are only known then."""
        if not self.has_data:
            return
        self._check_names(self.images.classes)
        if self.classes is not None and self.multilabel is not None:
            return
        images = self.images.load() if load else self.images
        labels = images.targets
        if isinstance(labels, Tensor) and are_classes(labels):
            found, several = int(labels.max()) + 1, False
        elif isinstance(labels, Tensor) and labels.ndim == 2:
            found, several = labels.shape[1], _are_multi_hot(labels)
        else:
            found = several = None
        if several is None:
            return
        self.multilabel = several if self.multilabel is None else self.multilabel
        if self.classes is None:
            self.classes = list(images.classes) if images.classes else found

    def _check_names(self, names: list[str] | None) -> None:
        """``classes=`` must fit the names of the data set, which take the place of a number."""
        if names is None or self.classes is None:
            return
        if isinstance(self.classes, int):
            if self.classes != len(names):
                raise ValueError(
                    f"classes={self.classes}, and the data set has the {len(names)} classes {names[:5]}; leave out classes=, or "
                    "pass the names of all classes."
                )
            self.classes = list(names)
        elif unknown := sorted(set(names) - set(self.classes)):
            raise ValueError(f"the data set has the classes {unknown}, which are not among classes={self.classes[:5]}.")

    def _choose_loss(self) -> None:
        if isinstance(getattr(self, "loss", None), nn.Module):
            del self.loss  # a function cannot take the place of a module
        self.loss = self.given.loss or (multilabel_loss if self.multilabel else nn.CrossEntropyLoss())

    def _count_classes(self) -> int:
        if self.classes is None:
            data = self.images.describe() if self.has_data else "no data set"
            raise ValueError(
                f"the number of classes is unknown ({data}); pass a labelled data set, such as class folders as "
                '"imagefolder:PATH", or classes=.'
            )
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def _group_rules(self) -> list[GroupRule]:
        if self.backbone_lr is None:
            return []
        return [GroupRule("model.backbone", lr_factor=self.backbone_lr / self.run.settings.lr, name="backbone")]

    def _require_model(self) -> None:
        if self.model is None:
            raise TypeError(
                'LabelSupervisor has no network: pass backbone=, such as supervisor.get_backbone() or "resnet18", or a '
                "CombinedNet as model; a network that was passed as a module is passed again before load()."
            )
        super()._require_model()

    def load(self, name: str | Path = "store/base") -> LabelSupervisor:
        """``Supervisor.load``; class names come from the run too, so ``predict`` needs no data set.

        A backbone that was passed as a module is passed again, unless ``build_backbone`` made it: then the run says how.
        """
        missing = self.model is None and self.given.backbone is None
        try:
            return super().load(name)
        except ValueError as error:
            if not missing or self.given.backbone is not None:
                raise
            self.given.backbone = self._backbone_of(name)
            if self.given.backbone is None:
                raise ValueError(
                    f"the run {str(name)!r} was trained with a network that was passed as a module, which its file does not "
                    f"hold; pass one of the same kind: LabelSupervisor(backbone=YOUR_MODULE).load({str(name)!r}), or "
                    "model=CombinedNet(...) if the head was passed, too."
                ) from error
        return super().load(name)

    @staticmethod
    def _backbone_of(name: str | Path) -> nn.Module | None:
        """The network that the run's backbone was, with random weights; None if its file does not describe it."""
        architecture, arguments = read_checkpoint(name).get("backbone") or ("custom", {})
        return None if architecture == "custom" else rebuild(architecture, arguments).train()

    def _state(self) -> dict[str, Any]:
        if not isinstance(self.given.backbone, nn.Module):
            return super()._state()
        if self._architecture is None:  # asked for once: it builds the network to compare
            self._architecture = architecture_of(self.model.backbone)
        return {**super()._state(), "backbone": self._architecture}

    def _forward(self, data: Batch) -> Tensor:
        _, labels = data
        if isinstance(self.classes, list) and isinstance(labels, Tensor) and are_classes(labels):
            labels = renumbered(labels, self.images.classes, self.classes)  # classes= or a loaded run has another order
        (images,) = self.views(data)  # (B, C, H, W)
        if self.freeze:
            with torch.no_grad(), evaluation_mode(self.model.backbone):
                features = self.model.features(images)  # (B, D)
        else:
            features = self.model.features(images)
        predictions = self.model.predictor(features).float()  # (B, K)
        if isinstance(labels, Tensor) and are_classes(labels):
            self.note("accuracy", (predictions.argmax(1) == labels).float())
        return self.loss(predictions, labels)

    @property
    def chance_loss(self) -> float | None:
        """ln K for K classes, where their number is known and each image has one."""
        return math.log(self._count_classes()) if self.classes is not None and not self.multilabel else None

    @functools.wraps(Supervisor.supervise)
    def supervise(self, *args: Any, **kwargs: Any) -> LabelSupervisor:
        self._require_model()
        if self.multilabel is None and self.has_data:
            self._find_classes(load=True)
            self._choose_loss()
        flags = [parameter.requires_grad for parameter in self.model.backbone.parameters()]
        if not self.freeze and flags and not any(flags):
            raise ValueError(
                f"freeze=False trains the backbone, but all of its {len(flags)} parameters have requires_grad=False; call "
                "backbone.requires_grad_(True) first, or pass freeze=True."
            )
        modes = {module: module.training for module in self.modules()}
        try:
            return super().supervise(*args, **kwargs)
        finally:
            for module, training in modes.items():
                module.training = training

    def _is_trained(self, name: str) -> bool:
        """A frozen backbone is left out of the optimizer; its flags stay as they are."""
        return not (self.freeze and name.startswith("model.backbone."))

    @functools.wraps(Supervisor.export)
    def export(self, *args: Any, **kwargs: Any) -> Exported:
        note = (
            "the file holds the backbone only; the head and the classes stay in the run, see LabelSupervisor.predict()"
        )
        return replace(super().export(*args, **kwargs), note=note)

    def predict(self, dataset: Any, batch_size: int = 256) -> Predictions:
        """The classes of images, with probabilities; unreadable images are left out.

        Args:
            dataset: images with or without labels, anything that ``open_images`` takes.
            batch_size: images per forward pass; does not change the result.
        Raises:
            ValueError: if the supervisor was trained to predict other vectors than classes.
        """
        if self.multilabel is None and self.given.loss is not None:
            raise ValueError(
                "predict() gives classes, and this supervisor has a loss of its own and labels that are not classes; call "
                "model(preprocessing(images)) for its output, or pass multilabel=."
            )
        logits, _, images, readable = self.logits(dataset, batch_size)
        logits = logits[readable]
        probabilities = logits.sigmoid() if self.multilabel else logits.softmax(1)
        labels = probabilities > 0.5 if self.multilabel else probabilities.argmax(1)
        places = readable.nonzero().flatten().tolist()
        paths = None if images.paths is None else [str(images.paths[place]) for place in places]
        skipped = {
            images.names[p]: images.broken.get(p, "cannot be read") for p in (~readable).nonzero().flatten().tolist()
        }
        return Predictions(self._class_names(logits.shape[1]), probabilities, labels, paths, skipped)

    def evaluate(self, test: Any, batch_size: int = 256) -> Classification:
        """What the network gets right and wrong on labelled images, in evaluation mode; unreadable images are left out.

        Args:
            test: images with one class each; classes with names are matched by them.
            batch_size: images per forward pass; does not change the result.
        Raises:
            ValueError: if there are no such labels, or classes that are not known from training.
        """
        logits, labels, _, readable = self.logits(test, batch_size)
        if labels is None or not are_classes(labels):
            given = "no labels" if labels is None else f"labels {tuple(labels.shape)} of {labels.dtype}"
            raise ValueError(
                f"test has {given}, and evaluate() needs one class for each image; see accuracy() for multi-hot ones."
            )
        trained = "the head on a frozen backbone" if self.freeze else "head and backbone together"
        steps = f" for {self.step} steps" if self.step else ""
        protocol = f"LabelSupervisor: trained {trained} with labels{steps}, tested on {int(readable.sum())} images."
        return Classification(logits[readable], labels[readable], self._class_names(logits.shape[1]), protocol)

    def accuracy(self, dataset: Any, batch_size: int = 256) -> float:
        """Share of correct predictions on a labelled data set, in evaluation mode; unreadable images are left out.

        For class labels (B,) a prediction is the largest logit; for multi-hot labels (B, K) it is the sign of each logit, and
        labels that are NaN are not counted.

        Raises:
            ValueError: if the labels are neither of the two.
        """
        logits, labels, images, readable = self.logits(dataset, batch_size)
        if labels is None:
            raise ValueError(
                f"the data set has no labels ({images.describe()}), which are needed to measure accuracy; pass one "
                'whose items are (image, label), or class folders as "imagefolder:PATH".'
            )
        hits = _hits(logits[readable], labels[readable])
        return hits.float().mean().item() if len(hits) else math.nan

    @torch.no_grad()
    def logits(self, dataset: Any, batch_size: int = 256) -> tuple[Tensor, Tensor | None, Images, Tensor]:
        """Logits (N, K), labels (N, ...) numbered as in training, the opened images, and which could be read (N,)."""
        self._require_model()
        images = open_at_size(dataset, self.preprocessing.shape[1:], self.preprocessing.reading).load()
        preprocessing = self.preprocessing.for_images(images)
        logits, labels, readable = [], [], []
        with evaluation_mode(self):
            for batch in read_in_order(images, batch_size):
                logits.append(self.model(preprocessing(batch.images.to(self.device))).float().cpu())
                labels.append(None if batch.labels is None else batch.labels.cpu())
                readable.append(batch.readable)
        labels = None if any(part is None for part in labels) else torch.cat(labels)
        if labels is not None and are_classes(labels) and isinstance(self.classes, list):
            labels = renumbered(labels, images.classes, self.classes)
        return torch.cat(logits), labels, images, torch.cat(readable)

    def _class_names(self, count: int) -> list[str]:
        return self.classes if isinstance(self.classes, list) else [str(number) for number in range(count)]


def multilabel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy averaged over the known labels; a batch without any gives 0.

    Shape:
        logits (B, K), labels (B, K) of 0, 1, or NaN for unknown -> scalar ().
    """
    known = ~labels.isnan()
    losses = binary_cross_entropy_with_logits(logits, labels.nan_to_num().to(logits.dtype), reduction="none")
    return (losses * known).sum() / mean(known.sum()).clamp_min(1 / world_size())


def _hits(predictions: Tensor, labels: Tensor) -> Tensor:
    """Which predictions are correct: one per image, or one per known label of multi-hot ones."""
    if labels.ndim == 1 and not labels.is_floating_point():
        return predictions.argmax(dim=1) == labels
    known = ~labels.isnan() if labels.is_floating_point() else torch.ones_like(labels, dtype=torch.bool)
    if labels.shape != predictions.shape or not ((labels == 0) | (labels == 1))[known].all():
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} have no accuracy with {predictions.shape[1]} logits; "
            "it needs classes (B,) as integers, or multi-hot labels (B, K) of 0, 1 and NaN."
        )
    return ((predictions > 0) == (labels == 1))[known]


def _are_multi_hot(labels: Tensor) -> bool | None:
    """Whether labels (N, K) name several classes of an image; False if each has one, None if they are not 0, 1 and NaN."""
    known = labels[~labels.isnan()] if labels.is_floating_point() else labels
    if not ((known == 0) | (known == 1)).all():
        return None
    return not bool((labels.sum(1) == 1).all())


def _check(
    model: CombinedNet | None,
    backbone: str | nn.Module | None,
    freeze: bool,
    backbone_lr: float | None,
    classes: Sequence[str] | int | None,
) -> None:
    """Refuses arguments that contradict each other, before anything is read."""
    if isinstance(model, nn.Module) and not hasattr(model, "backbone"):
        raise TypeError(
            f"model is a {type(model).__name__} without a head; pass it as backbone=, and a linear head is made, or a "
            "CombinedNet(backbone, head)."
        )
    if model is not None and backbone is not None:
        raise ValueError("model and backbone are both given, and model has a backbone; pass only one of them.")
    if backbone_lr is not None:
        require_positive("backbone_lr", backbone_lr, "is the learning rate of the backbone")
        if freeze:
            raise ValueError(f"backbone_lr={backbone_lr} is for a backbone that is trained; pass freeze=False with it.")
    if isinstance(classes, str):
        raise TypeError(f"classes={classes!r} is one name; pass a list of all names, or their number.")
    if classes is not None and not isinstance(classes, Sequence):
        require_count("classes", classes, "is the number of classes", minimum=2)
