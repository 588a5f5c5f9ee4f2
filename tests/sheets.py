"""Reads the pictures in a sheet that ``write_pictures`` wrote with captions."""

import numpy as np
from PIL import Image

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
