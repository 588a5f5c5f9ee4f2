"""From views to features to neighbours: what self-supervised training does, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superself.augment.recipes import recipe
from superself.basics.drawing import (
    CAPTION,
    COLOURS,
    HEADING,
    MARGIN,
    MUTED,
    RIGHT,
    RULE,
    TITLE,
    TRAINED,
    UNTRAINED,
    WRONG,
    Sheet,
    shorten,
    text_width,
)
from superself.basics.pictures import to_picture
from superself.data import Images, to_float
from superself.evaluation.extraction import Features
from superself.evaluation.pictures.map import OTHER, draw_dots, map_of
from superself.evaluation.pictures.neighbours import COUNTED, find_neighbours, share_right, spread_over_classes
from superself.evaluation.pictures.shared import classes_of, features_of_both, open_for, places_of

WIDTH = 1200
CELL, GAP = 52, 8  # pixels of the longer side of an image, and between images
QUERIES, NEIGHBOURS, VIEWS = 3, 8, 3
MAP = 250  # pixels of its width
MUCH = 56  # pixels that an arrow takes
CANDIDATES = 16  # images, of different classes where possible, of which those with contrast are shown
HEAD = 30  # pixels above the rows of a network
BETWEEN = 12  # pixels between the networks
QUERY_COLOURS = (COLOURS[0], COLOURS[3], "#f0c000")  # of the classes of the queries on the map
CONSIDERED = 1000  # images of a class of which one becomes a query
COUNT_ALL = 10_000  # images up to which the neighbours of all are counted; 2,000 of more


class Shown(NamedTuple):
    """What the picture shows.

    Args:
        images: the data set.
        found: the features of both networks by their captions.
        places: of the rows of the features in the data set (N,).
        known: classes and their names; None without labels.
        queries: rows of the features (Q,), each of another class.
        colours: of the classes of the queries.
    """

    images: Images
    found: dict[str, Features]
    places: Tensor
    known: tuple[Tensor, list[str]] | None
    queries: Tensor
    colours: dict[int, str]


class Layout(NamedTuple):
    """Pixels: size of an image, the left of each of the three steps, the first row of a network, and a network's height."""

    width: int
    height: int
    lefts: tuple[int, int, int]
    top: int
    band: int

    @property
    def bottom(self) -> int:
        """Below the second network."""
        return self.top + 2 * self.band + BETWEEN


