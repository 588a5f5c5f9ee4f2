"""Reads image files of all common formats as arrays, with their full range of values and all channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_image, read_file

if TYPE_CHECKING:
    import tifffile

Planes = str | tuple[int, ...] | None  # which planes of a TIFF stack become channels: "channels" for all, or numbers
EXTENSIONS = {  # of the files that a folder is searched for
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".npy"),
}
GREY_PNG = 0  # colour type of a grey PNG without transparency
GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # and all modes that start with "I;16"
ORIENTATION = 0x0112  # number of the tag in EXIF and in TIFF


class Header(NamedTuple):
    """Size, channels and type of an upright image, known before its pixels are decoded."""

    height: int
    width: int
    channels: int
    dtype: str


def read_header(path: Path, planes: Planes = None) -> Header:
    """The header of an image file; raises what the decoder raises when the file is not an image."""
    if path.suffix.lower() == ".npy":
        array = channels_last(np.load(path, mmap_mode="r"))
        return Header(*array.shape, stored_dtype(array.dtype))
    with open(path, "rb") as file:
        image, decoder = _identify(file, path, planes)
        if decoder == "tifffile":
            array = _read_tiff(path, planes, pixels=False)
            return Header(*array.shape, stored_dtype(array.dtype))
        width, height = image.size
        if (
            image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) >= 5
        ):  # Pillow turns the size of a TIFF itself
            width, height = height, width
        grey = image.mode in GREY_MODES or image.mode.startswith("I;16")
        if decoder == "torchvision":
            return Header(height, width, 1 if _png_bytes(file)[25] in (0, 4) else 3, "uint16")
        dtype = "float32" if image.mode == "F" else "uint16" if image.mode.startswith("I") else "uint8"
        return Header(height, width, 1 if grey else 3, dtype)


def read_image(path: Path, size: tuple[int, int] | None = None, planes: Planes = None) -> np.ndarray:
    """An image file, upright, as (H, W, C) in uint8, uint16 or float32.

    Grey images have one channel and colour images three, whatever their colour space; ``.npy`` and TIFF may have any
    number. Transparent pixels are blended with white. Animations (GIF, WebP, PNG) give their first frame.

    Args:
        path: the file.
        size: (H, W) that the image will be resized to. A much larger JPEG is decoded at a half, quarter or eighth of
            its size, which is faster; never below twice ``size``.
        planes: which planes of a TIFF stack become channels: "channels" for all, or their numbers; None for all, if
            they are channels according to the file, else an error.
    """
    if path.suffix.lower() == ".npy":
        return to_stored_dtype(channels_last(np.load(path)))
    with open(path, "rb") as file:
        image, decoder = _identify(file, path, planes)
        if decoder == "tifffile":
            return to_stored_dtype(_read_tiff(path, planes))
        if decoder == "torchvision":
            return _read_png16(path)
        if size is not None and image.format in ("JPEG", "MPO"):
            height, width = size[::-1] if image.getexif().get(ORIENTATION, 1) >= 5 else size
            image.draft(None, (2 * width, 2 * height))
        return from_pil(image)


def from_pil(image: Image.Image) -> np.ndarray:
    """A Pillow image, upright, as (H, W, 1) grey or (H, W, 3) colour."""
    sixteen_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image = ImageOps.exif_transpose(image)
    if sixteen_bit:
        return np.asarray(image).astype(np.uint16)[:, :, None]
    if image.mode in ("I", "F"):
        return to_stored_dtype(np.asarray(image)[:, :, None])
    mode = "L" if image.mode in GREY_MODES else "RGB"
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    array = np.array(image.convert(mode))
    return array[:, :, None] if mode == "L" else array


def to_tensor(image: Any) -> Tensor:
    """A Pillow image, an array (H, W[, C]) or a tensor ([C, ]H, W) as a tensor (C, H, W) of a stored type."""
    if isinstance(image, (bytes, bytearray)):
        raise ValueError(
            f"an image of type {type(image).__name__} is not decoded; return PIL.Image.open(io.BytesIO(data)) instead"
        )
    if isinstance(image, Tensor):
        if image.ndim not in (2, 3):
            raise ValueError(f"a tensor of shape {tuple(image.shape)} is not an image; pass (C, H, W) or (H, W).")
        return torch.from_numpy(to_stored_dtype(to_numpy(image))).reshape(-1, *image.shape[-2:])
    array = from_pil(image) if isinstance(image, Image.Image) else to_stored_dtype(channels_last(np.asarray(image)))
    return torch.from_numpy(np.require(array, requirements="CW")).permute(2, 0, 1)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """The values of any tensor; those of half precision as float32, since numpy has no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def channels_last(array: np.ndarray) -> np.ndarray:
    """One image (H, W), (H, W, C) or (C, H, W) as (H, W, C); the smaller of the first and last axis is the channels."""
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim != 3:
        raise ValueError(f"an array of shape {array.shape} is not an image; pass (H, W), (H, W, C) or (C, H, W).")
    if array.shape[0] == array.shape[2]:
        raise ValueError(
            f"cannot infer which axis of an array of shape {array.shape} holds the channels; pass a tensor (C, H, W)."
        )
    return np.moveaxis(array, 0, 2) if array.shape[0] < array.shape[2] else array


