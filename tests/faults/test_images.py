"""Images that are broken in every way: not finite, unreadable for a moment, unlike the others, oddly shaped, or hostile."""

from __future__ import annotations

import errno
import io
import math
import random
import resource
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

import superself
from superself.data import BatchLoader, EpochSampler, Preprocessing, SequentialBatches, decode, open_images, retry, tiff
from superself.data.decode import read_header, read_image
from superself.data.pixels import MAX_IMAGE_BYTES
from superself.data.resize import resize_mask_to_cover, resize_to_cover
from superself.data.sources import FileSource

RANDOM = np.random.default_rng(0)


def pixels(height=8, width=8, channels=3, dtype=np.uint8):
    return RANDOM.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)


def save_all(folder, n, make=pixels, ending="png"):
    """n files of the format, 000.png and so on."""
    for i in range(n):
        path = folder / f"{i:03d}.{ending}"
        np.save(path, make()) if ending == "npy" else Image.fromarray(make()).save(path)
    return folder


# ---- values that are not finite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_one_value_that_is_not_finite_or_overflows_makes_its_image_broken(tmp_path, value):
    data = torch.rand(40, 3, 8, 8)
    data[7, 1, 2, 3] = value
    for place, image in enumerate(data.numpy()):
        np.save(tmp_path / f"{place:03d}.npy", image)
    sources = {
        "tensor": data,
        "array": data.numpy(),
        "items": TensorDataset(data),
        "files": tmp_path,
    }
    for kind, source in sources.items():
        for images in (open_images(source), open_images(source).load()):
            batch = images.batch(range(40))
            assert batch.index.tolist() == [*range(7), 8, *range(8, 40)], kind
            assert batch.images.isfinite().all() and batch.images.max() <= 1, kind
            assert torch.equal(batch.images[7], data[8]), kind
            (reason,) = images.skipped.values()
            assert ("not finite" if not math.isfinite(value) else "overflow") in reason, kind
            assert images.broken_places().tolist() == [7] and " 1 skipped" in images.describe()
            assert all(math.isfinite(number) for number in Preprocessing.of(images).mean + Preprocessing.of(images).std)


def test_float_tiff_with_a_value_that_is_not_finite_is_broken(tmp_path):
    for i in range(30):
        image = np.full((5, 7), i, np.float32)
        image[2, 2] = math.nan if i == 4 else 0
        tifffile.imwrite(tmp_path / f"{i:02d}.tif", image)
    images = open_images(tmp_path)
    assert images.batch([3, 4]).index.tolist() == [3, 5]
    assert list(images.skipped.values()) == [
        "ValueError: 1 of 35 values are not finite (NaN or infinite); replace or remove them"
    ]


def test_values_that_are_not_finite_are_found_in_every_chunk_of_a_tensor(monkeypatch):
    monkeypatch.setattr("superself.data.pixels.CHUNK", 3 * 4)  # three images at a time
    data = torch.zeros(60, 1, 2, 2)
    data[[0, 31, 59], 0, 0, 0] = math.nan
    images = open_images(data)
    assert images.broken_places().tolist() == [0, 31, 59]
    assert images.batch([0, 31, 59]).index.tolist() == [1, 32, 1]


def test_too_many_images_that_are_not_finite_stop_with_the_list():
    data = torch.zeros(20, 1, 2, 2)
    data[[3, 4]] = math.nan
    with pytest.raises(
        ValueError, match=r"2 of 20 images cannot be read, more than 5%; .*item 3 \(ValueError: 4 of 4 values"
    ):
        open_images(data)
    with pytest.raises(ValueError, match="none of the images can be read: .*not finite"):
        open_images(TensorDataset(torch.full((4, 1, 2, 2), math.nan)))


def test_items_with_one_broken_probe_are_still_recognised_as_repeatable():
    data = torch.zeros(40, 1, 2, 2)
    data[0] = math.nan  # the first item is always probed
    assert open_images(TensorDataset(data)).load().in_memory


