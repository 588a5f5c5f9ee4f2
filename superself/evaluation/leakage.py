"""Test images that are training images too, or nearly: an accuracy measured on them is too high."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from superself.data import Images, SequentialBatches, to_float

SIDE = 8  # pixels of a thumbnail
ALIKE = 0.01  # difference of thumbnails, as a fraction of the range of values, below which images count as alike
OF_CONTRAST = 0.1  # and as a fraction of the image's own standard deviation: dark images are not all the same
READ_AT_A_TIME = 256  # images
DISTANCES_AT_A_TIME = 2**24  # float32: 64 MiB
EXAMPLES = 3  # that a warning names
WORTH_A_WARNING = 0.01  # fraction of test images


def thumbnails(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Averages over an 8 x 8 grid, of values that are 0 at ``low`` and 1 at ``high``.

    Shape:
        images (B, C, H, W) of any floating-point type, low and high () -> (B, C, 8, 8).
    """
    return adaptive_avg_pool2d((images - low) / (high - low).clamp(min=1e-9), SIDE)


def near_duplicates(train: Images, test: Images) -> list[tuple[int, int]]:
    """The test images of which ``train`` has a copy, as (place in test, place in train) of the most similar one.

    Two images count as copies if their thumbnails differ by less than 1 % of the range of values, and by less than a tenth of
    the test image's own contrast (root mean squares). Copies that were resized, compressed or slightly retouched are found,
    crops and flipped ones are not. The images are read once, in batches; memory grows by 768 bytes per RGB image of
    both sets. Unreadable images are left out. Between sets with different numbers of channels none are found.

    Args:
        train: opened images.
        test: opened images; of any size and type.
    """
    if train.shape[0] != test.shape[0]:
        return []
    low, high = to_float(train.sample(64)).aminmax()
    known, asked = (_thumbnails_of(images, low.cpu(), high.cpu()) for images in (train, test))
    flat, usable = known.flatten(1), ~known.flatten(1).isnan().any(1)
    pairs = []
    places = (~asked.flatten(1).isnan().any(1)).nonzero().flatten()
    for chunk in places.split(max(1, DISTANCES_AT_A_TIME // len(flat))):
        distances = torch.cdist(asked[chunk].flatten(1), flat)  # (m, N)
        distances[:, ~usable] = torch.inf
        nearest = distances.argmin(1)
        rms = (
            (asked[chunk] - known[nearest]).square().flatten(1).mean(1).sqrt()
        )  # cdist is not exact at small distances
        contrast = (asked[chunk] - asked[chunk].mean((2, 3), keepdim=True)).square().flatten(1).mean(1).sqrt()
        alike = rms <= torch.minimum(torch.full_like(contrast, ALIKE), OF_CONTRAST * contrast)
        pairs += zip(chunk[alike].tolist(), nearest[alike].tolist(), strict=True)
    return pairs


def duplicates_warning(pairs: list[tuple[int, int]], train: Images, test: Images) -> str | None:
    """A sentence with the share of test images that are in ``train`` and some of them, or None if they are below 1 %."""
    if len(pairs) < WORTH_A_WARNING * len(test) or not pairs:
        return None
    named = ", ".join(f"{test.names[a]} and {train.names[b]}" for a, b in pairs[:EXAMPLES])
    return (
        f"Warning: {len(pairs)} of {len(test)} test images ({len(pairs) / len(test):.1%}) are near-duplicates of training "
        f"images, for example {named}; accuracies are too high by what is remembered. Leave these out."
    )


def _thumbnails_of(images: Images, low: Tensor, high: Tensor) -> Tensor:
    """(N, C, 8, 8), NaN for unreadable images."""
    images.begin_pass()
    found = []
    for places in SequentialBatches(len(images), READ_AT_A_TIME):
        batch = images.batch(places)
        rows = thumbnails(to_float(batch.images.cpu()), low, high)
        rows[(batch.index != places).cpu()] = torch.nan
        found.append(rows)
    return torch.cat(found)
