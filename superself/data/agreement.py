"""What the images of a data set have in common, and which of them do not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from superself.data.pixels import Header

BROKEN_SHARE = 0.05  # a larger share of images that are broken or unlike the others stops the run


class Common(NamedTuple):
    """Channels and type that all images can be stored in, their smallest and largest (H, W), and who does not fit and why."""

    channels: int
    dtype: str
    small: tuple[int, int]
    large: tuple[int, int]
    outliers: dict[int, str]


def find_common(headers: dict[int, Header], name: Callable[[int], str], any_size: bool) -> Common:
    """Channels, type and sizes of images, of which up to 5 % may be of another type.

    Args:
        headers: of the images that can be read, by place.
        name: f(place) -> name of the image in messages.
        any_size: whether the images may differ in size, because they will be resized.
    Raises:
        ValueError: if types are mixed that cannot be converted to each other, or sizes differ and may not.
    """
    channels = _usual_channels(headers)
    fits = {channels, 1} if channels == 3 else {channels}
    outliers = {
        place: f"{header.channels} channels, the others have {channels}"
        for place, header in headers.items()
        if header.channels not in fits
    }
    fitting = {place: header for place, header in headers.items() if place not in outliers}
    dtype, others = _usual_dtype(fitting, name)
    outliers |= {place: f"{fitting[place].dtype} pixels, the others have {dtype}" for place in others}
    places: dict[tuple[int, int], list[int]] = {}
    for place, header in fitting.items():
        if place not in outliers:
            places.setdefault((header.height, header.width), []).append(place)
    if len(places) > 1 and not any_size:
        first, second = (
            f"{name(found[0])} is {h} x {w} ({len(found)} image{'s' * (len(found) > 1)})"
            for (h, w), found in list(places.items())[:2]
        )
        more = f", and {len(places) - 2} more sizes" if len(places) > 2 else ""
        raise ValueError(
            f"the images differ in size: {first}, {second}{more}; pass image_size=, a number or (height, width)."
        )
    return Common(channels, dtype, min(places, key=_area), max(places, key=_area), outliers)


def _usual_channels(headers: dict[int, Header]) -> int:
    counts = Counter(header.channels for header in headers.values())
    usual = counts.most_common(1)[0][0]
    return 3 if usual == 1 and 3 in counts else usual


def _usual_dtype(headers: dict[int, Header], name: Callable[[int], str]) -> tuple[str, list[int]]:
    """The type to store, and the places of the few images that have another one."""
    places: dict[str, list[int]] = {}
    for place, header in headers.items():
        places.setdefault(header.dtype, []).append(place)
    few = BROKEN_SHARE * len(headers)
    floats = places.pop("float32", [])
    whole = [place for found in places.values() for place in found]
    if not whole:
        return "float32", []
    if floats and min(len(floats), len(whole)) > few:
        raise ValueError(
            f"{name(whole[0])} is {headers[whole[0]].dtype} and {name(floats[0])} is float32 ({len(whole)} and {len(floats)} "
            "images); their value ranges differ, so convert one kind."
        )
    if len(floats) > len(whole):
        return "float32", whole
    deep = places.get("uint16", [])
    if deep and (len(deep) > few or "uint8" not in places):
        return "uint16", floats  # images of 8 bits are widened
    return "uint8", floats + deep


def _area(size: tuple[int, int]) -> tuple[int, int, int]:
    return size[0] * size[1], *size
