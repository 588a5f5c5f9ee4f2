"""Supervisor: what every algorithm inherits - declaring, building, the one training loop, its hooks, and loading."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from superself.basics.declaration import reject_unknown
from superself.basics.distributed import rank, world_size
from superself.basics.output import prepare_standard_streams
from superself.basics.random import seed_everything
from superself.buildable import Buildable
from superself.data import Batch, BatchLoader, EpochSampler
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.monitor import MonitorTracker
from superself.evaluation.tracking import EvaluationTracker
from superself.networks import compilable_networks, replicated
from superself.networks.batch_norm import synchronized_batch_norm
from superself.reporting import ReportTracker
from superself.state import load_run, run_facts
from superself.training import (
    Duration,
    GroupRule,
    Parallel,
    Progress,
    Record,
    Run,
    RunLock,
    Schedule,
    Settings,
    Tracker,
    check_made,
    compile_networks,
    count_steps,
    make_lr_scheduler,
    make_optimizer,
    parameter_groups,
    require_writable,
    schedule_decay,
    scheduled,
    start_processes,
)
from superself.training.metrics import check_metric_name


class Supervisor(Buildable):
    """Base of every algorithm: provides data, loop, checkpoints and progress reporting; the algorithm writes ``_forward``.

    An instance is declared (``__init__`` keeps hyper-parameters), built (``_build`` makes the networks once the shape of the
    images is known) and run (``supervise``).

    Args:
        model: a CombinedNet of backbone and head; algorithms build theirs in ``_build``.
        dataset: folder, list of paths, array, tensor, torch Dataset, or None for the folder "dataset"; needs no labels.
        loss: replaces the algorithm's loss; called by its ``_forward``.
        collate_fn: joins a list of items (image, index, target, mask) into a batch; None stacks whole batches, which is
            faster.
        augment: what makes the views: the name of a recipe, a dictionary with a name and its arguments, a dictionary of
            patchwork's parameters ("patchwork" for its defaults), a transform or any function of a batch; True for the
            algorithm's default, False or None for none.
        seed: seeds initial weights, order, views and dropout; None draws one from torch's random state.
        image_size: size that images are stored at, in pixels, one number or (height, width); None keeps their own.
        view_size: size of the views cut from them, for example 224 out of image_size=320; None takes the stored size.
        normalize: (mean, std) per channel in units of [0, 1]; None measures them on the data.
        on_bad_image: "skip" (replaces it with another image and lists it) or "raise".
        read: a function from a path to an array, for other file formats.
        planes: which planes of a TIFF stack to read; see ``open_images``.
        memory_limit: bytes; a data set that fits is decoded once into memory.
        norm: value that pixels are divided by to reach [0, 1]; see ``open_images``, also for the next two, which are kept with
            the backbone.
        num_channels: how many channels of each image are kept.
        single_channel: the images have one channel, which is repeated.
        sobel: the networks see the Sobel derivatives of the channels' mean along x and y, and a channel of zeros.
    Raises:
        ValueError: if the data cannot be used, with what was found.
        TypeError: if an argument is unknown, with the nearest one.
    """

    family: ClassVar[str] = ""  # "patch", "predictive", "generative", "contrastive" or "clustering"
    paper: ClassVar[tuple[str, str]] = ("", "")  # authors and year, and the address
    good_for: ClassVar[str] = ""  # which images or purposes it suits, in a few words
    loss_meaning: ClassVar[str] = "lower is better"  # one clause: what the loss measures, which direction is good
    likely_causes: ClassVar[tuple[str, ...]] = (  # printed with a verdict that something is wrong, most likely first
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the batch is too small for the networks' batch norm",
        "the images are nearly all alike",
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # name -> arguments, for create(name)
    needs_index: ClassVar[bool] = False  # whether ``_forward`` needs the positions of the images in the data set
    knows_its_images: ClassVar[bool] = False  # whether the loss says nothing about other images than those trained on
    compares_images: bool | None = None  # whether an image's loss depends on the others of its batch; None if unknown
    skips_parameters: ClassVar[bool] = False  # whether some trained parameters get no gradient in some steps
    trains_backbone: bool = True  # False where the backbone is frozen on purpose
    run: Run | None = None  # of the last call of supervise()

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
        weight_decay: float | Schedule | None = None,
        seed: int | None = None,
        probe: tuple[Any, Any] | None = None,
        probe_every: int = 1,
        precision: str = "auto",
        devices: int | str | Sequence[int] = "auto",
        strategy: str = "auto",
        num_nodes: int = 1,
        sync_batchnorm: bool = False,
        accumulate: int = 1,
        micro_batch: int | None = None,
        clip: float | None = None,
        average: float | None = None,
        on_nan: str = "stop",
        save_every: str | float | None = "5min",
        compile: bool = False,
        progress: bool = True,
        trackers: Sequence[Tracker | str] = (),
        evaluators: Sequence[Evaluator] = (),
        testdata: Any = None,
        notes: str | None = None,
        keep_best: str | None = None,
        **unknown: Any,
    ) -> Supervisor:
        """Trains, and stores the run in NAME.pt after every epoch, within epochs, at the end, and on Ctrl-C or SIGTERM.

        Args:
            lr: learning rate.
            optimizer: a class or function called as ``optimizer(groups, lr=lr)``, or "adam", "adamw", "sgd", "lars".
            epochs: passes over the data in total, including those before a resumption.
            batch_size: images per step.
            shuffle: a new order every epoch.
            num_workers: processes that decode files; 0 uses none for data in memory and one per core otherwise.
            name: where the run is kept: NAME.pt, NAME.yaml, NAME.csv. An existing run of that name is kept as NAME.1.
            pretrained: True starts from the weights in NAME.pt; a name starts from the weights of that run.
            lr_scheduler: None for "constant", "warmup_cosine", "cosine", a Schedule, or ``f(optimizer)``, which also gets
                ``total_steps`` if it has a parameter of that name; steps once per optimizer step.
            resume: True continues the run in NAME.pt where it was stored; "auto" does so if there is one. Whatever determines
                the weights must be as it was: data, hyper-parameters, networks, functions (see ``training.identity`` for how
                they are compared) and the settings in ``DETERMINE_THE_RUN``. These may change: epochs, num_workers, name,
                overwrite, probe, probe_every, devices, strategy, num_nodes, on_nan, save_every, compile, progress, trackers,
                evaluators, testdata, notes, keep_best, memory_limit, on_bad_image and the place of the data. A seed that is
                None is taken from the file. Not compared are the code of classes and labels next to the images.
            overwrite: replace a run of this name.
            weight_decay: for weights, not for biases and norms; a number, or a Schedule whose value is set before each step;
                None leaves it to the optimizer.
            seed: for the order of images, views and dropout; None uses the constructor's seed, which also sets the initial
                weights.
            probe: (labelled_train, labelled_test): short for ``evaluators=[KNN(*probe, every=probe_every)]``.
            probe_every: epochs from one probe to the next.
            precision: "bf16-mixed", "16-mixed", "32-true", or "auto": bfloat16 where the hardware computes in it. "16-mixed"
                scales the loss, so ``_update`` must not add anything to it; it is very slow on CPUs.
            devices: how many accelerators or processes, or which ones; "auto" stays on the supervisor's device, and under
                torchrun or SLURM takes one per process.
            strategy: "ddp" for several processes, "dp" for several accelerators in this one; "auto" is "ddp" wherever there
                are several processes.
            num_nodes: machines.
            sync_batchnorm: batch norm sees the batches of all processes.
            accumulate: parts of each batch that are computed one after the other, to save memory. ``batch_size`` stays the
                number of images per optimizer step. Exact for losses that are means over images, except that random
                numbers are drawn for each part; refused where a loss compares the images of a batch.
            micro_batch: images that go through the networks at once, to save memory; the loss still compares all images of
                the batch with each other. Costs one more forward pass. Batch norm sees these images only, as with ``accumulate``.
            clip: maximum norm of the gradient of all parameters together; None disables clipping.
            average: decay of a moving average of the backbone's weights, for example 0.999; ``get_backbone(averaged=True)``
                returns it.
            on_nan: when a loss or a gradient is not finite: "stop"; "skip" the step; or "rollback" to the last state of this
                epoch, with other random numbers. "skip" and "rollback" synchronise with the accelerator at every step.
            save_every: how often to save within an epoch: "30s", "5min", "1h", seconds, or None.
            compile: compile the networks (torch.compile); takes about a minute, which pays off in long runs.
            progress: False prints nothing.
            trackers: further observers of the run: "tensorboard", "mlflow", "wandb" (see docs/tracking.md), or instances of
                ``superself.training.Tracker``.
            evaluators: measure the exported backbone before the first step, every so many epochs and after the last; see
                ``superself.evaluation``. They change nothing in the run. Their last pictures are NAME.<evaluator>.png.
            testdata: images that are not trained on, whose loss is measured after every epoch ("held_out_loss").
            notes: kept in NAME.yaml, in the checkpoint and by trackers.
            keep_best: the main value of an evaluator, such as "knn": the epoch that is best by it is also kept in
                NAME.best.pt, which ``load("NAME.best")`` takes.
        Raises:
            TypeError, ValueError: before the first step, if an argument or the data cannot be used.
            OSError: before the first step, if NAME.pt cannot be written, for example for lack of space.
            RuntimeError: before the first step, if another process trains the run of this name.
            FloatingPointError: if the loss is not finite (on the CPU before the step, on an accelerator within a second), or
                if weights are not finite (before they are stored). The last good file is kept.
            KeyboardInterrupt, SystemExit: after a signal, once the step is complete and the run is stored.
        """
        given = dict(locals())
        reject_unknown(unknown, type(self).supervise)
        settings = Settings(**{key: value for key, value in given.items() if key not in ("self", "unknown")})
        settings.check_data(len(self.images) if self.has_data else 0)
        prepare_standard_streams()
        parallel = start_processes(settings, self.device)
        if parallel.device != self.device:
            self.to(parallel.device)
        with contextlib.ExitStack() as until_the_end:
            with parallel.solo():
                if parallel.is_first:
                    require_writable(settings.name)
                    until_the_end.enter_context(RunLock(settings.name))
            self._run_with(settings, parallel)
        return self

    def _run_with(self, settings: Settings, parallel: Parallel) -> None:
        stored = load_run(self, settings.name, settings) if parallel.broadcast(settings.continues) else None
        self._require_model()
        self.run = Run(self, settings, parallel)
        self.seed = stored["seed"] if stored else self.seed if settings.seed is None else settings.seed
        self.seed = parallel.broadcast(self.seed)
        seed_everything(self.seed, self.generator)
        self.generator.manual_seed(self.seed + rank())  # different views in each process
        if stored is None:
            self._load_pretrained(settings.name, settings.pretrained)
        made = self._init_data_optimizer(
            settings.optimizer,
            settings.batch_size,
            settings.shuffle,
            settings.num_workers,
            self.collate_fn,
            settings.lr,
            settings.lr_scheduler,
        )
        train_loader, optimizer, lr_scheduler = check_made(made, type(self).__name__)
        self.run.open(train_loader, optimizer, lr_scheduler, stored)
        several, networks = parallel.naming_lost_processes(), replicated(self, parallel.devices)
        with several, networks, synchronized_batch_norm(self, settings.sync_batchnorm), self.run:
            self._pristine = False
            self._epochs(settings.epochs, train_loader, optimizer, lr_scheduler)

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
            compile_networks(compilable_networks(self))
        sampler = self._sampler(batch_size, shuffle)
        loader = BatchLoader(self.images, sampler, num_workers, collate_fn, pin_memory=self.device.type == "cuda")
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad and self._is_trained(name)]
        total_steps = settings.epochs * len(loader)
        is_scheduled = isinstance(settings.weight_decay, Schedule)
        decay = 1.0 if is_scheduled else settings.weight_decay
        groups = parameter_groups(named, lr=lr, weight_decay=decay, rules=self._group_rules())
        if is_scheduled:
            schedule_decay(groups, settings.weight_decay(0, total_steps, len(loader)))
        optimizer = make_optimizer(optimizer, groups, lr, self.device)
        return loader, optimizer, make_lr_scheduler(lr_scheduler, optimizer, total_steps, len(loader))

    def _epochs(self, epochs: int, train_loader: Any, optimizer: Optimizer, lr_scheduler: Any) -> None:
        """The only epoch loop of the package."""
        run = self.run
        self.train()
        while run.epoch < epochs:
            if not run.resumed_within_epoch:
                self._before_epoch(run.epoch)
            for data in run.batches(train_loader):
                loss = run.forward(data)
                if run.accepts(loss):
                    self._update(loss, optimizer, lr_scheduler)
                if run.stepped:
                    self._after_step()
                run.end_step(loss)
            run.end_epoch()

    def _forward(self, data: Batch) -> Tensor:
        """The algorithm's equations: a batch -> a scalar loss. No backward pass, no step, no change of state.

        With ``accumulate`` it is called for each part of a batch; what it keeps for ``_after_step``, other than in a queue or
        bank, is then that of the last part.
        """
        raise TypeError(f"{type(self).__name__} defines no _forward(data) -> loss; write one, as algorithms/ do.")

    def _update(self, loss: Tensor, optimizer: Optimizer, lr_scheduler: Any) -> None:
        """The optimizer step and nothing else; may be replaced entirely, for example to clip gradients."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        lr_scheduler.step()

    # ---- what algorithms override besides _forward -------------------------------------------------------------------

    def _before_epoch(self, epoch: int) -> None:
        """Before each epoch: may look at all images, change buffers, reset a head, or change ``self.run.sampler``."""

    def _after_step(self) -> None:
        """After each optimizer step: moving averages, queues and banks."""

    def _sampler(self, batch_size: int, shuffle: bool) -> EpochSampler:
        """Which images an epoch takes, and in which order."""
        return EpochSampler(len(self.images), batch_size, shuffle, self.seed, rank=rank(), world_size=world_size())

    def _group_rules(self) -> list[GroupRule]:
        """Parameters with a learning rate or options of their own."""
        return []

    def _is_trained(self, name: str) -> bool:
        """Whether the optimizer gets the parameter of this name; frozen ones are left out in any case."""
        return True

    def _frozen(self) -> Iterable[nn.Parameter]:
        """Parameters that keep their values in the coming step, although the loss has a gradient for them.

        They are left out from the first step on, for as long as they are returned; see ``is_within``.
        """
        return ()

    def _networks(self) -> list[nn.Module]:
        """The networks that are called with a batch."""
        return [network for network in compilable_networks(self) if network is not self.loss]

    def embed(self, images: Tensor) -> Tensor | None:
        """Embeddings (B, E) of preprocessed images, which are watched for collapse; None for methods without."""
        return None

    @property
    def chance_loss(self) -> float | None:
        """The loss at chance level, or None where there is no such number."""
        return None

    # ---- what algorithms call ----------------------------------------------------------------------------------------

    def note(self, name: str, value: Tensor | float) -> None:
        """Adds a value of this step to the progress line, NAME.csv and every tracker, as its mean over the epoch."""
        check_metric_name(name)
        if self.run is not None:
            self.run.metrics.add(name, value)

    def scheduled(self, value: float | Schedule) -> float:
        """The value of a hyper-parameter at the current step: a Schedule is evaluated, a number is returned unchanged."""
        run = self.run
        return (
            scheduled(value, 0, 1, 1)
            if run is None
            else scheduled(value, run.step, run.total_steps, run.steps_per_epoch)
        )

    def is_within(self, duration: Duration) -> bool:
        """Whether the current run is still in its first ``duration``, for example ``epochs(1)``; True before the first run."""
        run = self.run
        return run is None or run.step < count_steps(duration, run.total_steps, run.steps_per_epoch)

    def forward(self, data: Batch) -> Tensor:
        """``_forward``, so that wrappers which call the module wrap the whole algorithm."""
        return self._forward(data)

    @property
    def step(self) -> int:
        """Optimizer steps that the current run has done."""
        return 0 if self.run is None else self.run.step

    @property
    def epoch(self) -> int:
        """Epochs that the current run has finished."""
        return 0 if self.run is None else self.run.epoch

    def _facts(self) -> dict[str, Any]:
        """What NAME.yaml and the first lines say about the run."""
        return run_facts(self)

    def _trackers(self) -> list[Tracker]:
        """The observers that every run has."""
        settings = self.run.settings
        progress = [Progress()] if settings.progress else []
        observers = [MonitorTracker(self), EvaluationTracker(self), ReportTracker(settings.name)]
        return [Record(settings.name), *progress, *observers]

    def _as_batch(self, values: Any) -> Batch:
        """What a loader yields as a Batch."""
        data = Batch.from_loader(values)
        if len(data) == 0:
            raise ValueError("the loader or the collate_fn returned a batch without images; leave such batches out.")
        if data.index is None and self.needs_index:
            raise ValueError(
                f"{type(self).__name__} needs the position of each image in the data set, and the loader does not give it; "
                'yield Batch(images, index=...) or a dictionary with "image" and "index".'
            )
        return data
