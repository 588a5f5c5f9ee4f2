"""Shortcut checks: does a method, or a backbone, still work when all cues but one are taken out of the images?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from superself.augment import CenterCrop, Compose, GridTiles, RandomGrayscale
from superself.data import Images
from superself.evaluation.collapse import mean_cosine
from superself.evaluation.held_out import held_out_loss
from superself.evaluation.invariance import blur_of, changed_cosines
from superself.evaluation.subject import Subject
from superself.evaluation.unlabelled import UnlabelledEvaluator, as_subject

LOW_PASS = (
    1 / 16
)  # sigma of the blur as a share of the shorter side: objects stay recognisable, texture and noise do not
HARDLY, MOSTLY = 0.9, 0.5  # shares of what is gained over chance
AT_CHANCE = 0.02  # share of the chance level: a smaller gain is none
UNSOLVED = "says nothing: the originals are hardly better than chance"
CUES = {"grey": "colour", "low-pass": "fine detail (texture, noise, compression)"}  # what the change takes away
ACCURACIES = ("accuracy", "top1")  # what methods note


@dataclass(frozen=True)
class ShortcutRow:
    """One line of the table.

    Args:
        change: "original", "grey", "low-pass" or "no gaps".
        loss: of the method on the changed images.
        accuracy: of the method on its own task, or None if it notes none.
        kept: share of what the original gains over chance that is kept: 1 is all of it, 0 is chance level; None without a
            chance level, or where the original is hardly better than chance.
        sentence: what this says.
    """

    change: str
    loss: float
    accuracy: float | None
    kept: float | None
    sentence: str


@dataclass(frozen=True)
class ShortcutTable:
    """Result of ``pretext_shortcuts``; ``str()`` is a table with a sentence for each line."""

    method: str
    chance: float | None
    rows: tuple[ShortcutRow, ...]

    def __str__(self) -> str:
        chance = "no chance level" if self.chance is None else f"chance level {self.chance:.4g}"
        lines = [f"{self.method} on changed images ({chance}):"]
        lines.append(f"{'images':<12}{'loss':>9}{'accuracy':>10}{'kept':>8}")
        for row in self.rows:
            accuracy = "-" if row.accuracy is None else f"{row.accuracy:.1%}"
            kept = "-" if row.kept is None else f"{row.kept:.0%}"
            lines.append(f"{row.change:<12}{row.loss:>9.4f}{accuracy:>10}{kept:>8}   {row.sentence}".rstrip())
        return "\n".join(lines)


def pretext_shortcuts(
    supervisor: Any, images: Images | None = None, count: int = 512, batch_size: int | None = None
) -> ShortcutTable:
    """The method's loss, and accuracy where it notes one, on images without colour, without detail, and on tiles without gaps.

    A loss that hardly changes shows that the method does not need what was taken out: a jigsaw that is solved as well on
    blurred images does not use edges and noise at the borders of tiles. A loss that rises may also come from images unlike
    those that were trained on, so it is a hint and no proof; train on the changed images to be certain. Gaps are removed
    from tiles of the same size, for methods that cut tiles from a grid (Jigsaw, PIRL): if the loss falls clearly, the
    network continues lines from tile to tile, which gaps are there to prevent.

    Args:
        supervisor: trained or loaded.
        images: None takes the images that were trained on; see ``held_out_loss`` for methods that only know these.
        count: images that are measured, spread evenly over the data set.
        batch_size: see ``held_out_loss``.
    Raises:
        ValueError: if the method has no value for these images.
    """
    images = supervisor.images if images is None else images

    def measure(transform: Callable[[Tensor], Tensor] | None = None) -> tuple[float, float | None, float | None]:
        loss, chance, noted = held_out_loss(supervisor, images, count, batch_size, transform)
        return loss, next((noted[name] for name in ACCURACIES if name in noted), None), chance

    loss, accuracy, chance = measure()
    rows = [ShortcutRow("original", loss, accuracy, None, "")]
    unsolved = _unsolved(loss, chance)
    for change, transform in cue_removals(images.shape).items():
        changed, accuracy, _ = measure(transform)
        kept = _kept(changed, loss, chance)
        sentence = UNSOLVED if unsolved else _sentence(CUES[change], changed, loss, kept)
        rows.append(ShortcutRow(change, changed, accuracy, kept, sentence))
    if isinstance(getattr(supervisor, "cut", None), GridTiles):
        with without_gaps(supervisor):
            changed, accuracy, _ = measure()
        kept = _kept(changed, loss, chance)
        sentence = UNSOLVED if unsolved else _sentence_about_gaps(changed, loss)
        rows.append(ShortcutRow("no gaps", changed, accuracy, kept, sentence))
    return ShortcutTable(type(supervisor).__name__, chance, tuple(rows))


def feature_shortcuts(subject: Subject | nn.Module, dataset: Any, count: int = 500) -> dict[str, float]:
    """How similar features stay when colour or detail is taken out of the images: "grey" (for RGB only) and "low-pass".

    1 if the features do not change, 0 if the changed image is like another image: (cosine between an image and its changed
    copy - mean cosine between different images) / (1 - mean cosine between different images).

    Args:
        subject: a backbone, or a subject.
        dataset: anything that ``open_images`` takes; pixels in [0, 1] if they are floats.
        count: images, spread evenly over the data set.
    Raises:
        ValueError: if pixels are out of range, or a feature is not finite.
    """
    subject = as_subject(subject)
    images = subject.open(dataset)
    transforms = {change: {1.0: transform} for change, transform in cue_removals(images.shape).items()}
    unchanged, cosines = changed_cosines(subject, images, count, transforms)
    other = mean_cosine(unchanged)
    return {change: (row[1.0] - other) / max(1 - other, 1e-12) for change, row in cosines.items()}


class Shortcuts(UnlabelledEvaluator):
    """How similar features stay without colour and without detail: "shortcut_low_pass" and, for RGB, "shortcut_grey".

    1 if the features do not change, 0 if the changed image is like another image. Neither is good in itself: see
    ``feature_shortcuts``. For the loss of a method on such images, call ``pretext_shortcuts``.

    Args:
        dataset: anything that ``open_images`` takes; None takes the subject's own images.
        count: images, spread evenly over the data set.
        every: see Evaluator.
    """

    name = "shortcuts"
    higher_is_better: ClassVar[bool | None] = None

    def __init__(self, dataset: Any = None, count: int = 500, every: int = 1) -> None:
        super().__init__(dataset, count, every)

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """The values."""
        kept = feature_shortcuts(subject, self.opened(subject), self.count)
        return {f"shortcut_{change.replace('-', '_')}": kept[change] for change in reversed(kept)}


def cue_removals(shape: tuple[int, int, int]) -> dict[str, nn.Module]:
    """What takes one cue out of images of this shape (C, H, W); colour only from RGB."""
    grey = {"grey": RandomGrayscale(1.0)} if shape[0] == 3 else {}
    return grey | {"low-pass": blur_of(LOW_PASS, min(shape[1:]))}


@contextlib.contextmanager
def without_gaps(supervisor: Any) -> Iterator[None]:
    """Inside, the method's tiles have the same size and touch each other, at fixed places in the middle of the image."""
    cut, jitter = supervisor.cut, getattr(supervisor, "jitter", 0)
    tile = cut.tile - 2 * jitter  # Jigsaw cuts larger tiles, to shift the channels of each
    side = cut.grid * tile
    touching = GridTiles(cut.grid, tile, jitter=False, standardize=cut.standardize)
    try:
        supervisor.cut = Compose([CenterCrop(side, shrink=False), touching])
        if jitter:
            supervisor.jitter = 0
        yield
    finally:
        supervisor.cut = cut
        if jitter:
            supervisor.jitter = jitter


def _kept(changed: float, original: float, chance: float | None) -> float | None:
    return None if chance is None or _unsolved(original, chance) else (chance - changed) / (chance - original)


def _unsolved(original: float, chance: float | None) -> bool:
    return chance is not None and chance - original < AT_CHANCE * abs(chance)


def _sentence(cue: str, changed: float, original: float, kept: float | None) -> str:
    if kept is None:
        return (
            f"without {cue} the loss is {changed - original:+.3g} higher" if changed > original else f"no need of {cue}"
        )
    if kept >= HARDLY:
        return f"the method hardly needs {cue}"
    if kept >= MOSTLY:
        return f"{cue} helps, most is solved without"
    return f"{cue} carries most of it, or such images are too unfamiliar"


def _sentence_about_gaps(changed: float, original: float) -> str:
    if changed < HARDLY * original:
        return "easier without gaps: the network continues lines across tiles, so it needs the gaps"
    return "gaps are not what makes it hard: no sign that lines are continued across tiles"
