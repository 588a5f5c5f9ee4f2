"""The images that a backbone finds most similar to a few query images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superself.basics.drawing import (
    CAPTION,
    HEADING,
    INK,
    MARGIN,
    MUTED,
    RIGHT,
    RULE,
    TRAINED,
    UNTRAINED,
    WRONG,
    Sheet,
    heading_height,
    line_height,
    text_width,
)
from superself.basics.pictures import to_picture
from superself.data import Images
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.extraction import Features
from superself.evaluation.pictures.shared import (
    classes_of,
    features_of_both,
    open_for,
    open_for_figure,
    places_of,
    untrained_features,
)
from superself.evaluation.subject import Subject

CELL = 84  # pixels of the longer side of an image
GAP = 14  # pixels between images, of which frames take 4 on each side
COSINES = 2**24  # computed at a time, 64 MiB
COUNTED = 2000  # queries of which the share of right neighbours is counted


class Neighbours(NamedTuple):
    """The nearest neighbours of some images: rows of the features (Q, K), and their cosines with the query (Q, K)."""

    rows: Tensor
    cosines: Tensor


def show_neighbours(
    backbone: nn.Module,
    dataset: Any,
    path: str | Path,
    queries: int = 8,
    neighbours: int = 8,
    random: nn.Module | bool | None = None,
) -> Path:
    """Writes a PNG: query images, each with the images whose features are most similar by cosine.

    The queries are drawn from the data set, the same ones at every call, and from as many classes as possible. Where there
    are labels, a green frame is a neighbour of the query's class and an orange one of another class; the title has the
    share of right ones among the neighbours of up to 2000 images. Images with more than three channels show the first
    three, images with two the first. Images that are not uint8 are stretched from their minimum to their maximum.
    Unreadable images are left out.

    Args:
        backbone: any module that ``features`` takes.
        dataset: anything that ``features`` takes.
        path: of the PNG; missing folders are created.
        queries: how many query images.
        neighbours: images per query, the most similar first, without the query itself.
        random: True for a second row with the neighbours by the same network with random weights; or a module.
    Returns:
        ``path``.
    Raises:
        ValueError: if the data set has fewer readable images than ``queries``, or no more than ``neighbours``.
    """
    images, preprocessing = open_for(backbone, dataset)
    found = features_of_both(backbone, random, images, preprocessing)
    return draw_neighbours(found, images, path, queries, neighbours)


def query_fig(
    backbone: nn.Module,
    dataset: Any,
    path: str | Path,
    neighbours: int = 8,
    random: nn.Module | bool | None = None,
    classes: int = 12,
) -> Path:
    """Writes a PNG: one image of each class and the images whose features are most similar by cosine.

    It is ``show_neighbours`` with one query per class, in the order of the classes.

    Args:
        backbone: any module that ``features`` takes.
        dataset: labelled images; anything that ``features`` takes.
        path: of the PNG; missing folders are created.
        neighbours: images per query.
        random: True for a second row with the neighbours by the same network with random weights; or a module.
        classes: largest number of classes that are shown, spread evenly over all.
    Raises:
        ValueError: if the images have no classes, or are no more than ``neighbours``.
    """
    images, preprocessing = open_for(backbone, dataset)
    found = features_of_both(backbone, random, images, preprocessing)
    known = classes_of(found["trained"], images)
    if known is None:
        raise ValueError(
            "query_fig shows one image of each class, and the images have no class labels; pass labelled images, such as "
            '"imagefolder:PATH", or use show_neighbours.'
        )
    first = spread_over_classes(len(known[0]), known[0])[: len(known[0].unique())]
    first = first[known[0][first].argsort()]
    if len(first) > classes:
        first = first[torch.linspace(0, len(first) - 1, classes).round().long()]
    return draw_neighbours(found, images, path, len(first), neighbours, first)


def find_neighbours(found: Features, rows: Tensor, count: int) -> Neighbours:
    """The ``count`` most similar images by cosine of each of some images, without the image itself.

    Args:
        found: readable features (N, D).
        rows: (Q,) of the features.
        count: neighbours of each.
    """
    directions = F.normalize(found.features, dim=1)  # (N, D)
    parts = []
    for part in rows.split(max(1, COSINES // len(found))):
        cosines = directions[part] @ directions.T  # (q, N)
        cosines[torch.arange(len(part)), part] = -torch.inf
        parts.append(cosines.topk(count))
    return Neighbours(torch.cat([p.indices for p in parts]), torch.cat([p.values for p in parts]))


def share_right(found: Features, labels: Tensor, count: int, queries: int = COUNTED) -> float:
    """The share of the ``count`` nearest neighbours that have the query's class, over up to ``queries`` queries."""
    rows = torch.linspace(0, len(found) - 1, min(queries, len(found))).round().long()
    nearest = find_neighbours(found, rows, count).rows
    return float((labels[nearest] == labels[rows, None]).float().mean())


