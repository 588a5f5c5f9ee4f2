"""suggest: three methods worth trying on a data set, with settings, reasons and the time they take on this machine."""

from __future__ import annotations

import builtins
import contextlib
import copy
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from superself.algorithms import create
from superself.basics.random import preserve_random_state
from superself.basics.validate import require_bool, require_count, require_positive
from superself.data import Images, ImageSpec, open_images
from superself.data.sources import TensorSource
from superself.evaluation.leakage import ALIKE, thumbnails
from superself.supervisor import Supervisor
from superself.training import Tracker
from superself.training.hyper_parameters import OF_THE_DATA
from superself.training.trackers.progress import duration

FEWEST = 8  # images
FEW = 1000  # images, up to which methods that know each image are tried
SAMPLE = 256  # images that are looked at
MANY_ALIKE = 0.1  # fraction of images with such a neighbour
SEEN = 400_000  # images that a run should see, as a rule of thumb
LONG = 10_000  # steps, from which averages may move as slowly as in the papers
TIMED = 3  # steps that are timed after the first
PATIENCE = 1.0  # seconds of a timed run, after which it ends once a step besides the first is done
PART, SLOW = 16, 0.2  # images of a first timed step, and seconds of it from which larger batches are not tried
LARGE = 256  # pixels of the shorter side, above which smaller images are recommended
NAMED = 128  # characters: a longer text of a data set is replaced by a name


