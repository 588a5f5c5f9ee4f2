"""Reads the pictures in a sheet that has captions."""

import numpy as np
from PIL import Image
from scipy import ndimage

from superself.basics.drawing import MARGIN, text_width
from superself.basics.pictures import SPACE


def cells(path, rows, columns, label=None):
    """The pictures (side, side, 3) of a sheet as a list of rows; ``label`` is the longest label of a row."""
    sheet = np.asarray(Image.open(path))
    start = MARGIN if label is None else MARGIN + text_width(label) + 12
    below = sheet.shape[0] - MARGIN
    side = next(s for s in range(128, 0, -1) if start + columns * (s + SPACE) - SPACE <= sheet.shape[1] - MARGIN)
    step = side + SPACE
    top = below - rows * step + SPACE
    return [
        [sheet[top + row * step :][:side, start + column * step :][:, :side] for column in range(columns)]
        for row in range(rows)
    ]


def areas(sheet, colour):
    """The boxes (left, top, right, bottom) of the connected areas of exactly one colour, without tiny ones."""
    found, _ = ndimage.label((np.asarray(sheet) == colour).all(2))
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(found)]
    return [box for box in boxes if min(box[2] - box[0], box[3] - box[1]) >= 8]


def rows_of_colours(sheet, colours):
    """Where images of one colour each stand: a list of rows, each of (image, frame) from left to right.

    ``image`` is the index into ``colours``, and ``frame`` the colour next to the image at its left.
    """
    sheet = np.asarray(sheet)
    places = {box: k for k, colour in enumerate(colours) for box in areas(sheet, colour)}
    rows = {}
    for (left, top, _, _), k in sorted(places.items()):
        rows.setdefault(top, []).append((k, tuple(sheet[top + 4, left - 2].tolist())))
    return [rows[top] for top in sorted(rows)]