def show_overview(
    backbone: nn.Module,
    dataset: Any,
    path: str | Path,
    random: nn.Module | Literal[True] = True,
    augment: Any = "simclr",
    method: str = "tsne",
    limit: int = 1000,
    title: str = "Learning to see without labels",
    seed: int = 0,
    classes: Sequence[str | int] | None = None,
) -> Path:
    """Writes a PNG of 1200 pixels: views of a few images, a map of the features, and nearest neighbours.

    Map and neighbours are shown for the trained network, and below for the same network with random weights.

    With labels there is a query for each of up to three classes: the image whose number of right neighbours is closest to the
    average of its class, by both networks at once (the sum of the two differences), and among equal ones the image in the
    middle of its class. So the queries are typical and favour neither network. The share of right neighbours over all images
    (up to 10,000; 2,000 of more) is written above the neighbours, and that of chance below. Without labels the queries are
    drawn at random from images with contrast.

    Args:
        backbone: the trained one; any module that ``features`` takes.
        dataset: anything that ``features`` takes; with labels, points and frames are coloured and neighbours counted.
        path: of the PNG; missing folders are created.
        random: True for the same network with fresh weights; or a module.
        augment: the augmentation of the views, anything that ``recipe`` takes.
        method: of the map, as for ``show_map``.
        limit: largest number of points on the map.
        title: above the picture.
        seed: of the random weights, the views and the map.
        classes: names or numbers of the classes of the queries, three at most; None for the first three that have images.
    Raises:
        ValueError: if there are fewer than 9 readable images, a class has none, or the backbone cannot be initialised again.
    """
    images, preprocessing = open_for(backbone, dataset)
    found = features_of_both(backbone, random, images, preprocessing, seed)
    first = found["trained"]
    if len(first) <= NEIGHBOURS:
        raise ValueError(
            f"the picture needs at least {NEIGHBOURS + 1} images, got {len(first)}; pass a larger data set."
        )
    places, known = places_of(first, images), classes_of(first, images)
    order = _contrasts_first(spread_over_classes(len(first), known and known[0])[:CANDIDATES], places, images)
    if known is None and classes is not None:
        raise ValueError(
            f"classes={list(classes)!r} need images with class labels; pass labelled images or no classes."
        )
    queries = order[:QUERIES] if known is None else typical_of_classes(found, known, classes)
    colours = {} if known is None else dict(zip(known[0][queries].tolist(), QUERY_COLOURS, strict=False))
    shown = Shown(images, found, places, known, queries, colours)

    layout = _layout(images)
    sheet = Sheet(WIDTH, layout.bottom + (MARGIN if known is None else 58))
    sheet.text(MARGIN, MARGIN - 6, title, 26, bold=True)
    dots = min(limit, len(first))
    _heads(sheet, layout, dots, len(colours))
    rows = torch.cat([queries, order[~torch.isin(order, queries)]])
    rows = rows[: max(1, (layout.bottom - layout.top + GAP) // (layout.height + GAP))]
    _draw_views(sheet, images.batch(places[rows]).images.cpu(), augment, layout, seed)
    for number, name in enumerate(found):
        _draw_network(sheet, shown, name, layout, number, (method, dots, seed))
    if known is not None:
        _foot(sheet, shown, layout.bottom + 12)
    return sheet.save(path, shades=23)


def typical_of_classes(
    found: dict[str, Features], known: tuple[Tensor, list[str]], classes: Sequence[str | int] | None = None
) -> Tensor:
    """Of each class the image whose number of right neighbours, by each network, is closest to the average of the class.

    Of equal ones it is the image closest to the mean of its class in the features of all networks, each divided by its
    length, and joined. Of a class with more than 1000 images, 1000 are considered.

    Args:
        found: features of the same N images by several networks.
        known: the class of each image (N,), and the names.
        classes: names or numbers, up to three; None for the first three that have images.
    Returns:
        The rows (Q,), in the order of ``classes``.
    Raises:
        ValueError: if a class has no images, is named twice, or there are none or more than three.
    """
    labels, names = known
    present = labels.unique().tolist()
    wanted = present[:QUERIES]
    if classes is not None:
        wanted = [names.index(one) if isinstance(one, str) and one in names else one for one in classes]
        if not 1 <= len(wanted) <= QUERIES or len(set(wanted)) < len(wanted) or not set(wanted) <= set(present):
            have = ", ".join(names[one] for one in present[:10]) + (", ..." if len(present) > 10 else "")
            raise ValueError(
                f"classes={list(classes)!r} must be 1 to {QUERIES} different classes that have images; there are {have}."
            )
    joined = torch.cat([F.normalize(one.features, dim=1) for one in found.values()], 1)  # (N, sum of D)
    queries = []
    for one in wanted:
        rows = (labels == one).nonzero()[:, 0]
        rows = rows[torch.linspace(0, len(rows) - 1, min(CONSIDERED, len(rows))).round().long()]
        rows = rows[(joined[rows] - joined[rows].mean(0)).norm(dim=1).argsort(stable=True)]
        right = [(labels[find_neighbours(by, rows, NEIGHBOURS).rows] == one).sum(1).double() for by in found.values()]
        queries.append(rows[sum((count - count.mean()).abs() for count in right).argmin()])
    return torch.stack(queries)


def _contrasts_first(rows: Tensor, places: Tensor, images: Images) -> Tensor:
    """The rows, with the half whose images have less contrast last: of a dark or flat image, a reader would see little."""
    contrasts = to_float(images.batch(places[rows]).images.cpu()).flatten(1).std(1)
    return rows[(contrasts < contrasts.median()).long().argsort(stable=True)]


def _layout(images: Images) -> Layout:
    height, width = (max(1, round(CELL * side / max(images.shape[1:]))) for side in images.shape[1:])
    of_map = MARGIN + (1 + VIEWS) * (width + GAP) + MUCH
    band = QUERIES * (height + GAP) - GAP + HEAD  # the caption of a network, and the rows of its neighbours
    return Layout(width, height, (MARGIN, of_map, of_map + MAP + MUCH), MARGIN + 88, band)


def _heads(sheet: Sheet, layout: Layout, dots: int, classes: int) -> None:
    """The captions of the three steps."""
    coloured = f", {classes} {'class' if classes == 1 else 'classes'} coloured" if classes else ""
    texts = (
        ("1  Views", [("random changes of each image", MUTED)]),
        ("2  Features", [(f"{dots:,} images{coloured}", MUTED)]),
        ("3  Nearest neighbours", [("query, and the images with the most similar features", MUTED)]),
    )
    if classes:
        texts[2][1][:] = [
            ("query, and its most similar images:", MUTED),
            ("its class", RIGHT),
            ("another class", WRONG),
        ]
    for (title, parts), left in zip(texts, layout.lefts, strict=True):
        sheet.text(left, MARGIN + 34, title, TITLE - 2, bold=True)
        _write(sheet, left, MARGIN + 61, parts, 14)


def _write(sheet: Sheet, left: float, y: float, parts: list[tuple[str, str]], gap: int = 5) -> None:
    """Texts in one line, each in its colour; those that are not muted are bold."""
    for text, colour in parts:
        sheet.text(left, y, text, CAPTION, colour, bold=colour != MUTED)
        left += text_width(text, bold=colour != MUTED) + gap


def _foot(sheet: Sheet, shown: Shown, y: int) -> None:
    """How the queries were chosen, their classes, and the share that chance would give."""
    labels, names = shown.known
    counts = labels.bincount().double()
    chance = float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))
    parts = [("Queries:", MUTED)]
    parts += [(shorten(names[one], 100, bold=True), colour) for one, colour in shown.colours.items()]
    text = f"- typical images: as many right neighbours as their class has on average. Chance: {chance:.0%} right."
    _write(sheet, MARGIN, y, [*parts, (text, MUTED)])


