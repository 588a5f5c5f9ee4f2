"""How far do features move when images are changed? An invariance report, by transform and strength."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from superself.augment import (
    JPEG,
    ColorJitter,
    GaussianBlur,
    GaussianNoise,
    RandomAffine,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomVerticalFlip,
    RandomZoom,
    Transform,
)
from superself.data import Images
from superself.data.preprocessing import to_float
from superself.evaluation.collapse import mean_cosine, unit_rows
from superself.evaluation.pictures.canvas import new_figure, save_figure
from superself.evaluation.subject import Subject
from superself.evaluation.unlabelled import (
    UnlabelledEvaluator,
    as_subject,
    chosen_images,
    measuring,
    require_finite_features,
)

CONSTANT = 1 - 1e-6  # mean cosine between images from which on features count as all the same


@dataclass(frozen=True)
class Series:
    """A transform at increasing strength.

    Args:
        make: from a strength and the shorter side of the images in pixels to the transform.
        strengths: from weak to strong.
        unit: what a strength is.
        needs_rgb: whether it does nothing to images that are not RGB.
    """

    make: Callable[[float, int], Transform]
    strengths: tuple[float, ...]
    unit: str
    needs_rgb: bool = False


def blur_of(share: float, side: int) -> Transform:
    """A Gaussian blur with a sigma that is a fraction of the shorter side."""
    sigma = share * side
    half = max(1, min(math.ceil(3 * sigma), side - 1))
    return GaussianBlur(2 * half + 1, sigma)


SERIES: dict[str, Series] = {
    "brightness": Series(lambda s, _: ColorJitter(brightness=(s, s)), (0.9, 0.7, 0.5, 0.3), "factor"),
    "contrast": Series(lambda s, _: ColorJitter(contrast=(s, s)), (0.9, 0.7, 0.5, 0.3), "factor"),
    "saturation": Series(lambda s, _: ColorJitter(saturation=(s, s)), (0.75, 0.5, 0.25, 0.0), "factor", True),
    "hue": Series(lambda s, _: ColorJitter(hue=(s, s)), (0.05, 0.1, 0.25, 0.5), "turn of the colour circle", True),
    "grey": Series(lambda s, _: RandomGrayscale(1.0), (1.0,), "", True),
    "blur": Series(blur_of, (1 / 64, 1 / 32, 1 / 16, 1 / 8), "sigma / side"),
    "noise": Series(lambda s, _: GaussianNoise(s), (0.02, 0.05, 0.1, 0.2), "sigma, of pixels in [0, 1]"),
    "jpeg": Series(lambda s, _: JPEG(int(s)), (90, 50, 25, 10), "quality"),
    "rotation": Series(lambda s, _: RandomAffine((s, s), fill=None), (5, 15, 45, 90), "degrees"),
    "zoom": Series(lambda s, _: RandomZoom((s, s), fill=None), (1.1, 1.25, 1.5, 2.0), "factor"),
    "shrink": Series(lambda s, _: RandomZoom((s, s), fill=None), (0.9, 0.8, 0.65, 0.5), "factor"),
    "translation": Series(
        lambda s, _: RandomAffine(translate=(s, s), fill=None), (1 / 32, 1 / 16, 1 / 8, 1 / 4), "side, at most"
    ),
    "flip": Series(lambda s, _: RandomHorizontalFlip(1.0), (1.0,), "left and right"),
    "upside down": Series(lambda s, _: RandomVerticalFlip(1.0), (1.0,), "top and bottom"),
}


@dataclass(frozen=True)
class InvarianceReport:
    """How far features move under each transform, as a share of the distance between different images.

    Args:
        moved: transform -> strength -> (1 - cosine between an image and its changed copy) / (1 - mean cosine between
            different images), means over the images: 0 if the features stay, 1 if the copy is like another image.
        other_cosine: mean cosine between different images.
        count: images that were measured.
        notes: what was left out, and why.
    """

    moved: dict[str, dict[float, float]]
    other_cosine: float
    count: int
    notes: tuple[str, ...] = ()

    def means(self) -> dict[str, float]:
        """The mean over the strengths of each transform."""
        return {name: sum(row.values()) / len(row) for name, row in self.moved.items()}

    def __str__(self) -> str:
        lines = [
            f"How far features move, as a share of the distance between different images ({self.count} images):",
            "0% if they stay the same, 100% if the changed image is like another image. From weak to strong:",
        ]
        for name, row in self.moved.items():
            cells = "".join(f"{f'{strength:.3g}:':>8}{moved:>6.0%}" for strength, moved in row.items())
            unit = SERIES[name].unit if name in SERIES else ""
            lines.append(f"{name:<12}{cells}{f'   ({unit})' if unit else ''}")
        return "\n".join([*lines, f"Mean cosine between different images: {self.other_cosine:.3f}.", *self.notes])

    def figure(self, path: str | Path) -> Path:
        """Writes a picture of the table: a line of cells for each transform, darker where features move further."""
        most = max(map(len, self.moved.values()))
        grid = [[*row.values(), *[math.nan] * (most - len(row))] for row in self.moved.values()]
        figure = new_figure(1.6 + 1.1 * most, 1.2 + 0.32 * len(grid))
        axes = figure.subplots()
        axes.imshow(grid, cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
        for line, row in enumerate(self.moved.values()):
            for column, (strength, moved) in enumerate(row.items()):
                colour = "white" if moved > 0.7 else "black"
                axes.text(
                    column, line, f"{moved:.0%}  ({strength:.3g})", ha="center", va="center", color=colour, fontsize=8
                )
        axes.set_yticks(range(len(grid)), list(self.moved))
        axes.set_xticks(range(most), ["weak", *[""] * (most - 2), "strong"] if most > 1 else [""])
        axes.set_title(f"How far features move (100%: like another image; {self.count} images)", fontsize=9)
        return save_figure(figure, path)


def invariance_report(
    subject: Subject | nn.Module, dataset: Any, count: int = 500, series: Mapping[str, Series] | None = None
) -> InvarianceReport:
    """Changes images by each transform at increasing strength and measures how far the features move.

    Every transform and strength takes a forward pass of all ``count`` images. Memory holds their features twice. The same
    call gives the same numbers.

    Args:
        subject: a backbone, or a subject.
        dataset: anything that ``open_images`` takes, of any number of channels; pixels in [0, 1] if they are floats.
        count: images, spread evenly over the data set; unreadable ones are left out.
        series: name -> Series; None takes ``SERIES``. Transforms of colours are left out for images that are not RGB.
    Raises:
        ValueError: if pixels are out of range, a feature is not finite, or all features are the same.
    """
    subject = as_subject(subject)
    images = subject.open(dataset)
    chosen = dict(SERIES if series is None else series)
    left_out = [name for name, part in chosen.items() if part.needs_rgb and images.shape[0] != 3]
    side = min(images.shape[1:])
    transforms = {
        name: {strength: part.make(strength, side) for strength in part.strengths}
        for name, part in chosen.items()
        if name not in left_out
    }
    unchanged, cosines = changed_cosines(subject, images, count, transforms)
    other = mean_cosine(unchanged)
    if not other < CONSTANT:
        raise ValueError(
            f"the features of all images are the same (mean cosine {other:.7f}), so no distance can be compared with "
            "that between images; the backbone has collapsed, or needs other preprocessing."
        )
    moved = {
        name: {strength: (1 - cosine) / (1 - other) for strength, cosine in row.items()}
        for name, row in cosines.items()
    }
    note = f"Left out for images of {images.shape[0]} channel(s), as they need RGB: {', '.join(left_out)}."
    return InvarianceReport(moved, other, len(unchanged), (note,) if left_out else ())


def changed_cosines(
    subject: Subject, images: Images, count: int, transforms: Mapping[str, Mapping[float, Transform]]
) -> tuple[Tensor, dict[str, dict[float, float]]]:
    """Features (N, D) of images, and the mean cosine between them and those of the images after each transform."""
    plain: list[Tensor] = []
    sums = {name: dict.fromkeys(row, 0.0) for name, row in transforms.items()}
    with measuring(subject, images) as features_of:
        for batch in chosen_images(subject, images, count):
            pixels = to_float(batch)
            if pixels.min() < 0 or pixels.max() > 1:
                raise ValueError(
                    f"the pixels reach from {float(pixels.min()):.4g} to {float(pixels.max()):.4g}, and transforms need "
                    "[0, 1]; open the images with norm= (255 for 8 bits), or pass uint8."
                )
            plain.append(require_finite_features(features_of(batch)))
            before = torch.cat(list(unit_rows(plain[-1])))
            for name, row in transforms.items():
                for strength, transform in row.items():
                    after = require_finite_features(features_of(transform(batch)))
                    sums[name][strength] += float((before * torch.cat(list(unit_rows(after)))).sum())
    total = sum(map(len, plain))
    return torch.cat(plain), {name: {s: v / total for s, v in row.items()} for name, row in sums.items()}


class Invariance(UnlabelledEvaluator):
    """How far features move under each of ``SERIES``: "invariance" and one value for each transform.

    "invariance_blur" is 1 minus the share that features move, as a mean over the strengths: 1 if they stay the same, 0 if the
    changed image is like another image; "invariance" is the mean over the transforms. Neither high nor low is good: a task
    that depends on colour needs features that change with it.

    Args:
        dataset: anything that ``open_images`` takes; None takes the subject's own images.
        count: images, spread evenly over the data set; about 50 forward passes each.
        every: see Evaluator.
    """

    name = "invariance"
    higher_is_better: ClassVar[bool | None] = None

    def __init__(self, dataset: Any = None, count: int = 200, every: int = 1) -> None:
        super().__init__(dataset, count, every)
        self.report: InvarianceReport | None = None

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """The values; the whole report is kept as ``report``."""
        self.report = invariance_report(subject, self.opened(subject), self.count)
        values = {name: 1 - moved for name, moved in self.report.means().items()}
        mean = sum(values.values()) / len(values)
        return {"invariance": mean} | {f"invariance_{name.replace(' ', '_')}": v for name, v in values.items()}

    def figure(self, subject: Subject, path: Path) -> Path | None:
        """The table as a picture, measured if it has not been."""
        if self.report is None:
            self.evaluate(subject)
        return self.report.figure(path)
