"""Buildable: what a supervisor is before it trains - data, hyper-parameters, networks, views, and loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from superself.augment import Transform, recipe
from superself.basics.declaration import BuildAfterInit, reject_unknown
from superself.basics.random import LARGEST_SEED
from superself.basics.validate import require_callable, require_count, require_nonnegative, shortened
from superself.data import Batch, Images, ImageSpec, Preprocessing, Reading, open_images
from superself.data.open import check_size
from superself.data.preprocessing import SOBEL_CHANNELS, check_normalize
from superself.evaluation.evaluating import Evaluation, evaluate
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.of_supervisor import subject_of, undisturbed
from superself.exporting import Exported, export_backbone
from superself.losses import MemoryBankLoss
from superself.networks import CombinedNet, describe
from superself.networks.backbones import require_trainable
from superself.state import load_run, supervisor_state
from superself.training import averaged_copy
from superself.training.hyper_parameters import default_of

NETWORKS = ("backbone", "predictor", "projector", "decoder", "discriminator", "context", "jigsaw_head")

Self = TypeVar("Self", bound="Buildable")


class Options(TypedDict, total=False):
    """The options that every algorithm takes; see ``Supervisor``."""

    seed: int | None
    image_size: int | tuple[int, int] | None
    view_size: int | tuple[int, int] | None
    normalize: tuple[Any, Any] | None
    on_bad_image: str
    read: Callable[[Path], Any] | None
    planes: Any
    memory_limit: int
    norm: float | None
    num_channels: int | None
    single_channel: bool
    sobel: bool


class Buildable(nn.Module, metaclass=BuildAfterInit):
    """Declares and builds: ``__init__`` keeps what it was given, ``_build`` makes the networks once a shape is known.

    See Supervisor for the arguments.
    """

    n_views: ClassVar[int] = 1  # how many views of an image ``views`` makes
    more_views: ClassVar[bool] = False  # whether further views may follow these
    fixed_image_size: ClassVar[bool] = False  # whether the networks only take images of the size they were built for
    averaged_weights: dict[str, Tensor] | None = None  # of the backbone, if the last run kept an average
    named_projectors: ClassVar[tuple[str, ...]] = ()  # what may be passed as projector= besides a module
    smallest_image: ClassVar[int] = 1  # pixels: the shortest side of images that the method can work with
    dataset_state: ClassVar[tuple[str, ...]] = ()  # parts of the state that are reset when the data set changes

    def __init__(
        self,
        model: CombinedNet | None = None,
        dataset: Any = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        *,
        augment: Any = None,
        seed: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        view_size: int | tuple[int, int] | None = None,
        normalize: tuple[Any, Any] | None = None,
        on_bad_image: str = "skip",
        read: Callable[[Path], Any] | None = None,
        planes: Any = None,
        memory_limit: int = 2 * 2**30,
        norm: float | None = None,
        num_channels: int | None = None,
        single_channel: bool = False,
        sobel: bool = False,
        **unknown: Any,
    ) -> None:
        reject_unknown(unknown, *(cls.__init__ for cls in type(self).__mro__ if issubclass(cls, Buildable)))
        super().__init__()
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model={shortened(model)} is not a network; the data set is passed as dataset=.")
        if isinstance(dataset, nn.Module):
            raise TypeError(
                f"dataset is a {type(dataset).__name__}, which is a network; pass images, and it as backbone=."
            )
        self._adopted: set[str] = set()  # hyper-parameters that were taken from a file
        if seed is not None:
            require_count("seed", seed, "makes a run repeatable", minimum=0, maximum=LARGEST_SEED)
            torch.manual_seed(seed)
        if view_size is not None:
            view_size = check_size("view_size", view_size)
        if normalize is not None:
            check_normalize(normalize)
        for name, function, *given in (
            ("loss", loss),
            ("collate_fn", collate_fn, "a list of items"),
            ("read", read, "a path"),
        ):
            if function is not None:
                require_callable(name, function, *given)
        if isinstance(loss, MemoryBankLoss) and loss.memory_bank_size:
            raise ValueError(
                f"loss is a {type(loss).__name__} with a memory bank of its own, which is for your own loop and would not be "
                "resumed exactly; leave out memory_bank_size, or use one of the methods with a bank or queue, for example "
                "SimCLRSupervisor(memory_bank_size=4096)."
            )
        require_nonnegative("memory_limit", memory_limit, "is a number of bytes")
        Reading(norm, num_channels, single_channel)  # refuses wrong values before anything is read
        if not isinstance(sobel, bool):
            raise TypeError(f"sobel={sobel!r} is neither True nor False; pass one of them.")
        self.seed_was_given = seed is not None
        self.seed = seed if seed is not None else int(torch.randint(2**31 - 1, ()))
        self.generator = torch.Generator().manual_seed(self.seed)  # views are drawn from it
        self.given = SimpleNamespace(loss=loss)  # networks and losses as passed; not submodules until _build uses them
        self.loss, self.collate_fn = loss, collate_fn
        self.augment, self.view_size, self.normalize, self.sobel = augment, view_size, normalize, sobel
        self._dataset = dataset
        self._open_options = {
            "image_size": image_size,
            "on_bad_image": on_bad_image,
            "read": read,
            "planes": planes,
            "memory_limit": memory_limit,
            "norm": norm,
            "num_channels": num_channels,
            "single_channel": single_channel,
        }
        self._images: Images | None = None
        self.network_shape: tuple[int, int, int] | None = None  # (C, H, W) that the networks are built for
        self._built_for: tuple[Any, ...] | None = None
        self._pristine = True  # whether the networks are as ``_build`` made them: neither trained nor loaded
        self._preprocessing: Preprocessing | None = None
        self.register_buffer(
            "_anchor", torch.empty(0), persistent=False
        )  # where .to() has been, before there are weights
        self.augmentation: Transform | None = None
        self.model = model

    def get_backbone(self, averaged: bool = False) -> nn.Module:
        """The trained backbone: the module that was trained, with its ``preprocessing`` as a plain attribute.

        ``backbone(backbone.preprocessing(images))`` takes raw images (B, C, h, w), as they are in the files.

        Args:
            averaged: return a copy with the moving average of its weights instead, of a run with ``average=``.
        Raises:
            ValueError: if the run has no average.
        """
        self._require_model()
        backbone = self.exported_backbone
        if averaged:
            if self.averaged_weights is None:
                raise ValueError(
                    "get_backbone(averaged=True) needs a run that averages its weights, and this one does not; pass for example "
                    "average=0.999 to supervise(), or leave out averaged=True."
                )
            backbone = averaged_copy(backbone, self.averaged_weights)
        backbone.preprocessing = self.preprocessing.for_raw_images()
        return backbone

    def export(self, path: str | Path, format: str | None = None, averaged: bool = False, **options: Any) -> Exported:
        """Writes the backbone to a file for other programs; ``superself.load_backbone(path)`` reads it.

        Args:
            path: ending in .pth (weights under torchvision's or timm's names), .safetensors, .ts (TorchScript) or .onnx.
            format: instead of by the ending: "state_dict", "torchvision", "timm", "safetensors", "torchscript", "onnx".
            averaged: the moving average of the weights, of a run with ``average=``.
            **options: further arguments of ``export_backbone``, which see.
        Returns:
            What was written; ``print`` it for the code that loads it, also without superself.
        Raises:
            ValueError: if the format cannot hold this backbone; says why.
        """
        return export_backbone(self.get_backbone(averaged), path, format, **options)

    def load(self: Self, name: str | Path = "store/base") -> Self:
        """Takes the weights and hyper-parameters of a stored run; needs no data set.

        Hyper-parameters that were not passed to this supervisor come from the file, so ``RotateNetSupervisor().load(name)``
        builds the networks of that run; a backbone or head that was passed as a module must be passed again. Networks are
        only built again if they have to change, so hooks and modules attached to this supervisor stay.

        Raises:
            FileNotFoundError: if there is no such run.
            TypeError: if ``name`` is not a name.
            ValueError: if the file does not fit; lists the keys.
        """
        load_run(self, name)
        return self

    def evaluate(
        self,
        train: Any = None,
        test: Any = None,
        evaluators: Sequence[Evaluator] | None = None,
        *,
        seed: int = 0,
        figures: str | Path | None = None,
    ) -> Evaluation:
        """Measures the backbone next to the same network with random weights; print the result.

        With labelled images accuracies, without any what the features of this supervisor's own images look like. Changes
        nothing. See ``superself.evaluation.evaluate`` for the arguments.
        """
        self._require_model()
        with undisturbed(self, seed):
            return evaluate(subject_of(self, seed), train, test, evaluators, seed=seed, figures=figures)

    # ---- what algorithms override --------------------------------------------------------------------------------------

    def _build(self) -> None:
        """Makes everything with weights or state for images of ``self.network_shape``; may run again when a run is loaded."""

    def _build_views(self) -> None:
        """Makes what depends on the size of the current images and has no weights: the augmentation, grids, tiles."""
        default = default_of(type(self), "augment") or "plain"
        self.augmentation = self._make_augmentation(default)
        channels = self.images.shape[0]
        if self.augmentation.out_channels(channels) != channels:
            raise ValueError(
                f"augment turns {channels} channels into {self.augmentation.out_channels(channels)}, which the exported backbone "
                "would not see; make the transform the first layer of the backbone instead."
            )

    def _make_augmentation(self, default: Any) -> Transform:
        """What makes the views of the current images; ``default`` is what ``augment=True`` stands for."""
        return recipe(self.augment, self.view_shape[1:], views=self.n_views, default=default)

    @property
    def exported_backbone(self) -> nn.Module:
        """The network that ``get_backbone``, monitor, probe and comparison use."""
        return self.model.backbone

    @property
    def trained_backbone(self) -> nn.Module:
        """The network that gets the gradient; another one where an average of it is exported."""
        return self.exported_backbone

    # ---- what algorithms call ------------------------------------------------------------------------------------------

    def views(self, data: Batch) -> list[Tensor]:
        """The views of a batch, each (B, C, h, w): augmented, or as a collate function made them, and preprocessed."""
        return [self.preprocessing(view) for view in self.raw_views(data)]

    def views_and_masks(self, data: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """The views, and the masks of the batch (B, ...) moved along with each of them, nearest neighbour."""
        if data.mask is None or data.views is not None:
            raise ValueError(
                "the batch has no masks that could be moved with its views; pass a data set whose items are dictionaries with "
                '"image" and "mask", and no collate function that makes views.'
            )
        views, masks = self.augmentation(data.images, self.generator, masks=data.mask)
        return [self.preprocessing(view) for view in views], masks

    def raw_views(self, data: Batch) -> list[Tensor]:
        """The views before preprocessing, with values as stored or in [0, 1]."""
        made = data.views if data.views is not None else self.augmentation(data.images, self.generator)
        made = [made] if isinstance(made, Tensor) else list(made)
        if any(len(view) != len(data) for view in made):
            raise ValueError(
                f"the augmentation or the collate function made views of {[len(view) for view in made]} images from a batch of "
                f"{len(data)}; return one of each view per image."
            )
        if len(made) < self.n_views or (len(made) > self.n_views and not self.more_views):
            at_least = "at least " if self.more_views else ""
            raise ValueError(
                f"{type(self).__name__} needs {at_least}{self.n_views} view(s) of each image and got {len(made)}; return as "
                "many from the collate function or the augmentation."
            )
        return made

    @property
    def images(self) -> Images:
        """The data set, opened at first use."""
        if self._images is None:
            self._images = open_images(self._dataset, **self._open_options)
        return self._images

    @images.setter
    def images(self, images: Images) -> None:
        self._images = images

    @property
    def has_data(self) -> bool:
        """Whether there are images, rather than only their shape."""
        return not isinstance(self.images, ImageSpec)

    @property
    def view_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the views of the current images."""
        return self.images.shape if self.view_size is None else (self.images.shape[0], *self.view_size)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of what the networks get for the current images."""
        return (SOBEL_CHANNELS, *self.view_shape[1:]) if self.sobel else self.view_shape

    @property
    def preprocessing(self) -> Preprocessing:
        """From stored images to what the backbone takes; measured on the data at first use, then kept with the run."""
        if self._preprocessing is None:
            self._preprocessing = replace(
                Preprocessing.of(self.images, self.normalize, self.sobel), shape=self.view_shape
            )
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing) -> None:
        self._preprocessing = value

    @property
    def reading_options(self) -> dict[str, Any]:
        """How the data set is opened, as far as it differs from the defaults."""
        defaults = signature(Buildable.__init__).parameters
        return {name: value for name, value in self._open_options.items() if value != defaults[name].default}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters(), self._anchor).device

    @property
    def uses_its_own_loss(self) -> bool:
        """Whether no ``loss=`` replaced the algorithm's, so that its chance level is known."""
        return self.given.loss is None

    # ---- when it is built ----------------------------------------------------------------------------------------------

    def _build_networks(self) -> None:
        """Builds for the images at hand; without images, loading a run builds for its images."""
        if self.has_data:
            self._build_for(self.input_shape)
            self._build_views()
        self._built = self._top_names()

    def _top_names(self) -> set[str]:
        """Names of all modules, buffers and parameters that are attached to this supervisor itself."""
        return {*self._modules, *self._buffers, *self._parameters}

    def _build_for(self, shape: tuple[int, int, int]) -> None:
        self._require_buildable(shape)
        self.network_shape = shape  # later images may have another size
        self._build()
        self._built_for = (shape, len(self.images))
        self._pristine = True

    def _require_buildable(self, shape: tuple[int, int, int]) -> None:
        """Refuses images that are too small, and networks that cannot be trained."""
        if min(shape[1:]) < self.smallest_image:
            raise ValueError(
                f"{type(self).__name__} needs images of at least {self.smallest_image} x {self.smallest_image} pixels, got "
                f"{shape[1]} x {shape[2]}; pass a larger image_size or view_size."
            )
        for name in NETWORKS:
            given = getattr(self.given, name, None)
            pair = isinstance(given, (tuple, list)) and name == "backbone"  # a network for each half of the channels
            for network in given if pair else [given]:
                has_a_name = isinstance(network, str) and (name == "backbone" or network in self.named_projectors)
                if network is not None and not has_a_name and not isinstance(network, Mapping):
                    require_trainable(name, network)
        if self.model is not None:
            require_trainable("model", self.model)

    def _require_model(self) -> None:
        if self.model is None or not hasattr(self.model, "backbone"):
            raise TypeError(
                f"{type(self).__name__} has no self.model; pass a data set so that it can be built, load a run, or set "
                "self.model = CombinedNet(backbone, head) in _build()."
            )

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds of the supervisor, apart from its run."""
        return supervisor_state(self)

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and ``copy.deepcopy`` take: everything but the run, which holds files, hooks and a schedule's functions."""
        return {name: value for name, value in vars(self).items() if name != "run"}

    def __repr__(self) -> str:
        """One line: a notebook that shows the result of supervise() does not print the whole network."""
        backbone = "not built" if self.model is None else describe(self.exported_backbone)
        return f"{type(self).__name__}(seed={self.seed}; {backbone})"