def stored_dtype(dtype: np.dtype) -> str:
    """Name of the type in which pixels of ``dtype`` are stored."""
    if dtype.kind == "f":
        return "float32"
    if dtype.kind == "b":
        return "uint8"
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return f"uint{8 * dtype.itemsize}"
    raise ValueError(f"the value range of {dtype} pixels is unknown; convert them to uint8, uint16 or float32.")


def to_stored_dtype(pixels: np.ndarray) -> np.ndarray:
    """Pixels in the type in which they are stored; true and false become 255 and 0."""
    dtype = stored_dtype(pixels.dtype)
    return pixels.astype(dtype) * 255 if pixels.dtype.kind == "b" else pixels.astype(dtype, copy=False)


def conform_image(image: Tensor, channels: int, dtype: torch.dtype, size: tuple[int, int]) -> Tensor:
    """An image in the form of its data set: grey repeated, 8 bits widened to 16, resized to cover and cropped to ``size``.

    Shape:
        image (c, h, w) -> (C, H, W).
    Raises:
        ValueError: if channels or type do not fit.
    """
    if image.shape[0] != channels:
        if (image.shape[0], channels) != (1, 3):
            raise ValueError(f"{image.shape[0]} channels where the data set has {channels}")
        image = image.expand(3, -1, -1)
    if image.dtype != dtype:
        if (image.dtype, dtype) != (torch.uint8, torch.uint16):
            raise ValueError(f"{image.dtype} pixels where the data set has {dtype}")
        image = (image.int() * 257).to(dtype)
    return resize_to_cover(image[None], size)[0] if image.shape[1:] != size else image


