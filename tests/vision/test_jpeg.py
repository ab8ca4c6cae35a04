"""JPEGs that lack their end marker, and JPEGs that lack more."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from serve_app.errors import CorruptImage, ImageTooComplex, ImageTooLarge
from serve_app.vision import image
from serve_app.vision.sample_photos import bus
from tests.conftest import shared
from tests.vision.test_image import LIMIT, encode
from tests.vision.test_image_limits import jpeg_of_scans

PHOTO = Image.open(io.BytesIO(bus())).resize((203, 157))
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("RGB", {}),
    "finest": ("RGB", {"quality": 100, "subsampling": 0}),
    "coarse, tables of its own": ("RGB", {"quality": 10, "optimize": True}),
    "progressive": ("RGB", {"progressive": True}),
    "grey": ("L", {}),
    "CMYK": ("CMYK", {}),
    "restart markers": ("RGB", {"restart_marker_blocks": 1}),
    "restart markers, progressive": ("RGB", {"restart_marker_rows": 1, "progressive": True}),
}
JPEGS = {name: encode(PHOTO.convert(mode), "JPEG", **options) for name, (mode, options) in KINDS.items()}
MARKED = JPEGS["plain"][:2] + b"\xff\xe1\x00\x06ab\xff\xd9" + JPEGS["plain"][2:]  # an end marker in an Exif segment


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("data", [*JPEGS.values(), MARKED], ids=[*JPEGS, "an end marker elsewhere"])
def test_without_its_end_marker_alone_it_has_the_same_pixels(data: bytes, missing: int) -> None:
    want, cut = image.decode(data, LIMIT), data[:-missing]
    np.testing.assert_array_equal(image.decode(cut, LIMIT), want)
    np.testing.assert_array_equal(image.prepare(cut, 64, LIMIT)[0], image.prepare(data, 64, LIMIT)[0])


@pytest.mark.parametrize("name", ["plain", "progressive", "grey", "restart markers"])
def test_its_pixels_are_those_of_opencv(name: str) -> None:
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(JPEGS[name][:-2])).load()
    want = cv2.imdecode(np.frombuffer(JPEGS[name], np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(image.decode(JPEGS[name][:-2], LIMIT).astype(int) - want).max() <= 2


@pytest.mark.parametrize("data", [*JPEGS.values(), MARKED], ids=[*JPEGS, "an end marker elsewhere"])
def test_where_data_is_missing_it_is_refused(data: bytes) -> None:
    """Or gives the very pixels, where only bits that say nothing are missing."""
    want, refused = image.decode(data, LIMIT), 0
    cuts = [
        *range(3, 40),
        100,
        len(data) // 2,
        *(at for at in range(700, len(data)) if data[at : at + 2] == b"\xff\xd3"),
    ]
    for cut in (data[:-length] for length in cuts):
        try:
            np.testing.assert_array_equal(image.decode(cut, LIMIT), want)
        except CorruptImage:
            refused += 1
    assert refused >= len(cuts) - 1


def test_between_two_scans_it_is_refused() -> None:
    """The scans before are whole, and show the photo, but not its last bits."""
    data = JPEGS["progressive"]
    for at in (at for at in range(len(data)) if data[at : at + 2] in (b"\xff\xda", b"\xff\xc4")):
        with pytest.raises(CorruptImage):
            image.decode(data[:at], LIMIT)


def test_limits_hold_before_it_is_completed() -> None:
    with pytest.raises(ImageTooLarge):
        image.decode(JPEGS["plain"][:-2], 203 * 157 - 1)
    with pytest.raises(ImageTooComplex):
        image.decode(jpeg_of_scans(500)[:-2], LIMIT)


def test_pillows_own_example_lacks_half_a_marker() -> None:
    data = shared("images", "decode", "truncated_jpeg.jpg").read_bytes()
    np.testing.assert_array_equal(image.decode(data, LIMIT), image.decode(data + b"\xd9", LIMIT))