# ---- reads that fail for a moment ----------------------------------------------------------------------------------------


class Flaky(Dataset):
    """Items of which some fail, as ``fails(place, attempt)`` says."""

    failing = None

    def __init__(self, fails, error=None):
        self.fails, self.attempts = fails, {}
        self.error = error or OSError(errno.EIO, "Input/output error")

    def __len__(self):
        return 40

    def __getitem__(self, place):
        self.attempts[place] = self.attempts.get(place, 0) + 1
        if self.fails(place, self.attempts[place]):
            raise self.error
        return torch.full((1, 2, 2), place, dtype=torch.uint8)


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(retry, "PAUSES", (0, 0))


def test_read_that_fails_twice_succeeds_at_the_third_attempt(no_pauses, tmp_path, monkeypatch):
    images = open_images(Flaky(lambda place, attempt: place == 7 and attempt < 3))
    assert images.batch([7]).index.tolist() == [7] and not images.skipped
    save_all(tmp_path, 5)
    attempts = []

    def stale(path, *rest):
        attempts.append(path)
        if len(attempts) % 3:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read_image(path, *rest)

    monkeypatch.setattr("superself.data.sources.read_image", stale)
    images = open_images(tmp_path)
    assert images.batch([2]).index.tolist() == [2] and len(attempts) == 3


def test_damaged_image_is_not_read_again(no_pauses, tmp_path):
    save_all(tmp_path, 30, ending="bmp")
    (tmp_path / "004.bmp").write_bytes((tmp_path / "004.bmp").read_bytes()[:120])
    images, attempts = open_images(tmp_path), []
    read = images.source.read
    images.source.read = lambda place, size: (attempts.append(place), read(place, size))[1]
    for number in range(2):
        images.begin_pass(number)
        assert images.batch([4]).index.tolist() == [5]
    assert attempts.count(4) == 1 and list(images.skipped) == [str(tmp_path / "004.bmp")]


@pytest.mark.parametrize("workers", [0, 1])
def test_failures_that_pass_are_counted_per_epoch_and_never_add_up(no_pauses, workers):
    def fails(place, attempt):  # each epoch another image fails, all three attempts of it
        return Flaky.failing == place

    images = open_images(Flaky(fails))
    loader = BatchLoader(images, EpochSampler(40, 10, shuffle=False), num_workers=workers)
    for epoch in range(6):  # more than the 2 images that may be broken
        Flaky.failing = 10 + epoch
        index = torch.cat([batch.index for batch in loader])
        assert index.tolist() == [*range(10 + epoch), 11 + epoch, *range(11 + epoch, 40)]
        assert list(images.skipped) == [f"item {10 + epoch}"]
    Flaky.failing = None
    assert torch.equal(torch.cat([batch.index for batch in loader]), torch.arange(40)) and not images.skipped


def test_file_workers_forget_failures_that_pass(no_pauses, tmp_path):
    """The same workers serve all epochs: files that were away come back, and do not add up to too many."""
    save_all(tmp_path, 30)
    images = open_images(tmp_path)
    loader = BatchLoader(images, SequentialBatches(30, 10), num_workers=1)
    for place in (5, 6, 7, 8):  # one at a time, and more than the 1 that may be broken
        path = tmp_path / f"{place:03d}.png"
        path.rename(tmp_path / "away")
        index = torch.cat([batch.index for batch in loader])
        assert index.tolist() == [*range(place), place + 1, *range(place + 1, 30)]
        assert list(images.skipped) == [str(path)]
        (tmp_path / "away").rename(path)
    assert torch.equal(torch.cat([batch.index for batch in loader]), torch.arange(30)) and not images.skipped


