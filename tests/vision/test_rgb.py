"""What the values of pixels mean: bits, zero as white, a fourth band; and what stands beside them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from serve_app.errors import CorruptImage
from serve_app.vision import image
from serve_app.vision.png import SIGNATURE
from tests.vision.test_image import chunk

LIMIT = 1_000_000
SHORT, LONG = 3, 4
BLACK, WHITE, DARK, LIGHT = 0, 255, 64, 192


def tiff(
    pixels: bytes, *, bits: tuple[int, ...], photometric: int, order: str = "<", extra: int | None = None
) -> bytes:
    """An uncompressed TIFF of 4 x 1 pixels."""
    tags = {256: (4,), 257: (1,), 258: bits, 259: (1,), 262: (photometric,), 273: (0,), 277: (len(bits),), 278: (1,)}
    tags |= {279: (len(pixels),)} | ({} if extra is None else {338: (extra,)})
    after = 8 + 2 + 12 * len(tags) + 4
    long_values = struct.pack(f"{order}{len(bits)}H", *bits) if len(bits) > 2 else b""
    tags[273] = (after + len(long_values),)
    entries = b""
    for tag, values in sorted(tags.items()):
        kind = LONG if tag in (273, 279) else SHORT
        value = struct.pack(f"{order}{len(values)}{'L' if kind == LONG else 'H'}", *values)
        where = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(f"{order}L", after)
        entries += struct.pack(f"{order}HHL", tag, kind, len(values)) + where
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}LH", 8, len(tags)) + entries + bytes(4)
    return head + long_values + pixels


def packed12(*levels: int) -> bytes:
    """Levels of 12 bits without gaps, most significant bit first."""
    return int("".join(f"{level:012b}" for level in levels), 2).to_bytes(len(levels) * 12 // 8)


LEVELS16 = [0, 64 << 8, 192 << 8, 65535]


@pytest.mark.parametrize(
    ("data", "grey"),
    [
        pytest.param(
            tiff(struct.pack("<4H", *LEVELS16), bits=(16,), photometric=1), [BLACK, DARK, LIGHT, WHITE], id="16 bits"
        ),
        pytest.param(
            tiff(struct.pack(">4H", *LEVELS16), bits=(16,), photometric=1, order=">"),
            [BLACK, DARK, LIGHT, WHITE],
            id="16 bits, big-endian",
        ),
        pytest.param(
            tiff(struct.pack("<4H", *LEVELS16), bits=(16,), photometric=0), [WHITE, 191, 63, BLACK], id="16, 0 is white"
        ),
        pytest.param(
            tiff(packed12(0, 1024, 3072, 4095), bits=(12,), photometric=1), [BLACK, DARK, LIGHT, WHITE], id="12 bits"
        ),
        pytest.param(
            tiff(bytes([0, 64, 192, 255]), bits=(8,), photometric=0), [WHITE, 191, 63, BLACK], id="8, 0 is white"
        ),
        pytest.param(tiff(b"\x50", bits=(1,), photometric=0), [WHITE, BLACK, WHITE, BLACK], id="1 bit, 0 is white"),
        pytest.param(tiff(b"\x04\xcf", bits=(4,), photometric=1), [0, 68, 204, WHITE], id="4 bits"),
    ],
)
def test_grey_of_any_depth(data: bytes, grey: list[int]) -> None:
    decoded = image.decode(data, LIMIT)
    assert decoded.shape == (1, 4, 3)
    assert decoded[0, :, 0].tolist() == grey
    assert (decoded == decoded[:, :, :1]).all()


RED, CLEAR_RED = (200, 0, 0, 255), (200, 0, 0, 0)


@pytest.mark.parametrize(
    ("data", "pixel"),
    [
        pytest.param(tiff(bytes(CLEAR_RED) * 4, bits=(8,) * 4, photometric=2), [200, 0, 0], id="without a meaning"),
        pytest.param(tiff(bytes(CLEAR_RED) * 4, bits=(8,) * 4, photometric=2, order=">"), [200, 0, 0], id="big-endian"),
        pytest.param(
            tiff(bytes((200, 200, 0, 0, 0, 0, 0, 0)) * 4, bits=(16,) * 4, photometric=2), [200, 0, 0], id="16 bits"
        ),
        pytest.param(tiff(bytes(CLEAR_RED) * 4, bits=(8,) * 4, photometric=2, extra=0), [200, 0, 0], id="unspecified"),
        pytest.param(tiff(bytes(CLEAR_RED) * 4, bits=(8,) * 4, photometric=2, extra=2), [255, 255, 255], id="alpha"),
        pytest.param(tiff(bytes(RED) * 4, bits=(8,) * 4, photometric=2, extra=2), [200, 0, 0], id="alpha, opaque"),
    ],
)
def test_a_fourth_band_is_alpha_only_if_the_tiff_says_so(data: bytes, pixel: list[int]) -> None:
    assert image.decode(data, LIMIT)[0, 0].tolist() == pixel


def bmp(*alphas: int) -> bytes:
    """A BMP with a mask for alpha (BITMAPV4HEADER), one red pixel for each alpha."""
    pixels = b"".join(bytes((0, 0, 200, alpha)) for alpha in alphas)
    masks = struct.pack("<4L", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<LllHHLLllLL", 108, len(alphas), 1, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks + bytes(52)
    return b"BM" + struct.pack("<LLL", 14 + len(header) + len(pixels), 0, 14 + len(header)) + header + pixels


@pytest.mark.parametrize(
    ("alphas", "reds"),
    [
        pytest.param((0, 0, 0), [[200, 0, 0]] * 3, id="0 everywhere: it was not filled in"),
        pytest.param((255, 255, 255), [[200, 0, 0]] * 3, id="opaque"),
        pytest.param((0, 255, 0), [[255, 255, 255], [200, 0, 0], [255, 255, 255]], id="real transparency"),
    ],
)
def test_the_alpha_of_a_bmp(alphas: tuple[int, ...], reds: list[list[int]]) -> None:
    assert image.decode(bmp(*alphas), LIMIT)[0].tolist() == reds


@pytest.mark.parametrize("orientation", [0, 9, 10, 255, 65535])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_unknown_orientation_is_as_it_lies(orientation: int, kind: str) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:20, :30] = 255
    Image.fromarray(picture).save(file, kind, exif=exif)
    decoded = image.decode(file.getvalue(), LIMIT)
    assert decoded.shape == (40, 60, 3)
    assert decoded[5, 5, 0] > 240 > 15 > decoded[35, 5, 0]
    _, letterbox = image.prepare(file.getvalue(), 96, LIMIT)
    assert (letterbox.width, letterbox.height) == (60, 40)


def png(*extra: bytes, after: tuple[bytes, ...] = ()) -> bytes:
    """A red PNG of 4 x 1 pixels with these chunks before and after its pixels."""
    header = struct.pack(">IIBBBBB", 4, 1, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + bytes((200, 0, 0)) * 4))
    return SIGNATURE + b"".join([chunk(b"IHDR", header), *extra, pixels, *after, chunk(b"IEND", b"")])


LARGE = zlib.compress(bytes(3_000_000))
TEXTS = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + LARGE),
    "iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE),
    "tEXt": chunk(b"tEXt", b"Comment\0" + bytes(range(1, 256)) * 8000),
    "70 small ones": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000))) * 70,
    "a damaged one": chunk(b"zTXt", b"Comment\0\0no zlib"),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_and_profiles_of_a_png_do_not_matter(text: bytes) -> None:
    for data in (png(text), png(after=(text,))):
        assert image.decode(data, LIMIT)[0, 0].tolist() == [200, 0, 0]


def test_what_a_png_needs_is_kept() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), "red").save(file, "PNG", exif=exif)
    data = file.getvalue()
    at = data.index(b"IDAT") - 4
    assert image.decode(data[:at] + TEXTS["zTXt"] + data[at:], LIMIT).shape == (60, 40, 3)
    clear = io.BytesIO()
    Image.new("P", (4, 4)).save(clear, "PNG", transparency=0)
    assert image.decode(clear.getvalue(), LIMIT)[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("cut", [10, 20, 35, 41])
def test_a_png_that_ends_early_is_refused(cut: int) -> None:
    with pytest.raises(CorruptImage):
        image.decode(png()[:cut], LIMIT)