def draw_neighbours(
    found: dict[str, Features],
    images: Images,
    path: str | Path,
    queries: int,
    neighbours: int,
    rows: Tensor | None = None,
) -> Path:
    """The picture of ``show_neighbours`` from features that are known.

    Args:
        found: features of the same images by one or several networks, by their captions.
        images: the data set.
        path: of the PNG.
        queries: how many query images.
        neighbours: images per query.
        rows: of the features, to be the queries; None draws them.
    """
    first = next(iter(found.values()))
    count = len(first)
    if not (1 <= queries <= count and 1 <= neighbours < count):
        raise ValueError(
            f"queries={queries} and neighbours={neighbours} do not fit the {count} available images; "
            f"pass queries from 1 to {count} and neighbours from 1 to {count - 1}."
        )
    known = classes_of(first, images)
    if rows is None:
        rows = spread_over_classes(count, known and known[0])[:queries]
    nearest = {name: find_neighbours(one, rows, neighbours) for name, one in found.items()}
    shares = {} if known is None else {name: share_right(one, known[0], neighbours) for name, one in found.items()}
    places = places_of(first, images)
    return _draw(nearest, rows, places, images, known, _texts(shares, neighbours, count)).save(path)


def spread_over_classes(count: int, labels: Tensor | None) -> Tensor:
    """A random order of the images, the same at every call; with labels, an image of each class comes first."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    if labels is None:
        return order
    seen: dict[int, int] = {}
    turn = []
    for label in labels[order].tolist():
        turn.append(seen.setdefault(label, 0))
        seen[label] += 1
    return order[torch.tensor(turn).argsort(stable=True)]


def _texts(shares: dict[str, float], neighbours: int, count: int) -> tuple[str, str]:
    """Title and subtitle."""
    if not shares:
        return (
            "Nearest neighbours",
            f"The most similar of {count:,} images by the cosine of their features, given below each.",
        )
    same = " · ".join(f"{name} {share:.0%}" for name, share in shares.items())
    title = f"Neighbours of the same class: {same}"
    if len(shares) == 1:
        title = f"{next(iter(shares.values())):.0%} of the neighbours show the query's class"
    counted = f"{min(COUNTED, count):,} of {count:,}" if count > COUNTED else f"all {count:,}"
    return (
        title,
        f"Share of the {neighbours} most similar images by cosine, for {counted} images. Frames: green is the query's class, "
        "orange another. Below: class and cosine.",
    )


def _draw(
    nearest: dict[str, Neighbours],
    queries: Tensor,
    places: Tensor,
    images: Images,
    known: tuple[Tensor, list[str]] | None,
    texts: tuple[str, str],
) -> Sheet:
    height, width = (max(1, round(CELL * side / max(images.shape[1:]))) for side in images.shape[1:])
    several = len(nearest) > 1
    block = height + 6 + line_height(CAPTION) * (1 if known is None else 2) + 10  # a row of neighbours with captions
    large = 1.5 if several else 1
    label = max(text_width(name, bold=True) for name in nearest) + 14 if several else 10
    left = MARGIN + round(large * width) + 2 * GAP + label  # of the first neighbour
    across = next(iter(nearest.values())).rows.shape[1]
    total = max(left + across * (width + GAP) - GAP + MARGIN, 420)
    top = heading_height(*texts, total) + line_height(HEADING) + 10
    sheet = Sheet(total, top + len(queries) * (len(nearest) * block + (14 if several else 4)) + MARGIN - 14)
    y = sheet.heading(*texts)
    sheet.text(MARGIN, y, "query", HEADING, bold=True)
    sheet.text(left, y, "most similar first", HEADING, bold=True, width=total - left)
    for number, query in enumerate(queries.tolist()):
        y = top + number * (len(nearest) * block + (14 if several else 4))
        if several and number:
            sheet.line(MARGIN, y - 9, total - MARGIN, y - 9, RULE)
        shown = _picture(images, places[query], round(large * width), round(large * height))
        sheet.picture(MARGIN, y, shown)
        if known is not None:
            sheet.text(
                MARGIN, y + shown.height + 6, known[1][known[0][query]], bold=True, width=left - MARGIN - label - 8
            )
        for name, found in nearest.items():
            if several:
                _label(sheet, left - label, y, name, found.rows[number], query, known)
            for column, (row, cosine) in enumerate(
                zip(found.rows[number].tolist(), found.cosines[number].tolist(), strict=True)
            ):
                x = left + column * (width + GAP)
                _neighbour(sheet, x, y, _picture(images, places[row], width, height), cosine, row, query, known)
            y += block
    return sheet


def _label(
    sheet: Sheet, x: int, y: int, name: str, rows: Tensor, query: int, known: tuple[Tensor, list[str]] | None
) -> None:
    """Which network a row of neighbours is by, and how many of them have the query's class."""
    sheet.text(x, y + 8, name, CAPTION, TRAINED if name == "trained" else UNTRAINED, bold=True)
    if known is not None:
        right = int((known[0][rows] == known[0][query]).sum())
        sheet.text(x, y + 8 + line_height(CAPTION), f"{right} of {len(rows)} right", CAPTION, MUTED)


