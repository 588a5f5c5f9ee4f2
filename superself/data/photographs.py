"""Small labelled images, cut from the photographs that scikit-image and scikit-learn contain."""

from __future__ import annotations

from importlib.util import find_spec  # finds the packages without importing them, which takes a second
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from superself.basics.validate import require_choice, require_count
from superself.data.decode import FORMATS
from superself.data.images import Images
from superself.data.sources import TensorSource

FOLDERS = {"skimage": ("data",), "sklearn": ("datasets", "images")}  # in the packages
PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "china.jpg", "coffee.png", "coins.png", "flower.jpg"),
    *("grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg"),
    "rocket.jpg",
)
COUNTS = {"train": 3600, "test": 1200}
GRID = 4  # each photograph is divided into GRID x GRID blocks
TEST_BLOCKS = ((0, 1), (1, 3), (2, 0), (3, 2))  # one in every row and column
FLAT = 4.0  # a patch whose pixels vary less (standard deviation, of 255) shows nothing and is drawn again


def photos(split: str = "train", size: int = 64, count: int | None = None) -> Images:
    """Patches of photographs, for demonstrations and tests without a download; the label is the photograph.

    Each photograph is divided into 4 x 4 blocks, a quarter of which are for testing. A patch lies within one block, so
    that no pixel is in both splits. Its side is between half and all of the block's shorter side, at random; the patch
    is resized to ``size``. Grey photographs are repeated in three channels.

    Args:
        split: "train" or "test".
        size: height and width of the patches.
        count: number of patches, divided among the photographs as equally as possible; None: 3600 and 1200.
    """
    require_choice("split", split, COUNTS)
    require_count("size", size, "is the height and width of the patches in pixels")
    count = COUNTS[split] if count is None else count
    require_count("count", count, "is the number of patches")
    folders = [Path(find_spec(package).origin).parent.joinpath(*parts) for package, parts in FOLDERS.items()]
    files = [folder / name for name in PHOTOGRAPHS for folder in folders if (folder / name).is_file()]
    each = -(-count // len(files))
    images = [np.array(Image.open(file, formats=FORMATS).convert("RGB")) for file in files]
    cut = [cut_patches(image, split, each, size, seed) for seed, image in enumerate(images)]
    patches = np.stack(cut, axis=1).reshape(-1, size, size, 3)[:count]  # photographs take turns
    data = torch.from_numpy(patches).permute(0, 3, 1, 2).contiguous()
    return Images(TensorSource(data, torch.arange(count) % len(files), [file.stem for file in files]))


def cut_patches(photo: np.ndarray, split: str, count: int, size: int, seed: int) -> np.ndarray:
    """``count`` patches of one photograph (h, w, 3) as (count, size, size, 3); equal arguments give equal patches."""
    draw = np.random.default_rng([seed, split == "test"])
    boxes = split_boxes(*photo.shape[:2], split)
    patches = []
    while len(patches) < count:
        top, left, bottom, right = boxes[draw.integers(len(boxes))]
        side = round(min(bottom - top, right - left) * draw.uniform(0.5, 1))
        y, x = draw.integers(top, bottom - side + 1), draw.integers(left, right - side + 1)
        patch = photo[y : y + side, x : x + side]  # cut before resizing, so that no pixel beyond its edge contributes
        if patch[::2, ::2].mean(2).std() > FLAT:
            patches.append(np.asarray(Image.fromarray(patch).resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(patches)


def split_boxes(height: int, width: int, split: str) -> list[tuple[int, int, int, int]]:
    """(top, left, bottom, right) of each block of a photograph that belongs to the split."""
    rows, columns = (np.linspace(0, side, GRID + 1).astype(int) for side in (height, width))
    return [
        (rows[i], columns[j], rows[i + 1], columns[j + 1])
        for i in range(GRID)
        for j in range(GRID)
        if ((i, j) in TEST_BLOCKS) == (split == "test")
    ]
