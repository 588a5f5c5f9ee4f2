"""Image files of every kind are read upright, with their range and channels."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
import torchvision
from PIL import Image

from superself.data.decode import read_header, read_image
from superself.data.pixels import Header, from_pil, to_tensor
from superself.data.resize import conform_image, resize_to_cover


def write_png16(path, pixels):
    """A PNG of 16 bits a channel, which Pillow cannot write in colour."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def check_reads(path, expected, tolerance=0, planes=None):
    """The file reads as ``expected`` (H, W, C), and its header announces it."""
    image = read_image(path, planes=planes)
    assert image.dtype == expected.dtype and image.shape == expected.shape
    assert np.abs(image.astype(float) - expected.astype(float)).max() <= tolerance
    assert read_header(path, planes) == Header(*expected.shape, str(expected.dtype))


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "webp", "ppm"])
def test_lossless_colour_files_keep_their_pixels(tmp_path, noise, extension):
    pixels = noise(5, 7)
    path = tmp_path / f"image.{extension}"
    Image.fromarray(pixels).save(path, lossless=True)
    check_reads(path, pixels)


def test_jpeg_in_colour_grey_and_cmyk(tmp_path):
    for mode, colour, expected in [
        ("RGB", (200, 100, 50), [200, 100, 50]),
        ("L", 90, [90]),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0]),
    ]:
        path = tmp_path / f"{mode}.jpg"
        Image.new(mode, (6, 4), colour).save(path, quality=95)
        check_reads(path, np.full((4, 6, len(expected)), expected, np.uint8), tolerance=3)


def test_grey_stays_one_channel(tmp_path, noise):
    pixels = noise(5, 7, 1)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    check_reads(tmp_path / "grey.png", pixels[:, :, None])
    Image.fromarray(pixels > 127).save(tmp_path / "bits.png")
    check_reads(tmp_path / "bits.png", np.where(pixels > 127, 255, 0).astype(np.uint8)[:, :, None])


def test_palette_becomes_colour(tmp_path):
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "palette.png")
    check_reads(tmp_path / "palette.png", np.full((4, 6, 3), [10, 20, 30], np.uint8))


def test_transparent_pixels_are_blended_with_white(tmp_path):
    Image.new("RGBA", (6, 4), (0, 100, 200, 0)).save(tmp_path / "clear.png")
    check_reads(tmp_path / "clear.png", np.full((4, 6, 3), 255, np.uint8))
    Image.new("LA", (6, 4), (0, 51)).save(tmp_path / "fifth.png")
    check_reads(tmp_path / "fifth.png", np.full((4, 6, 1), 204, np.uint8))
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=1)
    check_reads(tmp_path / "palette.png", np.full((4, 6, 3), 255, np.uint8))


def test_gif_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    check_reads(tmp_path / "two.gif", np.full((4, 6, 3), [255, 0, 0], np.uint8))


@pytest.mark.parametrize("extension", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, noise, extension, orientation):
    upright = noise(5, 7)
    turn = {  # how the camera stores an upright image
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: np.rot90,
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{extension}"
    Image.fromarray(np.ascontiguousarray(turn(upright))).save(path, exif=exif, lossless=True)
    check_reads(path, upright)
    stored = np.ascontiguousarray(turn(upright.astype(np.uint16) * 257))
    tifffile.imwrite(tmp_path / "deep.tif", stored, photometric="rgb", extratags=[(0x0112, "H", 1, orientation, True)])
    check_reads(tmp_path / "deep.tif", upright.astype(np.uint16) * 257)


needs_16_bit_colour = pytest.mark.skipif(
    tuple(int(n) for n in torchvision.__version__.split(".")[:2]) < (0, 20),
    reason="torchvision reads them from 0.20 on",
)


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=needs_16_bit_colour)])
def test_sixteen_bits_are_kept(tmp_path, noise, channels):
    pixels = noise(5, 7, 3, np.uint16)[:, :, :channels]
    write_png16(tmp_path / "deep.png", pixels)
    check_reads(tmp_path / "deep.png", pixels)
    tifffile.imwrite(tmp_path / "deep.tif", pixels.squeeze())
    check_reads(tmp_path / "deep.tif", pixels)