def resize_to_cover(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images resized to just cover ``size`` (antialiased, keeping the aspect ratio), then cropped at the centre.

    Shape:
        images (N, C, h, w) -> (N, C, H, W).
    """
    resized, top, left = _covering(images.shape[2:], size)
    in_float = images.dtype == torch.uint16 or resized == (1, 1)  # torch 2.15 cannot resize uint8 to a single pixel
    pixels = images.float() if in_float else images
    pixels = F.interpolate(pixels, resized, mode="bilinear", antialias=True)
    pixels = pixels[:, :, top : top + size[0], left : left + size[1]]
    return pixels.round().to(images.dtype) if in_float and not images.is_floating_point() else pixels


def resize_mask_to_cover(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask resized and cropped like its image, with the values of the nearest pixels.

    Shape:
        mask (..., h, w) -> (..., H, W).
    """
    resized, *start = _covering(mask.shape[-2:], size)
    rows, columns = (
        ((torch.arange(first, first + side) + 0.5) * (before / after)).long().clamp(max=before - 1)
        for first, side, before, after in zip(start, size, mask.shape[-2:], resized, strict=True)
    )
    return mask[..., rows[:, None], columns]


def _covering(before: Sequence[int], size: tuple[int, int]) -> tuple[tuple[int, int], int, int]:
    """The smallest size of the same aspect ratio that covers ``size``, and top and left of its centre crop."""
    (h, w), (height, width) = before, size
    scale = max(height / h, width / w)
    resized = (max(height, round(h * scale)), max(width, round(w * scale)))
    return resized, (resized[0] - height) // 2, (resized[1] - width) // 2


def _identify(file: BinaryIO, path: Path, planes: Planes) -> tuple[Image.Image | None, str]:
    """The opened image and the library to read it with; Pillow reduces some 16-bit files to 8 bits."""
    try:
        image = Image.open(file)
    except UnidentifiedImageError as error:
        if path.suffix.lower() in (".tif", ".tiff"):
            return None, "tifffile"
        raise UnidentifiedImageError(f"not an image in a known format, {path.stat().st_size} bytes") from error
    if image.format == "PNG" and _png_bytes(file)[24] == 16 and _png_bytes(file)[25] != GREY_PNG:
        return image, "torchvision"
    if image.format == "TIFF":
        whole_range = image.mode.startswith("I;16") or max(image.tag_v2.get(258, (1,))) <= 8
        return image, "pillow" if whole_range and not _is_stack(path) else "tifffile"
    return image, "pillow"


def _png_bytes(file: BinaryIO) -> bytes:
    """The first 26 bytes of a PNG; the last two are the bits per channel and the colour type."""
    place = file.tell()
    file.seek(0)
    start = file.read(26)
    file.seek(place)
    return start


def _read_png16(path: Path) -> np.ndarray:
    try:
        image = decode_image(read_file(str(path)), ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    except RuntimeError as error:
        if "8-bit" not in str(error):
            raise
        raise ValueError(
            "a colour PNG of 16 bits needs torchvision 0.20 or newer; upgrade, or convert it to TIFF"
        ) from error
    array = image.permute(1, 2, 0).numpy()
    return _blend_with_white(array) if array.shape[2] in (2, 4) else array


def _read_tiff(path: Path, planes: Planes, pixels: bool = True) -> np.ndarray:
    """The chosen planes of a TIFF as (H, W, C); without ``pixels`` an array of the same shape and type."""
    import tifffile  # takes a while to import

    with tifffile.TiffFile(path) as tiff:
        series, page = tiff.series[0], tiff.pages[0]
        chosen = _chosen_planes(tiff, planes)
        array = series.asarray() if pixels else np.broadcast_to(np.zeros((), series.dtype), series.shape)
        axes = series.axes
    if "S" not in axes:
        array, axes = array[..., None], axes + "S"
    array = np.moveaxis(array, [axes.index(axis) for axis in "YXS"], [-3, -2, -1])
    array = array.reshape(-1, *array.shape[-3:])[chosen]  # (P, H, W, S)
    if page.extrasamples and page.extrasamples[-1] in (1, 2):  # transparency
        array = _blend_with_white(array) if pixels else array[..., :-1]
    array = np.moveaxis(array, 0, -2).reshape(*array.shape[1:3], -1)
    orientation = page.tags[ORIENTATION].value if ORIENTATION in page.tags else 1
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _is_stack(path: Path) -> bool:
    import tifffile  # takes a while to import

    with tifffile.TiffFile(path) as tiff:
        return math.prod(_stack_axes(tiff).values()) > 1 or _sizes(tiff) > 1


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


def _blend_with_white(array: np.ndarray) -> np.ndarray:
    """The colours of (..., C + 1) blended with white; the last channel is the opacity."""
    full = 1.0 if array.dtype.kind == "f" else np.iinfo(array.dtype).max
    colour, opaque = array[..., :-1].astype(np.float64), array[..., -1:] / full
    flat = colour * opaque + full * (1 - opaque)
    return (flat if array.dtype.kind == "f" else flat.round()).astype(array.dtype)
