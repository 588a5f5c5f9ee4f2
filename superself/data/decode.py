"""Reads image files of all common formats as arrays, with their full range of values and all channels.

Only the formats listed here are opened, whatever a file is called, and none whose header announces more than
``MAX_IMAGE_BYTES`` (1 GiB) of decoded pixels, or more pixels than Pillow's ``Image.MAX_IMAGE_PIXELS`` allows (179 million by
default). A function passed as ``read=`` reads any other file.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_image

from superself.data.pixels import (
    GREY_MODES,
    Header,
    blend_with_white,
    channels_last,
    from_pil,
    orientation_of,
    require_decodable,
    stored_dtype,
    to_stored_dtype,
)
from superself.data.tiff import Planes, is_stack, read_tiff, tiff_header

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # that Pillow opens; MPO is a kind of JPEG
EXTENSIONS = {  # of the files that a folder is searched for
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".npy"),
}
BITS, SAMPLES = 258, 277  # tags of TIFF: bits of each sample, samples of a pixel
GREY_PNG = 0  # colour type of a grey PNG without transparency


def read_header(path: Path, planes: Planes = None) -> Header:
    """The header of an image file; raises what the decoder raises when the file is not an image."""
    with open_regular(path) as file:
        if path.suffix.lower() == ".npy":
            array = _npy_header(file, path)
            return Header(*array.shape, stored_dtype(array.dtype))
        image, decoder = _identify(file, path, planes)
        if decoder == "tifffile":
            return tiff_header(file, planes)
        return _pillow_header(image, decoder, file)


def read_image(path: Path, size: tuple[int, int] | None = None, planes: Planes = None) -> np.ndarray:
    """An image file, upright, as (H, W, C) in uint8, uint16 or float32.

    Grey images have one channel and colour images three, whatever their colour space; ``.npy`` and TIFF may have any
    number. Transparent pixels are blended with white. Animations (GIF, WebP, PNG) give their first frame. About twice the
    memory of the decoded pixels is needed.

    Args:
        path: the file.
        size: (H, W) that the image will be resized to. A much larger JPEG is decoded at a half, quarter or eighth of
            its size, which is faster; never below twice ``size``.
        planes: which planes of a TIFF stack become channels: "channels" for all, or their numbers; None for all, if
            they are channels according to the file, else an error.
    Raises:
        ValueError: if the file announces more than ``MAX_IMAGE_BYTES`` of pixels.
    """
    with open_regular(path) as file:
        if path.suffix.lower() == ".npy":
            _npy_header(file, path)
            file.seek(0)
            return to_stored_dtype(channels_last(np.lib.format.read_array(file, allow_pickle=False)))
        image, decoder = _identify(file, path, planes)
        if decoder == "tifffile":
            return to_stored_dtype(read_tiff(file, planes))
        if decoder == "torchvision":
            return _read_png16(file)
        if size is not None and image.format in ("JPEG", "MPO"):
            height, width = size[::-1] if orientation_of(image) >= 5 else size
            image.draft(None, (2 * width, 2 * height))
        return from_pil(image)


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading, but no pipe, socket or device, where reading might wait forever.

    Raises:
        ValueError: if the path is one of these.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=opener)  # noqa: SIM115 - closed by the caller
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("not a regular file but a pipe, socket or device")
    return file


def _pillow_header(image: Image.Image, decoder: str, file: BinaryIO) -> Header:
    width, height = image.size
    if image.format != "TIFF" and orientation_of(image) >= 5:  # Pillow turns the size of a TIFF itself
        width, height = height, width
    grey = image.mode in GREY_MODES or image.mode.startswith("I;16")
    if decoder == "torchvision":
        return Header(height, width, 1 if _png_bytes(file)[25] in (0, 4) else 3, "uint16")
    dtype = "float32" if image.mode == "F" else "uint16" if image.mode.startswith("I") else "uint8"
    return Header(height, width, 1 if grey else 3, dtype)


def _identify(file: BinaryIO, path: Path, planes: Planes) -> tuple[Image.Image | None, str]:
    """The opened image and the library to read it with; Pillow reduces some 16-bit files to 8 bits."""
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        if path.suffix.lower() in (".tif", ".tiff"):
            return None, "tifffile"
        known = ", ".join(FORMATS)
        size = os.fstat(file.fileno()).st_size
        raise UnidentifiedImageError(f"not an image in a known format ({known}, NPY), {size} bytes") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = str(error).split(", could be")[0]
        raise ValueError(
            f"{reason}; cut or shrink it, raise PIL.Image.MAX_IMAGE_PIXELS, or pass read=, a function that reads such files"
        ) from error
    if image.format == "TIFF":
        whole_range = image.mode.startswith("I;16") or max(image.tag_v2.get(BITS, (1,))) <= 8
        all_bands = image.tag_v2.get(SAMPLES, 1) <= len(image.getbands())
        if not (whole_range and all_bands) or is_stack(file):
            file.seek(0)
            return image, "tifffile"
    sixteen_bit = image.format == "PNG" and _png_bytes(file)[24] == 16
    channels = 1 if image.mode in GREY_MODES or image.mode.startswith("I;16") else 3
    require_decodable((image.height, image.width, channels), 4 if image.mode == "F" else 2 if sixteen_bit else 1)
    return image, "torchvision" if sixteen_bit and _png_bytes(file)[25] != GREY_PNG else "pillow"


def _png_bytes(file: BinaryIO) -> bytes:
    """The first 26 bytes of a PNG; the last two are the bits per channel and the colour type."""
    place = file.tell()
    file.seek(0)
    start = file.read(26)
    file.seek(place)
    return start


def _read_png16(file: BinaryIO) -> np.ndarray:
    file.seek(0)
    data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    try:
        image = decode_image(data, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    except RuntimeError as error:
        if "8-bit" not in str(error):
            raise
        raise ValueError(
            "a colour PNG of 16 bits needs torchvision 0.20 or newer; upgrade, or convert it to TIFF"
        ) from error
    array = image.permute(1, 2, 0).numpy()
    return blend_with_white(array) if array.shape[2] in (2, 4) else array


def _npy_header(file: BinaryIO, path: Path) -> np.ndarray:
    """The array of an .npy file as (H, W, C), mapped and not read; refuses what is too large or holds Python objects."""
    if file.read(6) != np.lib.format.MAGIC_PREFIX:
        raise ValueError("not an array as numpy.save writes it; save it again with numpy.save(path, array)")
    array = np.lib.format.open_memmap(path, mode="r")  # refuses Python objects, which could run code
    require_decodable(array.shape, array.dtype.itemsize)
    return channels_last(array)
