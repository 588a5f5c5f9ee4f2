"""Supervisor: the one training loop, its five hooks, and what every algorithm inherits."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from superself.basics.random import preserve_random_state, seed_everything
from superself.data import BatchLoader, EpochSampler, ImageSpec, Preprocessing, open_images
from superself.evaluation.monitor import FeatureMonitor
from superself.networks import CombinedNet, compilable_networks, describe
from superself.training import (
    Run,
    can_fuse,
    check_known,
    check_settings,
    dataset_state_keys,
    parameter_groups,
    read_checkpoint,
    require_fit,
    start_schedule,
    stored_arguments,
    versions,
    write_checkpoint,
)


class Supervisor(nn.Module):
    """Base of every algorithm: gives it data, a loop, checkpoints and honest progress; the algorithm writes ``_forward``.

    A subclass calls ``super().__init__(None, dataset, loss, **options)`` first, which opens the data and seeds, then builds
    ``self.model`` and everything else with weights or state for images of ``self.images.shape``.

    Args:
        model: a CombinedNet of backbone and predictor; a subclass may set ``self.model`` later in its ``__init__``.
        dataset: folder, list of paths, array, tensor, torch Dataset, or None for the folder "dataset"; no labels needed.
        loss: called by the algorithm's ``_forward``.
        collate_fn: joins single (image, index) items into a batch; None stacks whole batches, which is faster.
        seed: makes initial weights, order, views and dropout repeatable; None draws one (from torch's random state).
        image_size: how large images are stored, in pixels, one number or (height, width); None keeps the images' own.
        on_bad_image: "skip" (another image stands in, counted and listed) or "raise".
        read: a function from a path to an array, for file formats of one's own.
        memory_limit: bytes; a data set that fits is decoded once into memory.
        normalize: (mean, std) per channel in units of [0, 1]; None measures them on the data.
    Raises:
        ValueError: if the data cannot be used; says what was found.
        TypeError: if an argument is unknown; names the nearest.
    """

    loss_meaning = "lower is better"  # one clause: what the loss measures, which way is good
    likely_causes = (  # named when features collapse or the loss stays at chance, the most likely first
        "the learning rate is too high for this optimiser (try a tenth of it)",
        "the batch is too small for the networks' batch norm",
        "the images are nearly all alike",
    )
    fixed_image_size = False  # whether the networks take images of the size alone that they were built for
    with_labels = False  # what comes with the images of a batch: their labels, or their places in the data set

    def __new__(cls, *args: Any, **kwargs: Any) -> Supervisor:
        self = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        given = dict(signature.bind_partial(self, *args, **kwargs).arguments)
        given.pop(next(iter(signature.parameters)))  # self
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                given.update(given.pop(name, {}))
            elif parameter.kind is parameter.VAR_POSITIONAL:  # without names they cannot be given again
                given.pop(name, None)
        self.__dict__["arguments"] = given  # as the user wrote them: stored with the run
        return self

    def __init__(
        self,
        model: CombinedNet | None = None,
        dataset: Any = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        *,
        seed: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        on_bad_image: str = "skip",
        read: Callable[[Path], Any] | None = None,
        memory_limit: int = 2 * 2**30,
        normalize: tuple[Any, Any] | None = None,
        **unknown: Any,
    ) -> None:
        check_known(unknown, *(cls.__init__ for cls in type(self).__mro__ if issubclass(cls, Supervisor)))
        super().__init__()
        if seed is not None:
            torch.manual_seed(seed)
        self.seed = seed if seed is not None else int(torch.randint(2**31 - 1, ()))
        self.images = open_images(
            dataset, image_size=image_size, on_bad_image=on_bad_image, read=read, memory_limit=memory_limit
        )
        self.built_for = self.images.shape  # (C, H, W); those of a run that goes on may be larger
        self.model, self.loss, self.collate_fn = model, loss, collate_fn
        self.generator = torch.Generator()  # of the run: views are drawn from it
        self.generator.manual_seed(self.seed)
        self._normalize, self._preprocessing = normalize, None
        self.step = self.epoch = self.total_steps = self.total_epochs = 0

    # ---- what a user calls -------------------------------------------------------------------------------------------

    def supervise(
        self,
        lr: float = 1e-3,
        optimizer: Callable[..., Optimizer] = torch.optim.Adam,
        epochs: int = 10,
        batch_size: int = 32,
        shuffle: bool = True,
        num_workers: int = 0,
        name: str | Path = "store/base",
        pretrained: bool | str = False,
        lr_scheduler: Callable[..., Any] | None = None,
        *,
        resume: bool = False,
        weight_decay: float | None = None,
        seed: int | None = None,
        probe: tuple[Any, Any] | None = None,
        probe_every: int = 1,
        precision: str = "auto",
        compile: bool = False,
        progress: bool = True,
        **unknown: Any,
    ) -> Supervisor:
        """Trains, and stores the run in NAME.pt after every epoch, at the end, and on Ctrl-C or SIGTERM.

        Args:
            lr: learning rate.
            optimizer: called as ``optimizer(parameters, lr=lr)``.
            epochs: passes over the data in all, those before a resumption included.
            batch_size: images a step.
            shuffle: a new order every epoch.
            num_workers: processes that decode files; 0 uses none for data in memory and one a core otherwise.
            name: where the run is kept: NAME.pt, NAME.yaml, NAME.csv.
            pretrained: start from the weights in NAME.pt, or from those of the run named here.
            lr_scheduler: ``f(optimizer)`` or ``f(optimizer, total_steps)``; steps once per optimiser step.
            resume: continue the run in NAME.pt where it was stored.
            weight_decay: given to the optimiser for weights, not for biases and norms; None leaves it to the optimiser.
            seed: of order, views and dropout; None takes the constructor's, which covers the initial weights too.
            probe: (labelled_train, labelled_test): prints the kNN accuracy of the backbone; changes no weight.
            probe_every: epochs from one probe to the next.
            precision: "bf16-mixed", "32-true", or "auto": bfloat16 where the hardware computes in it.
            compile: compile the networks (torch.compile); worth its minute in long runs.
            progress: False prints nothing.
        Raises:
            ValueError: before the first step, if an argument or the data cannot be used.
            FloatingPointError: if the loss stops being finite; on the CPU before that step, on an accelerator within
                a second of it. The file of the last good epoch stays.
            KeyboardInterrupt, SystemExit: after a signal, once the step is whole and the run is stored.
        """
        check_known(unknown, type(self).supervise)
        settings = {k: v for k, v in locals().items() if k not in ("self", "unknown", "__class__")}
        check_settings(settings, len(self.images))
        self.settings, self.total_epochs = settings, epochs
        self.step = self.epoch = 0
        stored = self._load_run(name) if resume else None
        seed = stored["seed"] if stored else seed
        self.seed = self.seed if seed is None else seed
        seed_everything(self.seed, self.generator)
        if not resume:
            self._load_pretrained(name, pretrained)
        train_loader, optimizer, lr_scheduler = self._init_data_optimizer(
            optimizer, batch_size, shuffle, num_workers, self.collate_fn, lr, lr_scheduler
        )
        self._open_run(train_loader, optimizer, lr_scheduler, stored)
        state = "stopped by an error"
        try:
            with self.run.signals:
                self._epochs(epochs, train_loader, optimizer, lr_scheduler)
                if self.run.stored_step != self.step:  # a full disk at the last epoch, or a loop of one's own
                    self._store()
            state = "finished"
        except (KeyboardInterrupt, SystemExit):
            state = "interrupted"
            raise
        finally:
            self.run.record.skip(self.images.skipped)
            self.run.record.end(state)
        return self

    def get_backbone(self) -> nn.Module:
        """The trained backbone: the very module object, its ``preprocessing`` beside it as a plain attribute."""
        self.model.backbone.preprocessing = self.preprocessing
        return self.model.backbone

    def load(self, name: str | Path = "store/base") -> Supervisor:
        """Takes the weights and the arguments of a stored run; needs no data set.

        Arguments that this supervisor was not given come from the file, so ``RotateNetSupervisor().load(name)`` builds the
        networks of that run; a backbone or predictor of one's own must be passed as it was then.

        Raises:
            FileNotFoundError: if there is no such run.
            ValueError: if the file does not fit; lists the keys.
        """
        self._load_run(name)
        return self

    # ---- the five hooks ----------------------------------------------------------------------------------------------

    def _load_pretrained(self, name: str | Path, pretrained: bool | str) -> None:
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
        lr_scheduler: Callable[..., Any] | None,
    ) -> tuple[BatchLoader, Optimizer, Any]:
        """Makes the loader, the optimiser over all trainable parameters, and the schedule over optimiser steps."""
        self.to(self.device)  # heads too, where the backbone was brought there before
        self.images.load().copy_to(self.device)
        if self.settings["compile"]:
            for network in compilable_networks(self):
                network.compile()
        target = "label" if self.with_labels else "index"
        pin = self.device.type == "cuda"
        sampler = self._sampler(batch_size, shuffle)
        loader = BatchLoader(self.images, sampler, num_workers, collate_fn, pin_memory=pin, target=target)
        parameters = [p for p in self.parameters() if p.requires_grad]
        weight_decay = self.settings["weight_decay"]
        groups = parameters if weight_decay is None else parameter_groups(parameters, weight_decay)
        fused = {"fused": True} if can_fuse(optimizer, self.device) else {}
        optimizer = optimizer(groups, lr=lr, **fused)
        self.total_steps = self.total_epochs * len(loader)
        return loader, optimizer, start_schedule(lr_scheduler, optimizer, self.total_steps)

    def _sampler(self, batch_size: int, shuffle: bool) -> EpochSampler:
        """Which images an epoch takes, and in which order. Override to train on a part of them."""
        return EpochSampler(len(self.images), batch_size, shuffle, self.seed)

    def _epochs(self, epochs: int, train_loader: BatchLoader, optimizer: Optimizer, lr_scheduler: Any) -> None:
        """The only epoch loop: forward, check, update; then measure, store and print."""
        self.train()
        while self.epoch < epochs:
            train_loader.sampler.set_epoch(self.epoch, start=self.step - self.epoch * len(train_loader))
            for data in self.run.progress.batches(train_loader, self.epoch):
                with self.run.autocast():
                    loss = self(self._to_device(data))
                self._check_finite(loss)
                self._update(loss, optimizer, lr_scheduler)
                self.step += 1
                if self.run.progress.after_step(loss, self.run.lr):
                    self._check_finite(self.run.progress.loss_sum)
                if self.run.signals.received:
                    self._leave()
            self._check_finite(self.run.progress.loss_sum)
            self.epoch += 1
            self._end_epoch()

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        """The algorithm's equations: images (B, C, H, W) as stored, and their places in the data set (B,) -> loss ()."""
        raise TypeError(f"{type(self).__name__} defines no _forward(data) -> loss; write one, as algorithms/ do.")

    def _update(self, loss: Tensor, optimizer: Optimizer, lr_scheduler: Any) -> None:
        """One optimiser step. Averages, queues and banks are moved in an override, after ``super()._update(...)``."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        lr_scheduler.step()

    # ---- what algorithms read ----------------------------------------------------------------------------------------

    def forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        """``_forward``, so that wrappers which call the module wrap the whole algorithm."""
        return self._forward(data)

    @property
    def chance_loss(self) -> float | None:
        """The loss that knowing nothing gives, or None where there is no such number."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def preprocessing(self) -> Preprocessing:
        """From stored images to what the backbone takes; measured on the data at first use, then kept with the run."""
        if self._preprocessing is None:
            self._preprocessing = Preprocessing.of(self.images, self._normalize)
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing) -> None:
        self._preprocessing = value

    # ---- how a run is kept -------------------------------------------------------------------------------------------

    def _load_run(self, name: str | Path) -> dict[str, Any]:
        """Takes weights, arguments and preprocessing of the stored run ``name``, and returns the whole of it."""
        stored = read_checkpoint(name)
        shape, count = tuple(stored["data"]["shape"]), stored["data"]["count"]
        given = len(self.images) > 0 and not isinstance(self.images, ImageSpec)
        if given and self.images.shape[0] != shape[0]:
            raise ValueError(
                f"The run {str(name)!r} was trained on {shape[0]} channels and this data set has {self.images.shape[0]}; "
                f"pass images with {shape[0]} channels."
            )
        if given and self.fixed_image_size and self.images.shape != shape:
            raise ValueError(
                f"The run {str(name)!r} predicts images of {shape[1]} x {shape[2]} and those of this data set have "
                f"{self.images.shape[1]} x {self.images.shape[2]}; pass image_size={shape[1:]}."
            )
        if stored["algorithm"] in [cls.__name__ for cls in type(self).__mro__]:
            arguments = {**stored["arguments"], **self.arguments}
            images = self.images if given else ImageSpec(shape, count)
            if (arguments, shape, len(images)) != (self.arguments, self.built_for, len(self.images)):
                self._rebuild(arguments, ImageSpec(shape, len(images)))
        own, model = self.state_dict(), stored["model"]
        if given and len(self.images) != count:  # what is known of each image is of no use for others
            model = {**model, **{key: own[key] for key in dataset_state_keys(self)}}
        require_fit(own, model, f"{name}, a run of {stored['algorithm']},")
        self.load_state_dict(model)
        preprocessing = Preprocessing.from_dict(stored["preprocessing"])
        self.preprocessing = replace(preprocessing, shape=self.images.shape) if given else preprocessing
        return stored

    def _rebuild(self, arguments: dict[str, Any], images: ImageSpec) -> None:
        """Makes the networks anew from ``arguments`` for images like ``images``; the data set stays."""
        own, device = self.images, self.device
        of_data = inspect.signature(open_images).parameters
        options = {k: v for k, v in arguments.items() if k not in of_data and k not in ("dataset", "seed")}
        with preserve_random_state():
            self.__init__(dataset=images, **options)
        self.images = own if len(own) else images
        self.arguments = arguments
        self.to(device)

    def _open_run(self, loader: BatchLoader, optimizer: Optimizer, lr_scheduler: Any, stored: dict | None) -> None:
        """Puts a run that is resumed back to where it was, opens its record, and says what is about to happen."""
        settings = {**self.settings, "images": len(self.images)}
        chance_loss = None if self.arguments.get("loss") else self.chance_loss  # may be measured on the data: once
        self.run = Run(settings, optimizer, lr_scheduler, len(loader), chance_loss, self, self.device)
        probe = self.settings["probe"], self.settings["probe_every"]
        self.watch = FeatureMonitor(self.images.sample(256), *probe, self.run.autocast)
        if stored:
            self.run.load_state_dict(stored, self.generator)
            self.step, self.epoch = stored["step"], stored["epoch"]
        chance = "" if chance_loss is None else f"; knowing nothing gives {chance_loss:.3f}"
        facts = {
            "algorithm": type(self).__name__,
            "arguments": self.arguments,
            "seed": self.seed,
            "data": self.images.describe(),
            "backbone": describe(self.model.backbone),
            "loss": self.loss_meaning + chance,
            "device": str(self.device),
        }
        self.run.open(facts, self.images.skipped, self.step, self.epoch)

    def _store(self) -> None:
        """Writes NAME.pt."""
        state = {
            "algorithm": type(self).__name__,
            "arguments": stored_arguments(self.arguments),
            "seed": self.seed,
            "model": self.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "preprocessing": self.preprocessing.to_dict(),
            "data": {"shape": self.built_for, "count": len(self.images)},
            "versions": versions(),
        }
        write_checkpoint(self.run.name, {**state, **self.run.state_dict(self.generator)})
        self.run.stored_step = self.step

    def _leave(self) -> None:
        """Stores the run between two steps and ends it as the signal asks."""
        self._check_finite(self.run.progress.loss_sum)
        self._store()
        self.run.say(f"stopped after step {self.step}; stored as {self.run.name}.pt, resume=True continues it.")
        self.run.signals.leave()

    def _end_epoch(self) -> None:
        """Measures the features, stores the run, notes and prints the epoch, and says what looks wrong."""
        row = self.run.progress.summary(self.run.lr)
        row.update(self.watch.measure(self.model, self.preprocessing, self.epoch))
        self.run.progress.end_epoch(row)
        try:
            self._store()
        except OSError as error:  # a full disk: the last file is whole, and the next epoch tries again
            warnings.warn(
                f"epoch {self.epoch} could not be stored ({error}); free some space, training goes on.", stacklevel=2
            )
        self.run.record.add_epoch(row)
        for sentence in self.watch.verdicts(row, self.step / max(self.total_steps, 1), self.likely_causes):
            self.run.warn(sentence)

    def _to_device(self, data: Any) -> Any:
        """Tensors of a batch on the device of the parameters."""
        device = self.device
        return tuple(d.to(device, non_blocking=True) if isinstance(d, Tensor) else d for d in data)

    def _check_finite(self, loss: Tensor) -> None:
        """Stops the run when the loss is not finite; read at once on the CPU, on an accelerator when the line is drawn."""
        if (loss.device.type == "cpu" or loss is self.run.progress.loss_sum) and not torch.isfinite(loss).item():
            raise FloatingPointError(
                f"The loss is {loss.item()} in epoch {self.epoch + 1}, step {self.step + 1}: {self.run.name}.pt keeps the last "
                f"good epoch. Likely causes: {'; '.join(self.likely_causes)}; try a lower lr and resume=False."
            )
