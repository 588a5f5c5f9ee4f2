"""TIFF files that Pillow does not read in full: 16-bit colour, many bands, stacks of planes."""

from __future__ import annotations

import importlib.util
import lzma
import math
import struct
import zlib
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from superself.data.pixels import (
    MAX_IMAGE_BYTES,
    ORIENTATION,
    Header,
    blend_with_white,
    require_decodable,
    stored_dtype,
    upright,
)

if TYPE_CHECKING:
    import tifffile

Planes = str | tuple[int, ...] | None  # which planes of a TIFF stack become channels: "channels" for all, or numbers
UNBOUNDED = {8: zlib.decompressobj, 32946: zlib.decompressobj, 34925: lzma.LZMADecompressor}  # compression -> decoder
SMALL_SEGMENT = 2**18  # compressed bytes that zlib cannot expand to more than 2**28


def tiff_header(file: BinaryIO, planes: Planes) -> Header:
    """The header of a TIFF, of the chosen planes; raises a ValueError if they cannot be read as an image."""
    with _open_tiff(file) as tiff:
        array = _arrange(tiff, planes, pixels=False)
    return Header(*array.shape, stored_dtype(array.dtype))


def read_tiff(file: BinaryIO, planes: Planes) -> np.ndarray:
    """The chosen planes of a TIFF as (H, W, C)."""
    with _open_tiff(file) as tiff:
        return _arrange(tiff, planes, pixels=True)


def is_stack(file: BinaryIO) -> bool:
    """Whether a TIFF holds more than one plane."""
    with _open_tiff(file) as tiff:
        return math.prod(_stack_axes(tiff).values()) > 1 or _sizes(tiff) > 1


def _open_tiff(file: BinaryIO) -> tifffile.TiffFile:
    """Opens a TIFF whose pages are separate: through those of a damaged one tifffile may go for hours."""
    head, size, total = file.seek(0) or file.read(16), file.seek(0, 2), 0
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    layouts = {
        42: ("H", "I", 12, 4),
        43: ("Q", "Q", 20, 8),
    }  # of TIFF and BigTIFF: count, offset, bytes of a tag, first offset
    version = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) == 16 else None
    if version in layouts:
        count, place, tag, first = layouts[version]
        length, width = struct.calcsize(count), struct.calcsize(place)
        (offset,) = struct.unpack(order + place, head[first : first + width])
        while 0 < offset < size - length:
            file.seek(offset)
            tags = struct.unpack(order + count, file.read(length))[0] * tag
            total += length + tags + width
            if total > size:
                raise ValueError("a damaged TIFF: its pages overlap or go round in a circle; save it again")
            file.seek(offset + length + tags)
            following = file.read(width)
            offset = struct.unpack(order + place, following)[0] if len(following) == width else 0
    import tifffile  # takes a while to import

    file.seek(0)
    return tifffile.TiffFile(file)


def _arrange(tiff: tifffile.TiffFile, planes: Planes, pixels: bool) -> np.ndarray:
    """The chosen planes as (H, W, C); without ``pixels`` an array of the same shape and type that takes no memory."""
    series, page = tiff.series[0], tiff.pages[0]
    chosen, count = _chosen_planes(tiff, planes), math.prod(_stack_axes(tiff).values())
    axes, shape, part = series.axes, series.shape, None
    if chosen == list(range(count)):
        chosen = slice(None)
    elif len(series.pages) == count:  # each page is a plane: only those chosen are decoded
        part, chosen = [series.pages[place] for place in chosen], slice(None)
        axes, shape = "Q" + page.axes, (len(part), *page.shape)
    require_decodable(shape, np.dtype(series.dtype).itemsize)
    if not pixels:
        array = np.broadcast_to(np.zeros((), series.dtype), shape)
    else:
        for each in series.pages if part is None else part:
            _require_bounded(tiff, each)
        array = series.asarray() if part is None else np.stack([each.asarray() for each in part])
    if "S" not in axes:
        array, axes = array[..., None], axes + "S"
    array = np.moveaxis(array, [axes.index(axis) for axis in "YXS"], [-3, -2, -1])
    array = array.reshape(-1, *array.shape[-3:])[chosen]  # (P, H, W, S)
    if page.extrasamples and page.extrasamples[-1] in (1, 2):  # transparency
        array = blend_with_white(array) if pixels else array[..., :-1]
    array = np.moveaxis(array, 0, -2)
    array = array.reshape(*array.shape[:2], -1)
    return upright(array, page.tags[ORIENTATION].value if ORIENTATION in page.tags else 1)


def _require_bounded(tiff: tifffile.TiffFile, page: tifffile.TiffPage | None) -> None:
    """Refuses segments that expand to far more than a segment of the image, which tifffile's own decoders do not notice."""
    page = None if page is None else page.keyframe
    if page is None or page.compression not in UNBOUNDED or importlib.util.find_spec("imagecodecs"):
        return
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        if length <= SMALL_SEGMENT and page.compression != 34925:
            continue
        tiff.filehandle.seek(offset)
        data, decoder, found = tiff.filehandle.read(length), UNBOUNDED[page.compression](), 0
        while not decoder.eof:
            made = decoder.decompress(data, 2**20)
            data = getattr(decoder, "unconsumed_tail", b"")
            found += len(made)
            if not (made or data):
                break
            if found > MAX_IMAGE_BYTES:
                require_decodable((found,), 1)


def _stack_axes(tiff: tifffile.TiffFile) -> dict[str, int]:
    """The axes besides height, width and samples of a pixel that are longer than 1, with their lengths."""
    series = tiff.series[0]
    return {axis: n for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YXS" and n > 1}


def _sizes(tiff: tifffile.TiffFile) -> int:
    """How many kinds of images a TIFF holds, smaller copies of its image left out."""
    return 1 + sum(not series.pages[0].is_reduced for series in tiff.series[1:])


def _chosen_planes(tiff: tifffile.TiffFile, planes: Planes) -> list[int]:
    axes = _stack_axes(tiff)
    count = math.prod(axes.values())
    if planes is None and _sizes(tiff) > 1:
        raise ValueError(f"a file with images of {_sizes(tiff)} sizes; pass planes=0 to read the first, or split it")
    if planes is None and not set(axes) <= {"C"}:
        raise ValueError(
            f"a stack of {count} planes (axes {tiff.series[0].axes}) that may not be channels; "
            'pass planes="channels" to read all as channels, or the numbers of some, as in planes=0 or planes=(0, 2)'
        )
    if planes is None or planes == "channels":
        return list(range(count))
    if max(planes) >= count:
        raise ValueError(f"planes={planes}, but the file has {count} planes, numbered from 0 to {count - 1}")
    return list(planes)
