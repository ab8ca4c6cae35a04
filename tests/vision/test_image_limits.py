"""Files made to cost more than they look: scans, tiles, frames, memory; and files broken at random."""

from __future__ import annotations

import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loadtests.drills.fuzz import mutate, seeds
from serve_app import errors
from serve_app.vision import image, image_limits
from tests.conftest import ROOT
from tests.vision.test_image import CORNERS, LIMIT, encode

SEEDS = seeds()


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
    assert 5 < image_limits.jpeg_scans(jpeg_of_scans(0)) < 20
    assert image_limits.jpeg_scans(jpeg_of_scans(10)) == image_limits.jpeg_scans(jpeg_of_scans(0)) + 10
    assert image.decode(jpeg_of_scans(0), LIMIT).shape == (64, 64, 3)
    plain = jpeg_of_scans(0)
    tail = b"\xff\xda" * 500  # a phone's motion photo has a film behind the picture
    assert image_limits.jpeg_scans(plain + tail) == image_limits.jpeg_scans(plain)
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
from serve_app.vision import image
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
