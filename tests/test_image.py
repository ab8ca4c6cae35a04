from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loadtests.fuzz import mutate, seeds
from serve_app import errors, image
from tests.conftest import ROOT

LIMIT = 1_000_000
SEEDS = seeds()
CORNERS = np.zeros((40, 60, 3), np.uint8)  # red at the top left, green at the top right
CORNERS[:20, :30], CORNERS[:20, 30:] = (255, 0, 0), (0, 255, 0)


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    return encode(Image.fromarray(CORNERS).transpose(turn[orientation]), "JPEG", quality=95, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG", "AVIF", "GIF"])
def test_every_format_gives_the_same_picture(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    decoded = image.decode(encode(Image.fromarray(CORNERS), kind, **options), LIMIT)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded[10, [10, 50]].astype(int) - [(255, 0, 0), (0, 255, 0)]).max() < 12
    assert decoded.shape == (40, 60, 3)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_is_undone(orientation: int) -> None:
    decoded = image.decode(rotated(orientation), LIMIT)
    assert decoded.shape == (40, 60, 3)
    assert np.abs(decoded[10, [10, 50]].astype(int) - [(255, 0, 0), (0, 255, 0)]).max() < 12


@pytest.mark.parametrize(
    ("picture", "pixel"),
    [
        pytest.param(Image.new("L", (4, 4), 100), (100, 100, 100), id="gray is repeated"),
        pytest.param(Image.new("1", (4, 4), 1), (255, 255, 255), id="one bit is black or white"),
        pytest.param(Image.new("P", (4, 4), 0), (0, 0, 0), id="palette is looked up"),
        pytest.param(Image.new("RGBA", (4, 4), (200, 0, 0, 0)), (255, 255, 255), id="transparent is white"),
        pytest.param(Image.new("RGBA", (4, 4), (200, 0, 0, 255)), (200, 0, 0), id="opaque keeps its colour"),
        pytest.param(Image.new("LA", (4, 4), (10, 255)), (10, 10, 10), id="gray with alpha"),
        pytest.param(Image.new("I;16", (4, 4), 40_000), (156, 156, 156), id="16 bits keep the upper byte"),
    ],
)
def test_every_mode_becomes_rgb(picture: Image.Image, pixel: tuple[int, int, int]) -> None:
    assert image.decode(encode(picture, "PNG"), LIMIT)[0, 0].tolist() == list(pixel)


def test_cmyk_becomes_rgb() -> None:
    decoded = image.decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), LIMIT)
    assert np.abs(decoded[4, 4].astype(int) - (255, 0, 0)).max() < 12


def test_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    decoded = image.decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), LIMIT)
    assert decoded[0, 0].tolist() == [255, 0, 0]


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of less than 100 bytes whose header promises any number of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


GOOD = encode(Image.fromarray(CORNERS), "PNG")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"", errors.CorruptImage, id="nothing"),
        pytest.param(b"hello, I am a text", errors.UnsupportedFormat, id="text"),
        pytest.param(b"%PDF-1.7 ...", errors.UnsupportedFormat, id="another format"),
        pytest.param(
            encode(Image.fromarray(CORNERS), "ICO"), errors.UnsupportedFormat, id="a format Pillow knows only"
        ),
        pytest.param(encode(Image.new("F", (4, 4)), "TIFF"), errors.UnsupportedFormat, id="floating-point pixels"),
        pytest.param(encode(Image.new("I", (4, 4)), "TIFF"), errors.UnsupportedFormat, id="32-bit pixels"),
        pytest.param(GOOD[:20], errors.CorruptImage, id="cut in the header"),
        pytest.param(GOOD[: len(GOOD) // 2], errors.CorruptImage, id="cut in the pixels"),
        pytest.param(GOOD[:60] + bytes(20) + GOOD[80:], errors.CorruptImage, id="damaged pixels"),
        pytest.param(rotated(6)[:-50], errors.CorruptImage, id="a JPEG that ends early"),
        pytest.param(png_claiming(1000, 1000), errors.CorruptImage, id="exactly the limit is tried"),
        pytest.param(png_claiming(1000, 1001), errors.ImageTooLarge, id="one row above the limit"),
        pytest.param(png_claiming(60_000, 60_000), errors.ImageTooLarge, id="a decompression bomb"),
    ],
)
def test_bad_images_are_refused(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        image.decode(data, LIMIT)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param((64, 64), (0, 0, 64, 64), id="a square of the size fits"),
        pytest.param((128, 64), (0, 16, 64, 32), id="a wide one gets bars above and below"),
        pytest.param((32, 64), (16, 0, 32, 64), id="a tall one gets bars at the sides"),
        pytest.param((6400, 1), (0, 31, 64, 1), id="a line keeps one pixel"),
        pytest.param((1, 1), (0, 0, 64, 64), id="one pixel is enlarged"),
    ],
)
def test_letterbox(size: tuple[int, int], expected: tuple[int, int, int, int]) -> None:
    width, height = size
    square, box = image.letterbox(np.full((height, width, 3), 7, np.uint8), 64)
    left, top, w, h = expected
    inside = np.zeros((64, 64), bool)
    inside[top : top + h, left : left + w] = True
    assert square.shape == (64, 64, 3)
    assert (square[inside] == 7).all()
    assert (square[~inside] == image.GREY).all()
    assert (box.left, box.top) == (left, top)
    assert (box.width * box.scale_x, box.height * box.scale_y) == pytest.approx((w, h))


