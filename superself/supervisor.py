"""Supervisor: what every algorithm inherits - declaring, building, the one training loop, its hooks, and loading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from superself.augment import Transform, recipe
from superself.basics.declaration import BuildAfterInit, reject_unknown
from superself.basics.random import seed_everything
from superself.data import Batch, BatchLoader, EpochSampler, Images, ImageSpec, Preprocessing, open_images
from superself.evaluation.monitor import MonitorTracker
from superself.networks import CombinedNet, compilable_networks, describe
from superself.state import load_run, supervisor_state
from superself.training import (
    GroupRule,
    Progress,
    Record,
    Run,
    Settings,
    Tracker,
    make_lr_scheduler,
    make_optimizer,
    parameter_groups,
)
from superself.training.hyper_parameters import declared, default_of


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


class Supervisor(nn.Module, metaclass=BuildAfterInit):
    """Base of every algorithm: gives it data, a loop, checkpoints and honest progress; the algorithm writes ``_forward``.

    An instance is declared (``__init__`` keeps hyper-parameters), built (``_build`` makes the networks once the shape of the
    images is known) and run (``supervise``).

    Args:
        model: a CombinedNet of backbone and head; algorithms build theirs in ``_build``.
        dataset: folder, list of paths, array, tensor, torch Dataset, or None for the folder "dataset"; needs no labels.
        loss: replaces the algorithm's loss; called by its ``_forward``.
        collate_fn: joins a list of items (image, index, target, mask) into a batch; None stacks whole batches, which is
            faster.
        augment: what makes the views: the name of a recipe, a dictionary with a name and its arguments, a transform or any
            function of a batch; True for the algorithm's default, False or None for none.
        seed: makes initial weights, order, views and dropout repeatable; None draws one from torch's random state.
        image_size: size that images are stored at, in pixels, one number or (height, width); None keeps their own.
        view_size: size of the views cut from them, for example 224 out of image_size=320; None takes the stored size.
        normalize: (mean, std) per channel in units of [0, 1]; None measures them on the data.
        on_bad_image: "skip" (another image stands in, counted and listed) or "raise".
        read: a function from a path to an array, for other file formats.
        planes: which planes of a TIFF stack to read; see ``open_images``.
        memory_limit: bytes; a data set that fits is decoded once into memory.
    Raises:
        ValueError: if the data cannot be used, with what was found.
        TypeError: if an argument is unknown, with the nearest one.
    """

    family: ClassVar[str] = ""  # "patch", "predictive", "generative", "contrastive" or "clustering"
    loss_meaning: ClassVar[str] = "lower is better"  # one clause: what the loss measures, which direction is good
    likely_causes: ClassVar[tuple[str, ...]] = (  # printed with a verdict that something is wrong, most likely first
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the batch is too small for the networks' batch norm",
        "the images are nearly all alike",
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # name -> arguments, for create(name)
    n_views: ClassVar[int] = 1  # how many views of an image ``views`` makes
    needs_index: ClassVar[bool] = False  # whether ``_forward`` needs the positions of the images in the data set
    fixed_image_size: ClassVar[bool] = False  # whether the networks only take images of the size they were built for
    dataset_state: ClassVar[tuple[str, ...]] = ()  # parts of the state that are reset when the data set changes
    trains_backbone: bool = True  # False where the backbone is frozen on purpose
    run: Run | None = None  # of the last call of supervise()

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
        **unknown: Any,
    ) -> None:
        reject_unknown(unknown, *(cls.__init__ for cls in type(self).__mro__ if issubclass(cls, Supervisor)))
        super().__init__()
        if seed is not None:
            torch.manual_seed(seed)
        self.seed = seed if seed is not None else int(torch.randint(2**31 - 1, ()))
        self.generator = torch.Generator().manual_seed(self.seed)  # views are drawn from it
        self.given = SimpleNamespace(loss=loss)  # networks and losses as passed; not submodules until _build uses them
        self.loss, self.collate_fn = loss, collate_fn
        self.augment, self.view_size, self.normalize = augment, view_size, normalize
        self._dataset = dataset
        self._open_options = {
            "image_size": image_size,
            "on_bad_image": on_bad_image,
            "read": read,
            "planes": planes,
            "memory_limit": memory_limit,
        }
        self._images: Images | None = None
        self.network_shape: tuple[int, int, int] | None = None  # (C, H, W) that the networks are built for
        self._built_for: tuple[Any, ...] | None = None
        self._preprocessing: Preprocessing | None = None
        self.register_buffer(
            "_anchor", torch.empty(0), persistent=False
        )  # where .to() has been, before there are weights
        self.augmentation: Transform | None = None
        self.model = model

    # ---- what a user calls -------------------------------------------------------------------------------------------

    def supervise(
        self,
        lr: float = 1e-3,
        optimizer: Callable[..., Optimizer] | str = torch.optim.Adam,
        epochs: int = 10,
        batch_size: int = 32,
        shuffle: bool = True,
        num_workers: int = 0,
        name: str | Path = "store/base",
        pretrained: bool | str | Path = False,
        lr_scheduler: Callable[..., Any] | str | None = None,
        *,
        resume: bool | str = False,
        overwrite: bool = False,
        weight_decay: float | None = None,
        seed: int | None = None,
        probe: tuple[Any, Any] | None = None,
        probe_every: int = 1,
        precision: str = "auto",
        compile: bool = False,
        progress: bool = True,
        trackers: Sequence[Tracker] = (),
        **unknown: Any,
    ) -> Supervisor:
        """Trains, and stores the run in NAME.pt after every epoch, at the end, and on Ctrl-C or SIGTERM.

        Args:
            lr: learning rate.
            optimizer: a class or function called as ``optimizer(groups, lr=lr)``, or "adam", "adamw", "sgd", "lars".
            epochs: passes over the data in total, including those before a resumption.
            batch_size: images per step.
            shuffle: a new order every epoch.
            num_workers: processes that decode files; 0 uses none for data in memory and one per core otherwise.
            name: where the run is kept: NAME.pt, NAME.yaml, NAME.csv. A run that is there already is kept as NAME.1.
            pretrained: start from the weights in NAME.pt, or from those of the run given here.
            lr_scheduler: a name ("constant", "warmup_cosine"), a Schedule, or ``f(optimizer)``, which also gets ``total_steps``
                if it has a parameter of that name; steps once per optimizer step.
            resume: True continues the run in NAME.pt where it was stored; "auto" does so if there is one.
            overwrite: replace a run of this name.
            weight_decay: for weights, not for biases and norms; None leaves it to the optimizer.
            seed: of order, views and dropout; None takes the constructor's, which covers the initial weights too.
            probe: (labelled_train, labelled_test): prints the kNN accuracy of the backbone; changes no weight.
            probe_every: epochs from one probe to the next.
            precision: "bf16-mixed", "32-true", or "auto": bfloat16 where the hardware computes in it.
            compile: compile the networks (torch.compile); worth its minute in long runs.
            progress: False prints nothing.
            trackers: further observers of the run; see ``superself.training.Tracker``.
        Raises:
            TypeError, ValueError: before the first step, if an argument or the data cannot be used.
            FloatingPointError: if the loss is no longer finite; on the CPU before that step, on an accelerator within
                a second. The file of the last good epoch stays.
            KeyboardInterrupt, SystemExit: after a signal, once the step is complete and the run is stored.
        """
        reject_unknown(unknown, type(self).supervise)
        settings = Settings(
            lr, optimizer, epochs, batch_size, shuffle, num_workers, name, pretrained, lr_scheduler, resume, overwrite,
            weight_decay, seed, probe, probe_every, precision, compile, progress, tuple(trackers),
        )  # fmt: skip
        settings.check_data(len(self.images))
        stored = load_run(self, name) if settings.continues else None
        self._require_model()
        self.run = Run(self, settings)
        self.seed = stored["seed"] if stored else self.seed if seed is None else seed
        seed_everything(self.seed, self.generator)
        if stored is None:
            self._load_pretrained(name, pretrained)
        train_loader, optimizer, lr_scheduler = self._init_data_optimizer(
            settings.optimizer, batch_size, shuffle, num_workers, self.collate_fn, lr, lr_scheduler
        )
        self.run.open(train_loader, optimizer, lr_scheduler, stored)
        with self.run:
            self._epochs(epochs, train_loader, optimizer, lr_scheduler)
        return self

    def get_backbone(self) -> nn.Module:
        """The trained backbone: the module that was trained, with its ``preprocessing`` as a plain attribute."""
        self._require_model()
        backbone = self.exported_backbone
        backbone.preprocessing = self.preprocessing
        return backbone

    def load(self, name: str | Path = "store/base") -> Supervisor:
        """Takes the weights and hyper-parameters of a stored run; needs no data set.

        Hyper-parameters that were not passed to this supervisor come from the file, so ``RotateNetSupervisor().load(name)``
        builds the networks of that run; a backbone or head that was passed as a module must be passed again. Networks are
        only built again if they have to change, so hooks and modules attached to this supervisor stay.

        Raises:
            FileNotFoundError: if there is no such run.
            ValueError: if the file does not fit; lists the keys.
        """
        load_run(self, name)
        return self

    # ---- the five hooks of users -------------------------------------------------------------------------------------

    def _load_pretrained(self, name: str | Path, pretrained: bool | str | Path) -> None:
        """Starts from the weights of a stored run when ``pretrained`` is set. Override to start from elsewhere."""
        if pretrained:
            self.load(name if pretrained is True else pretrained)

    def _init_data_optimizer(
        self,
        optimizer: Callable[..., Optimizer],
        batch_size: int,
        shuffle: bool,
        num_workers: int,
        collate_fn: Callable[..., Any] | None,
        lr: float,
        lr_scheduler: Callable[..., Any] | str | None,
    ) -> tuple[Any, Optimizer, Any]:
        """Makes the loader, the optimizer over all trainable parameters, and the schedule over optimizer steps."""
        settings = self.run.settings
        self.to(self.device)  # heads too, if only the backbone was moved
        self.images.load().copy_to(self.device)
        if settings.compile:
            for network in compilable_networks(self):
                network.compile()
        sampler = self._sampler(batch_size, shuffle)
        loader = BatchLoader(self.images, sampler, num_workers, collate_fn, pin_memory=self.device.type == "cuda")
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad and self._is_trained(name)]
        groups = parameter_groups(named, lr=lr, weight_decay=settings.weight_decay, rules=self._group_rules())
        optimizer = make_optimizer(optimizer, groups, lr, self.device)
        total_steps = settings.epochs * len(loader)
        return loader, optimizer, make_lr_scheduler(lr_scheduler, optimizer, total_steps, len(loader))

    def _epochs(self, epochs: int, train_loader: Any, optimizer: Optimizer, lr_scheduler: Any) -> None:
        """The only epoch loop of the package."""
        run = self.run
        self.train()
        while run.epoch < epochs:
            if not run.resumed_within_epoch:
                self._before_epoch(run.epoch)
            for data in run.batches(train_loader):
                with run.autocast():
                    loss = run.module(data)
                run.check_loss(loss)
                self._update(loss, optimizer, lr_scheduler)
                self._after_step()
                run.end_step(loss)
            run.end_epoch()

    def _forward(self, data: Batch) -> Tensor:
        """The algorithm's equations: a batch -> a scalar loss. No backward pass, no step, no change of state."""
        raise TypeError(f"{type(self).__name__} defines no _forward(data) -> loss; write one, as algorithms/ do.")

    def _update(self, loss: Tensor, optimizer: Optimizer, lr_scheduler: Any) -> None:
        """The optimizer step and nothing else; may be replaced entirely, for example to clip gradients."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        lr_scheduler.step()

    # ---- what algorithms override besides _forward -------------------------------------------------------------------

    def _build(self) -> None:
        """Makes everything with weights or state for images of ``self.network_shape``; may run again when a run is loaded."""

    def _build_views(self) -> None:
        """Makes what depends on the size of the current images and has no weights: the augmentation, grids, tiles."""
        default = default_of(type(self), "augment") or "plain"
        self.augmentation = recipe(self.augment, self.view_shape[1:], views=self.n_views, default=default)

    def _before_epoch(self, epoch: int) -> None:
        """Before each epoch: may look at all images, change buffers, reset a head, or change ``self.run.sampler``."""

    def _after_step(self) -> None:
        """After each optimizer step: moving averages, queues and banks."""

    def _sampler(self, batch_size: int, shuffle: bool) -> EpochSampler:
        """Which images an epoch takes, and in which order."""
        return EpochSampler(len(self.images), batch_size, shuffle, self.seed)

    def _group_rules(self) -> list[GroupRule]:
        """Parameters with a learning rate or options of their own."""
        return []

    def _is_trained(self, name: str) -> bool:
        """Whether the optimizer gets the parameter of this name; frozen ones are left out in any case."""
        return True

    def embed(self, images: Tensor) -> Tensor | None:
        """Embeddings (B, E) of preprocessed images, which are watched for collapse; None for methods without."""
        return None

    @property
    def chance_loss(self) -> float | None:
        """The loss at chance level, or None where there is no such number."""
        return None

    @property
    def exported_backbone(self) -> nn.Module:
        """The network that ``get_backbone``, monitor, probe and comparison use."""
        return self.model.backbone

    # ---- what algorithms call ----------------------------------------------------------------------------------------

    def views(self, data: Batch) -> list[Tensor]:
        """The views of a batch, each (B, C, h, w): augmented, or as a collate function made them, and preprocessed."""
        return [self.preprocessing(view) for view in self.raw_views(data)]

    def raw_views(self, data: Batch) -> list[Tensor]:
        """The views before preprocessing, with values as stored or in [0, 1]."""
        made = data.views if data.views is not None else self.augmentation(data.images, self.generator)
        made = [made] if isinstance(made, Tensor) else list(made)
        if len(made) != self.n_views:
            raise ValueError(
                f"{type(self).__name__} needs {self.n_views} view(s) of each image and got {len(made)}; return as many from "
                "the collate function or the augmentation."
            )
        return made

    def note(self, name: str, value: Tensor | float) -> None:
        """Adds a value of this step to the progress line, NAME.csv and every tracker, as its mean over the epoch."""
        if self.run is not None:
            self.run.metrics.add(name, value)

    def forward(self, data: Batch) -> Tensor:
        """``_forward``, so that wrappers which call the module wrap the whole algorithm."""
        return self._forward(data)

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
        size = self.view_size
        channels, *sides = self.images.shape
        if size is None:
            return (channels, *sides)
        return (channels, size, size) if isinstance(size, int) else (channels, *size)

    @property
    def preprocessing(self) -> Preprocessing:
        """From stored images to what the backbone takes; measured on the data at first use, then kept with the run."""
        if self._preprocessing is None:
            self._preprocessing = replace(Preprocessing.of(self.images, self.normalize), shape=self.view_shape)
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing) -> None:
        self._preprocessing = value

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters(), self._anchor).device

    @property
    def step(self) -> int:
        """Optimizer steps that the current run has done."""
        return 0 if self.run is None else self.run.step

    @property
    def epoch(self) -> int:
        """Epochs that the current run has finished."""
        return 0 if self.run is None else self.run.epoch

    @property
    def uses_its_own_loss(self) -> bool:
        """Whether no ``loss=`` replaced the algorithm's, so that its chance level is known."""
        return self.given.loss is None

    # ---- building, loading and storing -------------------------------------------------------------------------------

    def _build_networks(self) -> None:
        """Builds for the images at hand; without images, loading a run builds for its images."""
        if self.has_data:
            self._build_for(self.view_shape)
            self._build_views()
        self._built = self._top_names()

    def _top_names(self) -> set[str]:
        """Names of all modules, buffers and parameters that are attached to this supervisor itself."""
        return {*self._modules, *self._buffers, *self._parameters}

    def _build_for(self, shape: tuple[int, int, int]) -> None:
        self.network_shape = shape  # later images may have another size
        self._build()
        self._built_for = (shape, len(self.images))

    def _require_model(self) -> None:
        if self.model is None or not hasattr(self.model, "backbone"):
            raise TypeError(
                f"{type(self).__name__} has no self.model; pass a data set so that it can be built, load a run, or set "
                "self.model = CombinedNet(backbone, head) in _build()."
            )

    def _state(self) -> dict[str, Any]:
        """What NAME.pt holds of the supervisor, apart from its run."""
        return supervisor_state(self)

    def _facts(self) -> dict[str, Any]:
        """What NAME.yaml and the first lines say about the run."""
        chance = self.run.chance_loss  # measured once
        return {
            "algorithm": type(self).__name__,
            "arguments": declared(self),
            "seed": self.seed,
            "data": self.images.describe(),
            "backbone": f"{describe(self.exported_backbone)}; on {self.device} in {self.run.precision}",
            "loss": self.loss_meaning + ("" if chance is None else f"; chance level: {chance:.3f}"),
            "device": str(self.device),
        }

    def _trackers(self) -> list[Tracker]:
        """The observers that every run has."""
        settings = self.run.settings
        return [*([Progress()] if settings.progress else []), Record(settings.name), MonitorTracker(self)]

    def _as_batch(self, values: Any) -> Batch:
        """What a loader yields as a Batch."""
        data = Batch.from_loader(values)
        if data.index is None and self.needs_index:
            raise ValueError(
                f"{type(self).__name__} needs the position of each image in the data set, and the loader does not give it; "
                'yield Batch(images, index=...) or a dictionary with "image" and "index".'
            )
        return data

    def __repr__(self) -> str:
        """One line: a notebook that shows the result of supervise() does not print the whole network."""
        state = f"{self.epoch} epochs trained" if self.run is not None else "not trained here"
        backbone = "not built" if self.model is None else describe(self.exported_backbone)
        return f"{type(self).__name__}(seed={self.seed}; {backbone}; {state})"
