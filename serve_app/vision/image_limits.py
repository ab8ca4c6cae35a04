"""The limits of an image that are checked before any of its pixels is decoded."""

from __future__ import annotations

from PIL import Image

from serve_app.errors import ImageTooComplex, ImageTooLarge
from serve_app.vision.jpeg import SCAN, segments

# Each scan of a progressive JPEG costs one pass over all pixels. Real photos have about 10 scans.
MAX_JPEG_SCANS = 100


def check_size(image: Image.Image, data: bytes, max_pixels: int, max_frames: int) -> None:
    """Raises ImageTooLarge or ImageTooComplex. Decodes no pixels."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(f"the image has {width} x {height} pixels, the limit is {max_pixels} in total")
    if image.format == "TIFF" and tile_pixels(image) > max_pixels:
        raise ImageTooLarge(f"the image is stored in tiles of more than {max_pixels} pixels")
    if image.format in ("JPEG", "MPO") and jpeg_scans(data) > MAX_JPEG_SCANS:
        raise ImageTooComplex(f"the JPEG has more than {MAX_JPEG_SCANS} scans")
    if has_more_frames(image, data, max_frames):
        raise ImageTooComplex(f"the image has more than {max_frames} frames")


def jpeg_scans(data: bytes) -> int:
    """The number of scans, at most MAX_JPEG_SCANS + 1."""
    scans = 0
    for kind, _, _ in segments(data):
        scans += kind == SCAN
        if scans > MAX_JPEG_SCANS:
            break
    return scans


def tile_pixels(image: Image.Image) -> int:
    """Pixels of one TIFF tile, which is decoded as a whole and may be larger than the image; 0 without tiles."""
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(322, 0)) * int(tags.get(323, 0))


def has_more_frames(image: Image.Image, data: bytes, limit: int) -> bool:
    """Whether the image has more than `limit` frames.

    Counting a TIFF costs 60 us a frame, so it stops at the limit. Counting a GIF costs 1.6 us a frame, 1.4 s for 20 MB.
    The other formats know their number of frames.
    """
    # A cheap bound for GIF: every frame but the first starts with these two bytes. Pixel data of 20 MB contains them
    # only about 300 times.
    if image.format == "GIF" and data.count(b"\x00,") > 2 * limit:
        return True
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1) > limit
    try:
        image.seek(limit)
    except EOFError:
        image.seek(0)
        return False
    return True
