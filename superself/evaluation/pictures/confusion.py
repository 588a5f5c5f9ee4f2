"""Which classes a classifier takes for which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import ImageColor
from torch import Tensor

from superself.basics.drawing import (
    CAPTION,
    HEADING,
    INK,
    MARGIN,
    MUTED,
    RIGHT,
    TRAINED,
    WRONG,
    Sheet,
    heading_height,
    line_height,
    shorten,
    text_width,
)
from superself.evaluation.classification import Classification
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.subject import Subject

MOST = 20  # classes of which the whole matrix is shown
LISTED = 20  # confusions that are listed where there are more classes
CELL = 46
NAME = 150  # pixels that the name of a class takes at most


def show_confusion(classification: Classification, path: str | Path) -> Path:
    """Writes a PNG with the confusion matrix, or with the most frequent confusions where there are more than 20 classes.

    Args:
        classification: predictions and true classes.
        path: of the PNG; missing folders are created.
    Raises:
        ValueError: if there are no predictions.
    """
    labels, classes = classification.labels.cpu(), classification.scores.shape[1]
    if len(labels) == 0:
        raise ValueError("there are no predictions to show; pass a classification of at least one image.")
    predicted = classification.scores.argmax(1).cpu()
    matrix = (classes * labels + predicted).bincount(minlength=classes**2).view(classes, classes)  # true, predicted
    names = [str(name) for name in classification.classes or range(classes)]
    draw = _draw_matrix if classes <= MOST else _draw_list
    return draw(matrix, names, classification.protocol).save(path)


def _draw_matrix(matrix: Tensor, names: list[str], protocol: str) -> Sheet:
    classes = len(matrix)
    row_names = min(NAME, max(text_width(name) for name in names)) + 12
    column_names = min(NAME, max(text_width(name) for name in names)) + 12
    accuracy = matrix.diagonal().sum().item() / matrix.sum().item()
    title = f"{accuracy:.1%} of {int(matrix.sum()):,} images are classified right"
    subtitle = (
        f"Each row is a true class, and its numbers are how many percent of it were taken for each class. {protocol}"
    )
    left = MARGIN + line_height(HEADING) + row_names
    total = max(left + classes * CELL + MARGIN, 460)
    top = heading_height(title, subtitle, total) + line_height(HEADING) + column_names
    sheet = Sheet(total, top + classes * CELL + MARGIN)
    y = sheet.heading(title, subtitle)
    sheet.text(left + classes * CELL / 2, y, "predicted class", HEADING, bold=True, anchor="ma")
    middle = top + (classes * CELL + text_width("true class", HEADING, bold=True)) / 2
    sheet.text_upwards(MARGIN + 8, middle, "true class", HEADING, bold=True)
    shares = matrix / matrix.sum(1, keepdim=True).clamp_min(1)
    for row in range(classes):
        name = shorten(names[row], row_names - 12)
        y = top + row * CELL
        sheet.text(left - 10, y + CELL / 2, name, anchor="rm")
        sheet.text_upwards(left + (row + 0.5) * CELL, top - 8, shorten(names[row], column_names - 12))
        for column in range(classes):
            share = shares[row, column].item()
            sheet.box(left + column * CELL, y, CELL - 2, CELL - 2, _shade(share))
            if share >= 0.005 or row == column:
                colour = "white" if share > 0.5 else INK if share >= 0.1 or row == column else MUTED
                middle = (left + (column + 0.5) * CELL - 1, y + CELL / 2 - 1)
                sheet.text(*middle, f"{100 * share:.0f}", colour=colour, bold=row == column, anchor="mm")
    return sheet


def _draw_list(matrix: Tensor, names: list[str], protocol: str) -> Sheet:
    """The most frequent confusions as bars."""
    accuracy = matrix.diagonal().sum().item() / matrix.sum().item()
    wrong = matrix - torch.diag(matrix.diagonal())
    counts, places = wrong.flatten().topk(min(LISTED, int((wrong > 0).sum())))
    title = f"{accuracy:.1%} of {int(matrix.sum()):,} images are classified right"
    subtitle = f"{len(matrix)} classes; the {len(counts)} most frequent confusions. {protocol}"
    texts = []
    for place in places.tolist():
        true, taken = divmod(place, len(matrix))
        texts.append((shorten(names[true], NAME + 50), shorten(names[taken], NAME + 50), int(matrix[true].sum())))
    first, second = (max((text_width(text[side]) for text in texts), default=0) for side in (0, 1))
    start = MARGIN + first + 44 + second + 20
    total = start + 260 + 190
    top = heading_height(title, subtitle, total) + 28
    height = 26
    sheet = Sheet(total, top + len(texts) * height + MARGIN)
    y = sheet.heading(title, subtitle)
    sheet.text(MARGIN, y, "true class", bold=True)
    sheet.text(MARGIN + first + 44, y, "taken for", bold=True)
    largest = max(counts.tolist(), default=1)
    for number, (count, (true, taken, of)) in enumerate(zip(counts.tolist(), texts, strict=True)):
        y = top + number * height + height / 2
        sheet.text(MARGIN, y, true, anchor="lm")
        sheet.arrow(MARGIN + first + 10, y, MARGIN + first + 34, width=2)
        sheet.text(MARGIN + first + 44, y, taken, anchor="lm")
        length = max(2, round(260 * count / largest))
        sheet.box(start, y - 8, length, 16, WRONG)
        sheet.text(start + length + 8, y, f"{count:,} of {of:,} ({count / of:.0%})", CAPTION, MUTED, anchor="lm")
    if not texts:
        sheet.text(MARGIN, top, "no confusions", colour=RIGHT)
    return sheet


def _shade(share: float) -> str:
    """From white for 0 to blue for 1."""
    full = ImageColor.getrgb(TRAINED)
    red, green, blue = (round(247 + (value - 247) * share**0.8) for value in full)
    return f"#{red:02x}{green:02x}{blue:02x}"


class ConfusionFigure(Evaluator):
    """The picture of ``show_confusion`` during a run; there is nothing to compute.

    Args:
        classify: from (train features, test features) to a ``Classification``.
        train: labelled images that the classifier is fitted to.
        test: labelled images of the same classes, which are classified.
        every: epochs from one picture to the next.
    """

    name, higher_is_better = "confusion_figure", None

    def __init__(self, classify: Callable[..., Classification], train: object, test: object, every: int = 1) -> None:
        super().__init__(every)
        self.classify, self.train, self.test = classify, train, test

    def open(self, subject: Subject) -> None:
        """Opens the images."""
        self.images = subject.open(self.train), subject.open(self.test)

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """Nothing: this evaluator only draws."""
        return {}

    def figure(self, subject: Subject, path: Path) -> Path:
        """Writes the picture."""
        return show_confusion(self.classify(*(subject.features(images) for images in self.images)), path)