def _neighbour(
    sheet: Sheet,
    x: int,
    y: int,
    picture: Any,
    cosine: float,
    row: int,
    query: int,
    known: tuple[Tensor, list[str]] | None,
) -> None:
    """One neighbour with its frame and captions."""
    below = y + picture.height + 6
    if known is None:
        sheet.picture(x, y, picture)
    else:
        labels, names = known
        right = bool(labels[row] == labels[query])
        sheet.picture(x, y, picture, RIGHT if right else WRONG)
        sheet.text(x, below, names[labels[row]], CAPTION, INK if right else WRONG, width=picture.width + GAP - 4)
        below += line_height(CAPTION)
    sheet.text(x, below, f"{cosine:.2f}", CAPTION, MUTED)


def _picture(images: Images, place: Tensor, width: int, height: int) -> Any:
    return to_picture(images.batch(place.view(1)).images[0], width, height)


class NeighboursFigure(Evaluator):
    """The picture of ``show_neighbours`` during a run; there is nothing to compute.

    Args:
        dataset: images to show, best with labels; None for those that the backbone is trained on.
        queries: how many query images.
        neighbours: images per query.
        random: True for a second row with the neighbours by the network with random weights.
        every: epochs from one picture to the next.
    """

    name, higher_is_better = "neighbours_figure", None

    def __init__(
        self, dataset: Any = None, queries: int = 8, neighbours: int = 8, random: bool = False, every: int = 1
    ) -> None:
        super().__init__(every)
        self.dataset, self.queries, self.neighbours, self.random = dataset, queries, neighbours, random
        self._untrained: Features | None = None

    def open(self, subject: Subject) -> None:
        """Opens the images."""
        self._untrained = None
        self.images = open_for_figure(subject, self.dataset, self.name)

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """Nothing: this evaluator only draws."""
        return {}

    def figure(self, subject: Subject, path: Path) -> Path:
        """Writes the picture."""
        found = {"trained": subject.features(self.images)}
        if self.random:
            if self._untrained is None:
                self._untrained = untrained_features(subject, self.images)
            found["random weights"] = self._untrained
        return draw_neighbours(found, self.images, path, self.queries, self.neighbours)
