from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loadtests.drills.fuzz import seeds
from serve_app import errors
from serve_app.vision import image

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


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG", "AVIF", "GIF", "JPEG2000"])
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


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of less than 100 bytes whose header promises any number of pixels."""
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
        pytest.param((128, 64), (0, 0, 64, 32), id="a wide one of half the height needs no bars"),
        pytest.param((64, 40), (0, 12, 64, 40), id="another gets bars above and below, to a multiple of 32"),
        pytest.param((66, 128), (15, 0, 33, 64), id="a tall one gets bars at the sides"),
        pytest.param((6400, 1), (0, 15, 64, 1), id="a line keeps one pixel"),
        pytest.param((1, 1), (0, 0, 64, 64), id="one pixel is enlarged"),
    ],
)
def test_letterbox(size: tuple[int, int], expected: tuple[int, int, int, int]) -> None:
    width, height = size
    found, box = image.letterbox(np.full((height, width, 3), 7, np.uint8), 64)
    left, top, w, h = expected
    inside = np.zeros((-(-h // 32) * 32, -(-w // 32) * 32), bool)
    inside[top : top + h, left : left + w] = True
    assert found.shape == (*inside.shape, 3)
    assert (found[inside] == 7).all()
    assert (found[~inside] == image.GREY).all()
    assert (box.left, box.top) == (left, top)
    assert (box.width * box.scale_x, box.height * box.scale_y) == pytest.approx((w, h))


# Made with libheif's heif-enc from CORNERS; Pillow and pi-heif cannot write HEIC.
HEIC = {name: (Path(__file__).parent / f"{name}.heic").read_bytes() for name in ("corners", "alpha", "ten_bits")}


@pytest.mark.parametrize("name", HEIC)
def test_heic(name: str) -> None:
    decoded = image.decode(HEIC[name], LIMIT)
    assert decoded.shape == (40, 60, 3)
    assert np.abs(decoded[10, 50].astype(int) - (0, 255, 0)).max() < 12
    assert np.abs(decoded[30, 30].astype(int) - (0, 0, 0)).max() < 12


def test_the_transparent_part_of_a_heic_is_white() -> None:
    assert image.decode(HEIC["alpha"], LIMIT)[10, 10].tolist() == [255, 255, 255]


def test_a_heic_above_the_limit_is_refused() -> None:
    assert image.decode(HEIC["corners"], 60 * 40).shape == (40, 60, 3)
    with pytest.raises(errors.ImageTooLarge):
        image.decode(HEIC["corners"], 60 * 40 - 1)


def claiming(width: int, height: int) -> bytes:
    """A HEIC whose `ispe` box promises another size."""
    at = HEIC["corners"].index(b"ispe") + 8
    return HEIC["corners"][:at] + struct.pack(">II", width, height) + HEIC["corners"][at + 8 :]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(claiming(16, 16), errors.CorruptImage, id="larger than it says"),
        pytest.param(HEIC["corners"][:-100], errors.CorruptImage, id="cut in the pixels"),
        pytest.param(HEIC["corners"][:300], errors.CorruptImage, id="cut in the header"),
        pytest.param(b"\xff\x0a" + bytes(100), errors.UnsupportedFormat, id="JPEG XL"),
        pytest.param(b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), errors.UnsupportedFormat, id="JPEG XL in a box"),
    ],
)
def test_bad_heic_and_jpeg_xl_are_refused(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error) as refused:
        image.decode(data, LIMIT)
    assert ("JPEG XL" in str(refused.value)) == (error is errors.UnsupportedFormat)