def test_a_photo_with_broken_exif_tags_still_turns() -> None:
    """Software typed as a fraction: writing that EXIF back, as Pillow's own rotation does, would fail."""
    tags = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x0131, 5, 1, 8)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + struct.pack("<I", 0)
    plain = encode(Image.fromarray(CORNERS), "JPEG")
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert image.decode(data, LIMIT).shape == (60, 40, 3)


def jpeg_of_scans(extra: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * extra + data[-2:]


def test_jpeg_scans_are_counted_where_they_are() -> None:
    assert 5 < image.jpeg_scans(jpeg_of_scans(0)) < 20
    assert image.jpeg_scans(jpeg_of_scans(10)) == image.jpeg_scans(jpeg_of_scans(0)) + 10
    assert image.decode(jpeg_of_scans(0), LIMIT).shape == (64, 64, 3)
    plain = jpeg_of_scans(0)
    tail = b"\xff\xda" * 500  # a phone's motion photo has a film behind the picture
    assert image.jpeg_scans(plain + tail) == image.jpeg_scans(plain)
    comment = b"\xff\xfe" + struct.pack(">H", 4) + b"\xff\xd9"  # an end that is none
    hidden = plain[:2] + comment + jpeg_of_scans(500)[2:]
    for bad in (jpeg_of_scans(500), hidden):
        with pytest.raises(errors.ImageTooComplex):
            image.decode(bad, LIMIT)


def test_a_tiff_tile_counts_even_if_the_image_is_small() -> None:
    tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 322: 40_000, 323: 40_000, 324: 200, 325: 256}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(1000)
    with pytest.raises(errors.ImageTooLarge, match="tiles"):
        image.decode(tiff, LIMIT)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_frames_are_limited(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (i * 60, 0, 0)) for i in range(5)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert image.decode(data, LIMIT, max_frames=5).shape == (8, 8, 3)
    with pytest.raises(errors.ImageTooComplex):
        image.decode(data, LIMIT, max_frames=4)


@settings(max_examples=600, deadline=None)
@given(st.integers(0, len(SEEDS) - 1), st.integers(0, 2**32))
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow grumbles about what it can read nevertheless
def test_mutated_files_are_decoded_or_refused(which: int, seed: int) -> None:
    try:
        decoded = image.decode(mutate(SEEDS[which], random.Random(seed)), LIMIT)
    except errors.AppError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3
    assert decoded.shape[2] == 3


PEAK = """
import resource, sys
from serve_app import image
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image.letterbox(image.decode(data, 52_000_000), 640)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
@pytest.mark.parametrize(("mode", "kind"), [("RGB", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("RGB", "WEBP")])
def test_memory_of_a_large_photo_is_bounded(mode: str, kind: str) -> None:
    """Four copies at most: Pillow's 4 bytes a pixel, rotated or on paper, and the array's 3, twice while it is made."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.new(mode, (4000, 3000)), kind, exif=exif)
    ended = subprocess.run([sys.executable, "-c", PEAK], input=data, capture_output=True, check=True, cwd=ROOT)
    assert int(ended.stdout) < 14.5 * 12_000_000 + 10_000_000