def test_more_than_five_percent_failing_in_one_epoch_stops(no_pauses):
    images = open_images(Flaky(lambda place, attempt: place in (11, 12, 13)))
    with pytest.raises(
        ValueError, match=r"3 of 40 images cannot be read, more than 5%; .*item 11 \(OSError: .*Input/output"
    ):
        list(BatchLoader(images, SequentialBatches(40, 10)))


# ---- images that are unlike the others -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (pixels(8, 8, 1, np.uint16)[:, :, 0], "uint16 pixels, the others have uint8"),
        (np.zeros((8, 8), np.float32), "float32 pixels, the others have uint8"),
    ],
)
def test_single_file_of_another_type_does_not_change_the_data_set(tmp_path, other, reason):
    save_all(tmp_path, 40, lambda: pixels(channels=1)[:, :, 0], "npy")
    np.save(tmp_path / "003.npy", other)
    for images in (open_images(tmp_path), open_images(tmp_path).load()):
        assert images.dtype == torch.uint8 and images.batch([3]).index.tolist() == [4]
        assert list(images.skipped.values()) == [reason]
    with pytest.raises(ValueError, match=f'1 of 40 images cannot be read and on_bad_image="raise".*003.npy .{reason}'):
        open_images(tmp_path, on_bad_image="raise")


def test_single_whole_numbered_file_among_float_ones_is_the_outlier(tmp_path):
    save_all(tmp_path, 40, lambda: RANDOM.random((8, 8)), "npy")
    np.save(tmp_path / "003.npy", pixels(channels=1)[:, :, 0])
    assert list(open_images(tmp_path).skipped.values()) == ["uint8 pixels, the others have float32"]


def test_real_mixtures_are_widened_or_refused_with_their_counts(tmp_path):
    save_all(tmp_path, 40, lambda: pixels(channels=1)[:, :, 0], "npy")
    for i in range(3):
        np.save(tmp_path / f"{i:03d}.npy", pixels(8, 8, 1, np.uint16)[:, :, 0])
    images = open_images(tmp_path)
    assert images.dtype == torch.uint16 and not images.skipped
    for i in range(3):
        np.save(tmp_path / f"{i:03d}.npy", np.zeros((8, 8), np.float32))
    with pytest.raises(
        ValueError, match=r"003.npy is uint8 and .*000.npy is float32 \(37 and 3 images\); .*convert one kind"
    ):
        open_images(tmp_path)


def test_sizes_that_differ_are_refused_with_their_counts(tmp_path):
    save_all(tmp_path, 20)
    Image.fromarray(pixels(9, 12)).save(tmp_path / "004.png")
    with pytest.raises(
        ValueError, match=r"000.png is 8 x 8 \(19 images\), .*004.png is 9 x 12 \(1 image\); pass image_size="
    ):
        open_images(tmp_path)


