"""From views to features to neighbours: what self-supervised training does, in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
    text_width,
)
from superself.basics.pictures import to_picture
from superself.data import Images, to_float
from superself.evaluation.extraction import Features
from superself.evaluation.pictures.map import OTHER, draw_dots, map_of
from superself.evaluation.pictures.neighbours import find_neighbours, share_right, spread_over_classes
from superself.evaluation.pictures.shared import classes_of, features_of_both, open_for, places_of

WIDTH = 1200
CELL, GAP = 52, 8  # pixels of the longer side of an image, and between images
QUERIES, NEIGHBOURS, VIEWS = 3, 8, 3
MAP = 250  # pixels of its width
MUCH = 56  # pixels that an arrow takes
CANDIDATES = 16  # images, of different classes where possible, of which those with contrast are shown
HEAD = 30  # pixels above the rows of a network
QUERY_COLOURS = (COLOURS[0], COLOURS[3], "#f0c000")  # of the classes of the queries on the map


def show_overview(
    backbone: nn.Module,
    dataset: Any,
    path: str | Path,
    random: nn.Module | bool = True,
    augment: Any = "simclr",
    method: str = "tsne",
    limit: int = 1000,
    title: str = "Learning to see without labels",
    seed: int = 0,
) -> Path:
    """Writes a PNG of 1200 pixels: views of a few images, a map of the features, and nearest neighbours.

    Map and neighbours are shown for the trained network, and below for the same network with random weights.

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
    Raises:
        ValueError: if there are fewer than 7 readable images, or the backbone cannot be initialised again.
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
    height, width = (max(1, round(CELL * side / max(images.shape[1:]))) for side in images.shape[1:])
    step = height + GAP
    band = QUERIES * step - GAP + HEAD  # a network: its caption and the rows of its neighbours
    top = MARGIN + 88
    sheet = Sheet(WIDTH, top + len(found) * (band + 18) - 18 + MARGIN)
    sheet.text(MARGIN, MARGIN - 6, title, 26, bold=True)
    left_of_map = MARGIN + (1 + VIEWS) * (width + GAP) + MUCH
    left = left_of_map + MAP + MUCH
    bottom = sheet.image.height - MARGIN
    _heads(sheet, (MARGIN, left_of_map, left), known is not None)
    shown = order[: max(1, (bottom - top + GAP) // step)]
    _draw_views(sheet, images.batch(places[shown]).images.cpu(), augment, (width, height), (top, bottom), seed)

    rows = torch.linspace(0, len(first) - 1, min(limit, len(first))).round().long()
    query_colours: dict[int, str] = {}
    if known is not None:
        for query in order[:QUERIES]:
            query_colours.setdefault(int(known[0][query]), QUERY_COLOURS[len(query_colours)])
    colours = [query_colours.get(label, OTHER) for label in known[0][rows].tolist()] if known is not None else []
    for number, one in enumerate(found.values()):
        y = top + number * (band + 18)
        colour = TRAINED if number == 0 else UNTRAINED
        points = map_of(one.features[rows], method, seed).places
        caption = "after training" if number == 0 else "random weights"
        sheet.text(left_of_map, y, caption, HEADING - 1, colour, bold=True, width=MAP + MUCH)
        dots = draw_dots(points, colours, (MAP, band - HEAD), 9, 3)
        sheet.picture(left_of_map, y + HEAD, dots, RULE, 1)
        middle = y + HEAD + (band - HEAD) / 2
        sheet.arrow(left_of_map - MUCH + 14, middle, left_of_map - 12)
        sheet.arrow(left_of_map + MAP + 12, middle, left - 14)
        if known is not None:
            share = share_right(one, known[0], NEIGHBOURS)
            text = f"{share:.0%} of the neighbours show the query's class"
            sheet.text(left, y, text, HEADING - 1, colour, bold=True, width=WIDTH - left)
        _draw_neighbours(
            sheet, one, order[:QUERIES], places, images, known, (left, y + HEAD), (width, height), query_colours
        )
    return sheet.save(path, shades=25)


def _contrasts_first(rows: Tensor, places: Tensor, images: Images) -> Tensor:
    """The rows, with the half whose images have less contrast last: of a dark or flat image, a reader would see little."""
    contrasts = to_float(images.batch(places[rows]).images.cpu()).flatten(1).std(1)
    return rows[(contrasts < contrasts.median()).long().argsort(stable=True)]


def _heads(sheet: Sheet, lefts: tuple[int, int, int], with_classes: bool) -> None:
    """The captions of the three steps."""
    texts = (
        ("1  Views", [("random changes of each image", MUTED)]),
        ("2  Features", [("a dot per image" + (", 3 classes coloured" if with_classes else ""), MUTED)]),
        ("3  Nearest neighbours", [("query, and the images with the most similar features", MUTED)]),
    )
    if with_classes:
        texts[2][1][:] = [
            ("query, and its most similar images:", MUTED),
            ("its class", RIGHT),
            ("another class", WRONG),
        ]
    for (title, parts), left in zip(texts, lefts, strict=True):
        sheet.text(left, MARGIN + 34, title, TITLE - 2, bold=True)
        for text, colour in parts:
            sheet.text(left, MARGIN + 61, text, CAPTION, colour, bold=colour != MUTED)
            left += text_width(text, bold=colour != MUTED) + 14


def _draw_views(
    sheet: Sheet, images: Tensor, augment: Any, size: tuple[int, int], between: tuple[int, int], seed: int
) -> None:
    """A row for each image: the original and its views."""
    transform = recipe(augment, tuple(images.shape[2:]))
    generator = torch.Generator().manual_seed(seed)
    views: list[Tensor] = []
    while len(views) < VIEWS:
        made = transform(images, generator)
        views += [to_float(view) for view in (made if isinstance(made, (list, tuple)) else [made])]
    columns = [images, *((255 * view.clamp(0, 1)).byte() for view in views[:VIEWS])]
    top, step = between[0], (between[1] - between[0] - size[1]) / max(1, len(images) - 1)
    for column, shown in enumerate(columns):
        for row, image in enumerate(shown):
            x = MARGIN + column * (size[0] + GAP) + (6 if column else 0)
            sheet.picture(x, top + row * step, to_picture(image, *size))


def _draw_neighbours(
    sheet: Sheet,
    found: Features,
    queries: Tensor,
    places: Tensor,
    images: Images,
    known: tuple[Tensor, list[str]] | None,
    corner: tuple[int, int],
    size: tuple[int, int],
    colours: dict[int, str],
) -> None:
    """A row for each query: the image in the colour of its class on the map, and its neighbours, right or wrong."""
    nearest = find_neighbours(found, queries, NEIGHBOURS).rows
    for number, query in enumerate(queries.tolist()):
        y = corner[1] + number * (size[1] + GAP)
        for column, row in enumerate([query, *nearest[number].tolist()]):
            x = corner[0] + column * (size[0] + GAP) + (16 if column else 0)
            frame = None
            if known is not None:
                of, wanted = int(known[0][row]), int(known[0][query])
                frame = colours[wanted] if column == 0 else RIGHT if of == wanted else WRONG
            picture = to_picture(images.batch(places[row].view(1)).images[0], *size)
            sheet.picture(x, y, picture, frame, 3)
