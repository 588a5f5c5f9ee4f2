"""Pixels of one image: as an array or tensor of a stored type, upright, with a known order of axes, finite, and not too many."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from superself.data.wording import describe_error

MAX_IMAGE_BYTES = 2**30  # of the decoded pixels of one image file; larger ones are refused before they are decoded
LARGEST_VALUE = 1e18  # of floating-point pixels: the squares of larger ones overflow in float32
FEW = 4  # channels that most images have at most: two axes this short cannot be distinguished
CHUNK = 2**24  # floating-point values that are checked at a time
STRIP = 2**20  # pixels that are converted at a time, so that no second copy of a large image is made
ORIENTATION = 0x0112  # number of the tag in EXIF and in TIFF
GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # of Pillow, and all modes that start with "I;16"


class Header(NamedTuple):
    """Size, channels and type of an upright image, known before its pixels are decoded."""

    height: int
    width: int
    channels: int
    dtype: str


def require_decodable(shape: tuple[int, ...], itemsize: int) -> None:
    """Checks what a header announces before it is believed.

    Raises:
        ValueError: if the image has no pixels, or more than ``MAX_IMAGE_BYTES``.
    """
    if min(shape) < 1:
        raise ValueError(f"an image of shape {shape} has no pixels; remove it.")
    nbytes = math.prod(shape) * itemsize
    if nbytes > MAX_IMAGE_BYTES:
        raise ValueError(
            f"{' x '.join(map(str, shape))} values take {nbytes / 2**30:.1f} GiB, and one image may take "
            f"{MAX_IMAGE_BYTES / 2**30:.3g} GiB; cut or shrink it, or pass read=, a function that reads such files."
        )


def require_finite(image: Tensor) -> None:
    """Checks that floating-point pixels are finite, and not so large that float32 cannot normalise them.

    Raises:
        ValueError: if they are not.
    """
    if not image.is_floating_point() or image.numel() == 0:
        return
    low, high = (value.item() for value in image.aminmax())
    if low >= -LARGEST_VALUE and high <= LARGEST_VALUE:  # false for NaN, which aminmax passes on
        return
    wrong = int((~image.isfinite()).sum())
    if wrong:
        raise ValueError(f"{wrong} of {image.numel()} values are not finite (NaN or infinite); replace or remove them")
    raise ValueError(
        f"values from {low:.3g} to {high:.3g} overflow in float32; divide them by their largest possible value"
    )


def find_not_finite(images: Tensor) -> dict[int, str]:
    """Which of the images (N, C, H, W) ``require_finite`` refuses, as place -> reason."""
    if not images.is_floating_point():
        return {}
    broken = {}
    per_chunk = max(1, CHUNK // images[0].numel())
    for number, chunk in enumerate(images.split(per_chunk)):
        low, high = chunk.flatten(1).aminmax(dim=1)
        for row in (
            (~((low >= -LARGEST_VALUE) & (high <= LARGEST_VALUE))).nonzero().flatten().tolist()
        ):  # NaN is neither
            try:
                require_finite(chunk[row])
            except ValueError as error:
                broken[number * per_chunk + row] = describe_error(error)
    return broken


def from_pil(image: Image.Image) -> np.ndarray:
    """A Pillow image, upright, as (H, W, 1) grey or (H, W, 3) colour."""
    sixteen_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image.load()
    orientation = orientation_of(image)
    if sixteen_bit:
        array = np.asarray(image).astype(np.uint16)[:, :, None]
    elif image.mode in ("I", "F"):
        array = to_stored_dtype(np.asarray(image)[:, :, None])
    else:
        array = _eight_bits(image)
    return upright(array, orientation)


def orientation_of(image: Image.Image) -> int:
    """How the camera was turned, from 1 to 8 as in EXIF; 1 is upright."""
    value = image.getexif().get(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """An array (H, W, C) turned and mirrored as its orientation in EXIF says; a view of it."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _eight_bits(image: Image.Image) -> np.ndarray:
    """The pixels (H, W, C) of 8 bits, converted strip by strip: Pillow's own conversions copy the whole image each time."""
    mode = "L" if image.mode in GREY_MODES else "RGB"
    width, height = image.size
    array = np.empty((height, width, 1 if mode == "L" else 3), np.uint8)
    rows = max(1, STRIP // max(width, 1))
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        strip = image if rows >= height else image.crop((0, top, width, bottom))
        if image.has_transparency_data:
            white = Image.new("RGBA", strip.size, "white")
            strip = Image.alpha_composite(white, strip.convert("RGBA"))
        strip = strip if strip.mode == mode else strip.convert(mode)
        array[top:bottom] = np.asarray(strip).reshape(bottom - top, width, -1)
    return array


def blend_with_white(array: np.ndarray) -> np.ndarray:
    """The colours of (H, W, ..., C + 1) blended with white; the last channel is the opacity."""
    full = 1.0 if array.dtype.kind == "f" else np.iinfo(array.dtype).max
    blended = np.empty((*array.shape[:-1], array.shape[-1] - 1), array.dtype)
    rows = max(1, STRIP // max(math.prod(array.shape[1:]), 1))
    for top in range(0, len(array), rows):
        strip = array[top : top + rows]
        colour, opaque = strip[..., :-1].astype(np.float64), strip[..., -1:] / full
        flat = colour * opaque + full * (1 - opaque)
        blended[top : top + rows] = flat if array.dtype.kind == "f" else flat.round()
    return blended


def to_tensor(image: Any) -> Tensor:
    """A Pillow image, an array (H, W[, C]) or a tensor ([C, ]H, W) as a tensor (C, H, W) of a stored type."""
    if isinstance(image, (bytes, bytearray)):
        raise ValueError(
            f"an image of type {type(image).__name__} is not decoded; return PIL.Image.open(io.BytesIO(data)) instead"
        )
    if isinstance(image, Image.Image):
        return from_array(from_pil(image))
    if isinstance(image, Tensor):
        if image.ndim not in (2, 3) or 0 in image.shape:
            raise ValueError(f"a tensor of shape {tuple(image.shape)} is not an image; pass (C, H, W) or (H, W).")
        return torch.from_numpy(to_stored_dtype(to_numpy(image))).reshape(-1, *image.shape[-2:])
    if not (hasattr(image, "__array__") or hasattr(image, "__array_interface__") or isinstance(image, (list, tuple))):
        raise ValueError(
            f"a value of type {type(image).__name__} is not an image; return a Pillow image, an array (H, W[, C]) or a tensor "
            "(C, H, W)."
        )
    return from_array(to_stored_dtype(channels_last(np.asarray(image))))


def from_array(pixels: np.ndarray) -> Tensor:
    """An array (H, W, C) of a stored type as a tensor (C, H, W)."""
    return torch.from_numpy(np.require(pixels, requirements="CW")).permute(2, 0, 1)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """The values of any tensor; those of half precision as float32, since numpy has no bfloat16.

    Raises:
        ValueError: if it is sparse, or on a device without values.
    """
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "has no values (device meta)" if tensor.is_meta else "is sparse"
        raise ValueError(f"a tensor that {kind} cannot hold images; pass a dense one, as tensor.to_dense() gives.")
    if tensor.is_complex():
        raise ValueError(
            f"the value range of {tensor.dtype} pixels is unknown; convert them to float32, with .abs() or .real."
        )
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def channels_last(array: np.ndarray) -> np.ndarray:
    """One image (H, W), (H, W, C) or (C, H, W) as (H, W, C); the smaller of the first and last axis is the channels.

    Raises:
        ValueError: if it is not an image, or either axis may hold the channels.
    """
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"an array of shape {array.shape} is not an image; pass (H, W), (H, W, C) or (C, H, W).")
    if array.ndim == 2:
        return array[:, :, None]
    if channel_axis_is_ambiguous(array.shape[0], array.shape[2]):
        raise ValueError(
            f"cannot infer which axis of an array of shape {array.shape} holds the channels; pass a tensor (C, H, W), for .npy "
            "files with read=lambda path: torch.from_numpy(numpy.load(path))."
        )
    return np.moveaxis(array, 0, 2) if array.shape[0] < array.shape[2] else array


def channel_axis_is_ambiguous(first: int, last: int) -> bool:
    """Whether either axis may hold the channels: both are equally long, or both as short as channels are."""
    return first == last or max(first, last) <= FEW


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
    if pixels.dtype.kind == "b":
        return pixels.astype(dtype) * 255
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is found as such
        return pixels.astype(dtype, copy=False)