@needs_16_bit_colour
def test_transparent_sixteen_bit_pixels_are_blended_with_white(tmp_path):
    for channels in (2, 4):
        pixels = np.full((4, 6, channels), 1000, np.uint16)
        pixels[:, :, -1] = 13107  # a fifth
        write_png16(tmp_path / "deep.png", pixels)
        check_reads(tmp_path / "deep.png", np.full((4, 6, channels - 1), 200 + 52428, np.uint16))
    tifffile.imwrite(tmp_path / "deep.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    check_reads(tmp_path / "deep.tif", np.full((4, 6, 3), 200 + 52428, np.uint16))


def test_float_tiff_and_many_channels_are_kept(tmp_path):
    grey = np.linspace(-1, 2, 35, dtype=np.float32).reshape(5, 7)
    tifffile.imwrite(tmp_path / "grey.tif", grey)
    check_reads(tmp_path / "grey.tif", grey[:, :, None])
    bands = np.random.default_rng(0).random((6, 5, 7), dtype=np.float32)
    tifffile.imwrite(tmp_path / "bands.tif", bands, photometric="minisblack", planarconfig="separate")
    check_reads(tmp_path / "bands.tif", np.moveaxis(bands, 0, 2))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("kind", ["OME", "ImageJ", "axes", "colour"])
def test_channel_axis_of_a_tiff_gives_the_channels(tmp_path, noise, kind, dtype):
    planes = np.stack([noise(5, 7, 1) for _ in range(3)]).astype(dtype)
    path = tmp_path / ("stack.ome.tif" if kind == "OME" else "stack.tif")
    options = {"metadata": {"axes": "CYX"}, "photometric": "minisblack", "imagej": kind == "ImageJ"}
    if kind == "colour":
        planes = np.stack([planes] * 2)
        tifffile.imwrite(path, np.moveaxis(planes, 1, -1), photometric="rgb", metadata={"axes": "CYXS"})
    else:
        tifffile.imwrite(path, planes, **options)
    check_reads(path, np.moveaxis(planes.reshape(-1, 5, 7), 0, -1))


def stack_files(folder, planes):
    """The same planes as a Z stack of ImageJ and of OME, as pages without axes, and as pages that Pillow wrote."""
    tifffile.imwrite(folder / "imagej.tif", planes, imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(folder / "z.ome.tif", planes, metadata={"axes": "ZYX"}, photometric="minisblack")
    pages = [Image.fromarray(plane) for plane in planes]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    with tifffile.TiffWriter(folder / "sizes.tif") as writer:
        for plane in planes:
            writer.write(plane, metadata=None)
    return sorted(folder.glob("*.tif"))


def test_stacks_whose_planes_may_not_be_channels_are_refused_unless_planes_are_chosen(tmp_path, noise):
    planes = np.stack([noise(5, 7, 1) for _ in range(4)])
    files = stack_files(tmp_path, planes)
    assert len(files) == 4
    for path in files:
        for read in (read_header, read_image):
            with pytest.raises(ValueError, match=r'a stack of 4 planes \(axes .*pass planes="channels".*planes=0'):
                read(path)
            with pytest.raises(ValueError, match=r"planes=\(1, 4\), but the file has 4 planes, numbered from 0 to 3"):
                read(path, planes=(1, 4))
        check_reads(path, np.moveaxis(planes, 0, -1), planes="channels")
        check_reads(path, np.moveaxis(planes[[2]], 0, -1), planes=(2,))
        check_reads(path, np.moveaxis(planes[[3, 0]], 0, -1), planes=(3, 0))


def test_pages_of_other_sizes_are_refused_and_reduced_ones_ignored(tmp_path, noise):
    image, small = noise(10, 14, 1), noise(6, 5, 1)
    for subfiletype in (0, 1):
        with tifffile.TiffWriter(tmp_path / f"{subfiletype}.tif") as writer:
            writer.write(image, metadata=None)
            writer.write(small, metadata=None, subfiletype=subfiletype)
    check_reads(tmp_path / "1.tif", image[:, :, None])
    with pytest.raises(ValueError, match="images of 2 sizes"):
        read_image(tmp_path / "0.tif")
    check_reads(tmp_path / "0.tif", image[:, :, None], planes=(0,))


def test_files_that_are_not_stacks_have_one_plane(tmp_path, noise):
    pixels = noise(5, 7)
    tifffile.imwrite(tmp_path / "one.tif", pixels, photometric="rgb")
    for planes in ("channels", (0,)):
        check_reads(tmp_path / "one.tif", pixels, planes=planes)


def test_npy_finds_its_channels(tmp_path, noise):
    pixels = noise(9, 8, 5)
    for name, array in {"last": pixels, "first": np.moveaxis(pixels, 2, 0)}.items():
        np.save(tmp_path / f"{name}.npy", array)
        check_reads(tmp_path / f"{name}.npy", pixels)
    np.save(tmp_path / "double.npy", pixels[:, :, 0] / 255)
    check_reads(tmp_path / "double.npy", (pixels[:, :, :1] / 255).astype(np.float32))
    np.save(tmp_path / "mask.npy", pixels[:, :, 0] > 9)
    check_reads(tmp_path / "mask.npy", ((pixels[:, :, :1] > 9) * 255).astype(np.uint8))


def test_npy_that_is_not_an_image_is_refused(tmp_path):
    for array, message in [
        (np.zeros((4, 5, 4), np.uint8), "cannot infer which axis of an array of shape .* holds the channels"),
        (np.zeros((2, 3, 4, 5), np.uint8), "is not an image"),
        (np.zeros((4, 4), np.int64), "value range of int64 pixels is unknown"),
    ]:
        np.save(tmp_path / "bad.npy", array)
        for read in (read_header, read_image):
            with pytest.raises(ValueError, match=message):
                read(tmp_path / "bad.npy")


def test_truncated_and_empty_files_raise(tmp_path, noise):
    for extension in ("jpg", "png", "bmp", "webp", "tif", "gif"):
        path = tmp_path / f"image.{extension}"
        Image.fromarray(noise(64, 64)).save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(Exception):  # noqa: B017 - every decoder has its own
            read_image(path)
        path.write_bytes(b"")
        with pytest.raises(Exception):  # noqa: B017
            read_header(path)


def test_large_jpeg_is_decoded_at_a_fraction_never_below_twice_the_size(tmp_path):
    gradient = np.broadcast_to(np.linspace(0, 255, 640).astype(np.uint8)[None, :, None], (320, 640, 3))
    Image.fromarray(np.ascontiguousarray(gradient)).save(tmp_path / "large.jpg")
    assert read_image(tmp_path / "large.jpg", size=(32, 32)).shape == (80, 160, 3)
    assert read_image(tmp_path / "large.jpg", size=(100, 100)).shape == (320, 640, 3)


def test_resize_to_cover_keeps_the_aspect_and_crops_the_centre():
    wide = torch.zeros(1, 1, 4, 12, dtype=torch.uint8)
    wide[..., 4:8] = 200
    assert torch.equal(resize_to_cover(wide, (4, 4)), torch.full((1, 1, 4, 4), 200, dtype=torch.uint8))
    assert resize_to_cover(wide, (8, 3)).shape == (1, 1, 8, 3)


def test_resize_to_cover_does_not_alias():
    stripes = (torch.arange(64) % 2 * 65535).to(torch.int32).to(torch.uint16).expand(1, 1, 64, 64)
    assert (resize_to_cover(stripes, (16, 16)).int() - 32768).abs().max() < 4000


def test_conform_image_repeats_grey_and_widens_eight_bits():
    grey = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    assert conform_image(grey, 3, torch.uint16, (1, 3)).int().tolist() == [[[0, 257, 65535]]] * 3
    with pytest.raises(ValueError, match="4 channels where the data set has 3"):
        conform_image(torch.zeros(4, 2, 2), 3, torch.float32, (2, 2))
    with pytest.raises(ValueError, match="uint16 pixels where the data set has torch.uint8"):
        conform_image(torch.zeros(1, 2, 2, dtype=torch.uint16), 1, torch.uint8, (2, 2))


def test_to_tensor_takes_pillow_arrays_and_tensors(noise):
    pixels = noise(5, 7)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (Image.fromarray(pixels), pixels, expected, expected.numpy()):
        assert torch.equal(to_tensor(image), expected)
    assert torch.equal(to_tensor(pixels[:, :, 0]), expected[:1])
    assert torch.equal(to_tensor(expected[0] > 99), (expected[:1] > 99).byte() * 255)
    assert to_tensor(expected.double()).dtype == torch.float32
    with pytest.raises(ValueError, match="is not an image; pass"):
        to_tensor(torch.zeros(2, 3, 4, 5))
    with pytest.raises(ValueError, match="value range of int64 pixels is unknown"):
        to_tensor(torch.zeros(3, 4, 5, dtype=torch.int64))


def test_whole_numbers_of_32_bits_are_refused():
    with pytest.raises(ValueError, match="value range of int32 pixels is unknown"):
        from_pil(Image.new("I", (4, 4)))