# ---- shapes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp", "ppm"])
@pytest.mark.parametrize("size", [(1, 9), (2, 9), (3, 9), (3, 3), (9, 3), (9, 1), (1, 1)])
def test_images_of_few_rows_keep_their_axes(tmp_path, ending, size):
    expected = pixels(*size)
    path = tmp_path / f"image.{ending}"
    Image.fromarray(expected).save(path, lossless=True)
    assert read_header(path)[:3] == expected.shape
    image = FileSource([path]).read(0, None).image
    assert torch.equal(image, torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize("shape", [(4, 9, 4), (2, 9, 5), (5, 5, 5)])
def test_tiff_with_as_many_bands_as_rows_keeps_its_axes(tmp_path, shape):
    expected = pixels(*shape).astype(np.uint16)
    bands = np.ascontiguousarray(np.moveaxis(expected, 2, 0))
    tifffile.imwrite(tmp_path / "bands.tif", bands, photometric="minisblack", planarconfig="separate")
    assert read_header(tmp_path / "bands.tif")[:3] == shape
    image = FileSource([tmp_path / "bands.tif"]).read(0, None).image
    assert np.array_equal(image.numpy(), bands)


def test_npy_whose_axes_are_ambiguous_is_refused_with_the_remedy(tmp_path):
    for shape in ((2, 60, 3), (4, 9, 4), (3, 60, 1), (5, 9, 5)):
        np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
        with pytest.raises(
            ValueError, match=r"cannot infer which axis .*read=lambda path: torch.from_numpy\(numpy.load"
        ):
            open_images(tmp_path / "a.npy")
        with pytest.raises(ValueError, match="cannot infer which axis"):
            open_images(np.zeros((2, *shape), np.uint8))
        images = open_images(tmp_path / "a.npy", read=lambda path: torch.from_numpy(np.load(path)))
        assert images.shape == shape


def test_very_long_images_are_cut_before_they_are_resized(tmp_path):
    Image.fromarray(np.full((1, 60000, 3), 7, np.uint8)).save(tmp_path / "line.png")
    images = open_images(tmp_path, image_size=64)
    assert images.batch([0]).images.unique().tolist() == [7] and images.shape == (3, 64, 64)
    line = torch.arange(60001).float().view(1, 1, 1, -1)
    middle = resize_to_cover(line, (8, 8))
    assert middle.shape == (1, 1, 8, 8) and abs(middle.mean() - 30000) < 1
    assert abs(resize_to_cover(line.transpose(2, 3), (8, 8)).mean() - 30000) < 1
    assert resize_mask_to_cover(line.long(), (8, 8)).float().mean().sub(30000).abs() < 1


# ---- files that are hostile ----------------------------------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def png(width, height, data=b"", colour_type=2, depth=8, chunks=b""):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)),
            chunks,
            chunk(b"IDAT", zlib.compress(data)),
            chunk(b"IEND", b""),
        ]
    )


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "ICO", "JPEG2000", "PDF", "SGI", "DDS", "IM"])
def test_other_formats_are_refused_whatever_the_file_is_called(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    path = tmp_path / "image.jpg"
    if kind == "EPS":
        path.write_bytes(EPS)
    else:
        Image.new("RGB", (8, 8)).save(path, format=kind)
    for read in (read_header, read_image):
        with pytest.raises(Exception, match=r"not an image in a known format \(JPEG, PNG, .*NPY\)"):
            read(path)


def test_every_file_that_pillow_opens_here_is_limited_to_the_known_formats():
    for file in Path(decode.__file__).parent.glob("*.py"):
        text = file.read_text()
        assert text.count("Image.open(file") == text.count("formats=FORMATS)"), file


def test_header_that_announces_too_much_is_refused_before_decoding(tmp_path):
    side = math.isqrt(MAX_IMAGE_BYTES // 4) + 1  # of floating-point pixels
    huge = {
        "huge.png": png(100_000, 100_000),
        "deep.png": png(13_000, 14_000, depth=16, colour_type=6),
        "huge.ppm": b"P6 30000 30000 255\n",
        "huge.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
        "float.ppm": f"Pf {side} {side} 1.0\n".encode(),
    }
    array = io.BytesIO()
    Image.new("P", (8, 8)).save(array, "GIF")
    huge["huge.gif"] = array.getvalue().replace(struct.pack("<HH", 8, 8), struct.pack("<HH", 65535, 65535))
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": (40_000, 40_000)})
    huge["huge.npy"] = array.getvalue()
    tifffile.imwrite(tmp_path / "huge.tif", np.zeros((33, 33), np.uint16), photometric="minisblack", metadata=None)
    huge["huge.tif"] = (tmp_path / "huge.tif").read_bytes()
    for tag in (256, 257):  # width and height
        entry = struct.pack("<HHI", tag, 4, 1)
        huge["huge.tif"] = huge["huge.tif"].replace(entry + struct.pack("<I", 33), entry + struct.pack("<I", 33_000))
    for name, data in huge.items():
        (tmp_path / name).write_bytes(data)
    with open(tmp_path / "huge.npy", "r+b") as file:
        file.truncate(1600_000_000 + 1000)  # sparse: as large as it says
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in tmp_path.iterdir():
        for read in (read_header, read_image):
            with pytest.raises(
                ValueError, match="one image may take 1 GiB; .*pass read=|exceeds limit of .*pass read="
            ):
                read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_tiff_segment_that_expands_without_limit_is_refused(tmp_path, monkeypatch):
    """The header says 64 x 64 pixels, the compressed strip holds far more."""
    monkeypatch.setattr(tiff, "SMALL_SEGMENT", 2**10)
    monkeypatch.setattr(tiff, "MAX_IMAGE_BYTES", 2**20)
    monkeypatch.setattr("superself.data.pixels.MAX_IMAGE_BYTES", 2**20)
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint16), compression="zlib", photometric="rgb", rowsperstrip=64)
    bomb = zlib.compress(bytes(2**23), 9)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        places = [(tags[number].valueoffset, value) for number, value in ((273, len(data)), (279, len(bomb)))]
        kinds = [tags[number].dtype for number in (273, 279)]
    for (place, value), kind in zip(places, kinds, strict=True):
        size = {3: 2, 4: 4, 16: 8}[int(kind)]
        data[place : place + size] = value.to_bytes(size, "little")
    path.write_bytes(bytes(data) + bomb)
    with pytest.raises(ValueError, match="one image may take"):
        read_image(path)