@dataclass(frozen=True)
class Facts:
    """What is known of a data set; ``alike`` is the fraction of images that have a near-duplicate."""

    count: int
    shape: tuple[int, int, int]
    is_grey: bool
    alike: float
    upright: bool
    colour_matters: bool

    def __str__(self) -> str:
        channels, height, width = self.shape
        kind = "grey" if self.is_grey else "colour" if channels == 3 else f"{channels} channels"
        parts = [f"{self.count:,} images", f"{height} x {width} pixels", kind]
        parts += [f"{self.alike:.0%} have a near-duplicate"] if self.alike > MANY_ALIKE else []
        parts += ["large: image_size=224 would train faster"] if min(height, width) > LARGE else []
        return ", ".join(parts)

    @property
    def batch_size(self) -> int:
        """A power of two up to 64, the size that was measured here, and at most half of the images."""
        return min(64, 2 ** int(math.log2(max(4, self.count // 2))))


@dataclass(frozen=True)
class Suggestion:
    """A method and settings for a data set.

    Args:
        method: the name for ``create``.
        arguments: for ``create``.
        settings: for ``supervise``.
        why: the reason.
        steps: of the whole run.
        seconds_per_step: as measured, or None.
        dataset: how the data set is written in ``lines``.
    """

    method: str
    arguments: dict[str, Any]
    settings: dict[str, Any]
    why: str
    steps: int
    seconds_per_step: float | None = None
    dataset: str = "dataset"

    @property
    def minutes(self) -> float | None:
        """The time of the whole run, without reading files, saving and measuring features."""
        return None if self.seconds_per_step is None else self.steps * self.seconds_per_step / 60

    @property
    def lines(self) -> str:
        """The lines to copy."""
        made = "".join(f", {name}={_written(name, value)}" for name, value in self.arguments.items())
        run = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        lines = f"supervisor = create({self.method!r}, {self.dataset}{made})\nsupervisor.supervise({run})"
        return f"from superself import create\n\n{lines}"

    def create(self, dataset: Any, **arguments: Any) -> Supervisor:
        """A supervisor for the data set; ``arguments`` take precedence over the suggested ones."""
        return create(self.method, dataset, **{**self.arguments, **arguments})

    def __str__(self) -> str:
        time = "" if self.minutes is None else f", about {duration(60 * self.minutes)}"
        return f"{self.method}: {self.settings['epochs']} epochs{time}; {self.why}"


class Suggestions(list[Suggestion]):
    """What ``suggest`` returns: a list of suggestions, best first, which prints as text; ``facts`` describes the data."""

    def __init__(self, found: Sequence[Suggestion], facts: Facts) -> None:
        super().__init__(found)
        self.facts = facts

    def __str__(self) -> str:
        parts = [str(self.facts)]
        for number, suggestion in enumerate(self, start=1):
            code = "\n".join(f"    {line}" for line in suggestion.lines.splitlines())
            parts.append(f"{number}. {suggestion}\n\n{code}")
        return "\n\n".join(parts)


def suggest(
    dataset: Any,
    backbone: str | nn.Module | None = None,
    *,
    count: int = 3,
    epochs: int | None = None,
    minutes: float | None = None,
    upright: bool = True,
    colour_matters: bool = False,
    measure: bool = True,
    device: Any = None,
    print: bool = True,
    **options: Any,
) -> Suggestions:
    """Methods that are worth trying on these images, with settings, reasons, and the time measured on this machine.

    The rules are in docs/suggestions.md. They are rules of thumb from the papers and from bench/RESULTS.md, not a search: only
    training and ``compare`` show what is best for your images. Each method is timed with a few steps on some of the images, in a
    temporary folder and with networks that are thrown away; no file and no random state changes.

    Args:
        dataset: as for every method; see ``open_images``.
        backbone: None for "resnet18", a name, or a module, which is copied for measuring.
        count: how many methods.
        epochs: of each run; None for as many as show 400,000 images, between 20 and 400.
        minutes: that each run may take: as many epochs as fit.
        upright: the images have an up and a down, and parts at typical places; False for textures, microscopy and aerial views.
        colour_matters: the colours are what is to be learnt, so views must not change them.
        measure: time a few steps of each method.
        device: that is measured and trained on; None for the CPU.
        print: print the suggestions.
        **options: of the data set, for example ``image_size=64``; they become arguments of ``create``.
    Raises:
        ValueError: if there are fewer than 8 images, a number is out of range, or ``minutes`` is used without measuring.
    """
    require_count("count", count, "is the number of methods")
    if epochs is not None:
        require_count("epochs", epochs, "is the number of passes over the data")
    if minutes is not None:
        require_positive("minutes", minutes, "is the time that each run may take")
        if epochs is not None or not measure:
            raise ValueError("minutes= is turned into epochs by measuring; pass it without epochs= and measure=False.")
    for name, value in (("upright", upright), ("colour_matters", colour_matters), ("measure", measure)):
        require_bool(name, value, "")
    opened = open_images(dataset, **options)
    if isinstance(opened, ImageSpec) or len(opened) < FEWEST:
        raise ValueError(f"there are {len(opened)} images, too few to suggest a method; pass at least {FEWEST}.")
    facts = look_at(opened, upright=upright, colour_matters=colour_matters)
    shared = {"backbone": "resnet18" if backbone is None else backbone, **options}
    steps_per_epoch = math.ceil(facts.count / facts.batch_size)
    planned = epochs or min(400, max(20, math.ceil(SEEN / facts.count)))
    found = []
    for method, arguments, why in choose(facts, count, planned * steps_per_epoch, isinstance(backbone, nn.Module)):
        arguments = {**arguments, **shared}
        seconds = time_steps(method, opened, facts.batch_size, arguments, device) if measure else None
        fitting = planned if minutes is None else max(1, int(60 * minutes / (seconds * steps_per_epoch)))
        settings = {
            "epochs": fitting,
            "batch_size": facts.batch_size,
            "lr": 1e-3,
            "lr_scheduler": "warmup_cosine",
            "name": f"store/{method}",
        }
        steps = fitting * steps_per_epoch
        found.append(Suggestion(method, arguments, settings, why, steps, seconds, _name_of(dataset)))
    suggestions = Suggestions(found, facts)
    if print:
        builtins.print(suggestions)
    return suggestions


def look_at(images: Images, *, upright: bool = True, colour_matters: bool = False) -> Facts:
    """Number, shape, colours and near-duplicates of the images, from a sample of up to 256 of them."""
    places = torch.linspace(0, len(images) - 1, min(SAMPLE, len(images))).long()
    batch = images.batch(places)
    sample = batch.images[batch.index == places].cpu().double()  # elsewhere another image stands in for a broken one
    small = thumbnails(sample, *sample.aminmax())  # (n, C, 8, 8)
    is_grey = images.shape[0] == 1 or (images.shape[0] == 3 and bool((small - small[:, :1]).abs().mean() < ALIKE / 2))
    distances = torch.cdist(small.flatten(1), small.flatten(1), p=1) / small[0].numel()  # mean difference of two images
    distances.fill_diagonal_(math.inf)
    alike = (distances.amin(1) < ALIKE).double().mean().item() if len(small) > 1 else 0.0
    return Facts(len(images), images.shape, is_grey, alike, upright, colour_matters)


# ---- the rules: docs/suggestions.md says the same in words ---------------------------------------------------------------

Choice = tuple[str, dict[str, Any], str]  # method, arguments for create, reason


def choose(facts: Facts, count: int, steps: int, is_module: bool = False) -> list[Choice]:
    """The best methods of each kind in turn, of those that exist in this version.

    Args:
        facts: of the data set.
        count: how many.
        steps: of a run.
        is_module: whether the backbone is a module, of which methods with two backbones cannot make two.
    """
    kinds = [_with_negatives(facts, steps), _without_negatives(facts, steps), _pretext_tasks(facts, is_module)]
    if facts.alike > MANY_ALIKE:
        kinds = [kinds[1], kinds[2], kinds[0]]
    elif facts.count <= FEW:
        kinds = [kinds[2], kinds[0], kinds[1]]
    ranked = [kind[rank] for rank in range(max(map(len, kinds))) for kind in kinds if rank < len(kind)]
    return ranked[:count]


def _views(facts: Facts) -> dict[str, Any]:
    return {"augment": "resized-crop-flip"} if facts.colour_matters else {}


def _with_negatives(facts: Facts, steps: int) -> list[Choice]:
    size = min(4096, 2 ** int(math.log2(facts.count)) // 2)
    queue = {"queue_size": size, **({"momentum": 0.99} if steps < LONG else {})}
    simclr = ("simclr", _views(facts), "contrasts two views of an image with the rest of the batch")
    moco = (
        "moco",
        {**queue, **_views(facts)},
        "contrasts two views of an image with a queue, so small batches are enough",
    )
    return [moco, simclr] if facts.batch_size < 64 else [simclr, moco]


def _without_negatives(facts: Facts, steps: int) -> list[Choice]:
    slow = {"momentum": 0.99} if steps < LONG else {}
    why = "uses no negatives, so near-duplicates are harmless"
    byol = ("byol", {**slow, **_views(facts)}, f"predicts one view from another; {why}")
    others = [
        (name, _views(facts), f"decorrelates the values of embeddings; {why}") for name in ("vicreg", "barlow_twins")
    ]
    return [byol, *others] if facts.batch_size >= 32 else []  # they need statistics of larger batches


def _pretext_tasks(facts: Facts, is_module: bool) -> list[Choice]:
    known = [("exemplarnet", {}, "treats each image as a class and recognises it under strong distortions")]
    upright = [("rotatenet", {}, "needs images with an up and a down, and learns in short runs")]
    colours = [("cmc", {"contrast": "batch"}, "relates lightness and colour; colours are not changed")]
    holes = [("context_encoder", {}, "fills in a hole from what is around it; works for grey images")]
    has_colours = facts.shape[0] == 3 and not facts.is_grey and not is_module
    found = known if facts.count <= FEW and not facts.colour_matters else []
    found = found + (colours if has_colours and (facts.colour_matters or not facts.upright) else [])
    return found + (upright if facts.upright else []) + holes


# ---- timing --------------------------------------------------------------------------------------------------------------


class _Enough(Exception):
    """Ends a run that is only timed."""


class _Stopwatch(Tracker):
    """Notes when each optimizer step has ended, and ends the run after a few."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def start(self, facts: dict[str, Any]) -> None:
        """Adds a hook to the optimizer, and starts the time."""
        run = facts["run"]
        weight = next(p for p in run.supervisor.parameters() if p.requires_grad)

        def tick(*_: Any) -> None:
            weight.flatten()[0].item()  # an accelerator has finished then
            self.times.append(time.perf_counter())
            if len(self.times) > 1 + TIMED or (len(self.times) > 2 and self.times[-1] - self.times[0] > PATIENCE):
                raise _Enough

        run.optimizer.register_step_post_hook(tick)
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """The median time of a step, without the first, which also warms up."""
        steps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return statistics.median(steps[1:] or steps)


def time_steps(method: str, images: Images, batch_size: int, arguments: dict[str, Any], device: Any = None) -> float:
    """Seconds of an optimizer step of a method on these images, measured with networks that are thrown away.

    Where a step of 16 images takes long, that of a larger batch is taken to last in proportion.

    Args:
        method: its name.
        images: a few of them are used.
        batch_size: images of a step.
        arguments: for ``create``.
        device: where the networks are; None for the CPU.
    """
    part = min(PART, batch_size)
    seconds = _time_run(method, images, part, arguments, device)
    if part == batch_size or seconds > SLOW:
        return seconds * batch_size / part
    return _time_run(method, images, batch_size, arguments, device)


def _time_run(method: str, images: Images, batch_size: int, arguments: dict[str, Any], device: Any) -> float:
    few = images.batch(range(min(len(images), 2 * batch_size))).images.cpu()
    arguments = {name: copy.deepcopy(value) for name, value in arguments.items() if name not in OF_THE_DATA}
    return seconds_per_step(lambda: create(method, Images(TensorSource(few)), seed=0, **arguments), batch_size, device)


def seconds_per_step(make: Callable[[], Supervisor], batch_size: int, device: Any = None) -> float:
    """Seconds of an optimizer step, measured in a run that ends after a few; no file and no random state changes.

    Args:
        make: makes a supervisor with images for a few batches, which is thrown away.
        batch_size: images of a step.
        device: where the networks are; None for the CPU.
    """
    watch = _Stopwatch()
    with preserve_random_state(), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        supervisor = make()
        if device is not None:
            supervisor.to(device)
        settings = {"epochs": 10**6, "batch_size": batch_size, "name": Path(folder) / "run", "progress": False}
        with contextlib.suppress(_Enough):
            supervisor.supervise(**settings, save_every=None, trackers=[watch])
    return watch.seconds


def _name_of(dataset: Any) -> str:
    """How a data set is written in code: a path or name as text, anything else as a variable."""
    text = repr(str(dataset)) if isinstance(dataset, (str, Path)) else ""
    return text if text and len(text) <= NAMED else "dataset"


def _written(name: str, value: Any) -> str:
    return name if callable(value) else repr(value)