def _draw_network(
    sheet: Sheet, shown: Shown, name: str, layout: Layout, number: int, of_map: tuple[str, int, int]
) -> None:
    """The map of a network (by method, number of dots and seed), the share of right neighbours, and those of the queries."""
    one, (_, left_of_map, left) = shown.found[name], layout.lefts
    y, colour = layout.top + number * (layout.band + BETWEEN), UNTRAINED if number else TRAINED
    sheet.text(left_of_map, y, name if number else "after training", HEADING - 1, colour, bold=True, width=MAP + MUCH)
    method, count, seed = of_map
    rows = torch.linspace(0, len(one) - 1, count).round().long()
    colours = [shown.colours.get(label, OTHER) for label in shown.known[0][rows].tolist()] if shown.known else []
    dots = draw_dots(map_of(one.features[rows], method, seed).places, colours, (MAP, layout.band - HEAD), 9, 3)
    sheet.picture(left_of_map, y + HEAD, dots, RULE, 1)
    middle = y + HEAD + (layout.band - HEAD) / 2
    sheet.arrow(left_of_map - MUCH + 14, middle, left_of_map - 12)
    sheet.arrow(left_of_map + MAP + 12, middle, left - 14)
    if shown.known is not None:
        counted = len(one) if len(one) <= COUNT_ALL else COUNTED
        share = share_right(one, shown.known[0], NEIGHBOURS, counted)
        over = f"all {len(one):,} images" if counted == len(one) else f"{counted:,} of {len(one):,} images"
        text = f"{over}: {share:.0%} of neighbours are right"
        sheet.text(left, y, text, HEADING - 1, colour, bold=True, width=WIDTH - left)
    _draw_neighbours(sheet, shown, one, y + HEAD, layout)


def _draw_views(sheet: Sheet, images: Tensor, augment: Any, layout: Layout, seed: int) -> None:
    """A row for each image: the original and its views."""
    transform = recipe(augment, tuple(images.shape[2:]))
    generator = torch.Generator().manual_seed(seed)
    views: list[Tensor] = []
    while len(views) < VIEWS:
        made = transform(images, generator)
        views += [to_float(view) for view in (made if isinstance(made, (list, tuple)) else [made])]
    columns = [images, *((255 * view.clamp(0, 1)).byte() for view in views[:VIEWS])]
    step = (layout.bottom - layout.top - layout.height) / max(1, len(images) - 1)
    for column, shown in enumerate(columns):
        for row, image in enumerate(shown):
            x = MARGIN + column * (layout.width + GAP) + (6 if column else 0)
            sheet.picture(x, layout.top + row * step, to_picture(image, layout.width, layout.height))


def _draw_neighbours(sheet: Sheet, shown: Shown, found: Features, top: int, layout: Layout) -> None:
    """A row for each query: the image in the colour of its class on the map, and its neighbours, right or wrong."""
    nearest = find_neighbours(found, shown.queries, NEIGHBOURS).rows
    for number, query in enumerate(shown.queries.tolist()):
        y = top + number * (layout.height + GAP)
        for column, row in enumerate([query, *nearest[number].tolist()]):
            x = layout.lefts[2] + column * (layout.width + GAP) + (16 if column else 0)
            frame = None
            if shown.known is not None:
                of, wanted = int(shown.known[0][row]), int(shown.known[0][query])
                frame = shown.colours[wanted] if column == 0 else RIGHT if of == wanted else WRONG
            picture = to_picture(shown.images.batch(shown.places[row].view(1)).images[0], layout.width, layout.height)
            sheet.picture(x, y, picture, frame, 3)