def test_tiff_whose_pages_go_round_in_a_circle_is_refused(tmp_path):
    for big in (False, True):
        with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=big) as writer:
            for _ in range(2):
                writer.write(pixels().astype(np.uint16), photometric="rgb", metadata=None)
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            first, second = (page.offset for page in file.pages)
            kind = "<Q" if big else "<I"
        data = (tmp_path / "a.tif").read_bytes()
        assert data.count(struct.pack(kind, second)) == 1
        (tmp_path / "a.tif").write_bytes(data.replace(struct.pack(kind, second), struct.pack(kind, first)))
        with pytest.raises(ValueError, match="a damaged TIFF: its pages overlap or go round in a circle"):
            read_header(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_bombs_in_the_text_of_a_png_are_refused(tmp_path, kind):
    bomb = zlib.compress(bytes(2**22))
    body = {b"zTXt": b"key\0\0" + bomb, b"iTXt": b"key\0\1\0\0\0" + bomb, b"iCCP": b"name\0\0" + bomb}[kind]
    (tmp_path / "bomb.png").write_bytes(png(8, 8, bytes(25 * 8), chunks=chunk(kind, body)))
    with pytest.raises(ValueError, match="none of the images can be read: .*bomb.png .ValueError: .*too large"):
        open_images(tmp_path)


def test_arrays_of_objects_are_refused_and_their_code_does_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was executed",))

    np.save(tmp_path / "object.npy", np.array([[Payload()]], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04cbuiltins\nprint\n.")
    np.savez(tmp_path / "archive.npz", np.zeros((8, 8)))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    np.save(tmp_path / "empty.npy", np.zeros((0, 8), np.uint8))
    np.save(tmp_path / "complex.npy", np.zeros((8, 8), np.complex64))
    (tmp_path / "negative.npy").write_bytes(
        (tmp_path / "complex.npy").read_bytes().replace(b"(8, 8)", b"(-8,8)").replace(b"<c8", b"|u1")
    )
    for name, message in {
        "object": "Python objects",
        "pickle": "not an array as numpy.save writes it",
        "archive": "not an array as numpy.save writes it",
        "empty": "has no pixels|empty file|mmap",
        "complex": "value range of complex64 pixels is unknown",
        "negative": "negative|reshape|invalid|no pixels|shape",
    }.items():
        for read in (read_header, read_image):
            with pytest.raises(ValueError, match=message):
                read(tmp_path / f"{name}.npy")


@pytest.mark.parametrize("orientation", [1, 6])
def test_decoding_makes_one_array_and_small_strips(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGBA", (3000, 2000)).save(tmp_path / "image.png", exif=exif)
    tracemalloc.start()
    try:
        array = read_image(tmp_path / "image.png")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert array.size == 3000 * 2000 * 3 and peak < 1.8 * array.nbytes


MEASURE = """
import resource, sys
from pathlib import Path
from superself.data.sources import FileSource
source = FileSource([Path(sys.argv[1])])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source.scan()
image = source.read(0, None).image
print(image.numel(), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["image.jpg", "turned.jpg", "image.png", "clear.png"])
def test_decoding_takes_about_twice_the_memory_of_the_pixels(tmp_path, name):
    image = Image.new("RGBA" if name == "clear.png" else "RGB", (6000, 6000))
    exif = Image.Exif()
    exif[0x0112] = 6 if name == "turned.jpg" else 1
    image.save(tmp_path / name, exif=exif)
    root = str(Path(superself.__file__).parent.parent)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": root, "OMP_NUM_THREADS": "1"})
    decoded, taken = map(int, done.stdout.split())
    assert decoded == 6000 * 6000 * 3 and taken < 2.6 * decoded, done.stderr


# ---- random damage -------------------------------------------------------------------------------------------------------


def small_files():
    """Small files of every format, as name -> bytes."""
    files = {}
    image = Image.fromarray(RANDOM.integers(0, 256, (12, 10, 3), dtype=np.uint8))
    for ending, kind, options in (
        ("jpg", "JPEG", {}),
        ("jpg", "JPEG", {"progressive": True}),
        ("png", "PNG", {}),
        ("gif", "GIF", {}),
        ("bmp", "BMP", {}),
        ("webp", "WEBP", {}),
        ("tif", "TIFF", {}),
        ("tif", "TIFF", {"compression": "tiff_lzw"}),
        ("ppm", "PPM", {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files[f"{len(files)}.{ending}"] = buffer.getvalue()
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.asarray(image).astype(np.uint16), compression="zlib", photometric="rgb")
    files["deep.tif"] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(image))
    files["array.npy"] = buffer.getvalue()
    return files


def mutated(data, draw):
    """The bytes with a few flipped, cut off or inserted."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(min(len(data), 64))
        kind = draw.randrange(4)
        if kind == 0:
            data[place] = draw.randrange(256)
        elif kind == 1:
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 2:
            data[place:place] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 8)))
        else:
            del data[max(1, place) :]
    return bytes(data)


def check_mutations(folder, count, seed):
    """Every mutated file is either read, in the right place, or listed."""
    draw, files = random.Random(seed), small_files()
    names = []
    for number in range(count):
        name = draw.choice(sorted(files))
        path = folder / f"{number:05d}.{name.split('.')[1]}"
        path.write_bytes(mutated(files[name], draw))
        names.append(path)
    whole = folder / "whole"
    whole.mkdir()
    good = save_all(whole, 1).joinpath("000.png")
    intact = [good] * (count * 20)  # so that the share of broken images stays below the limit
    images = open_images([*names, *intact], image_size=8)
    read = 0
    for first in range(0, count, 50):
        places = list(range(first, min(first + 50, count)))
        batch = images.batch(places)
        skipped = images.skipped
        for place, index in zip(places, batch.index.tolist(), strict=True):
            listed = str(names[place]) in skipped
            assert (index != place) == listed
            read += not listed
        assert batch.images.shape[1:] == (3, 8, 8)
    assert 0 < read < count


@pytest.fixture
def watched():
    """Prints where every thread is, and ends the process, if a test hangs."""
    import faulthandler

    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    assert threading.active_count() < 50


@pytest.mark.filterwarnings("ignore")
def test_300_damaged_files_are_read_or_listed(tmp_path, watched):
    check_mutations(tmp_path, 300, seed=0)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_3000_damaged_files_are_read_or_listed(tmp_path, watched):
    check_mutations(tmp_path, 3000, seed=1)
