"""Bytes in, a square uint8 image out. Knows nothing of Ray, HTTP or the network that will look at it.

The square has a fixed size, so that an image's answer does not depend on its neighbours in a batch.
"""

from __future__ import annotations

import io
import logging
import math
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from serve_app.errors import CorruptImage, ImageTooComplex, ImageTooLarge, UnsupportedFormat

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # JPEG includes MPO, which many phones write
GREY = 114  # the letterbox colour YOLO was trained with
# What Pillow's decoders raise on damaged data (seen on its own test images), beside its documented OSError.
DAMAGED = (
    OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, AttributeError, EOFError, struct.error,
    OverflowError, RuntimeError,
)  # fmt: skip
# Each scan of a progressive JPEG costs a pass over all its pixels; real photos have about 10.
MAX_JPEG_SCANS = 100
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # of a JPEG segment; not a stuffed byte, fill byte or restart
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip # by EXIF orientation

logger = logging.getLogger("ray.serve")

warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How an image of (width, height) pixels lies in its square: x_square = x * scale_x + left, likewise y."""

    width: int
    height: int
    scale_x: float
    scale_y: float
    left: int
    top: int


def decode(data: bytes, max_pixels: int, max_frames: int = 1000) -> NDArray[np.uint8]:
    """The upright first frame as RGB uint8 (H, W, 3). Transparency lies on white, as a browser shows it.

    Raises UnsupportedFormat, ImageTooLarge and ImageTooComplex (from headers alone), or CorruptImage.
    """
    with opened(data, max_pixels, max_frames) as image:
        return upright(image)


def prepare(data: bytes, size: int, max_pixels: int, max_frames: int = 1000) -> tuple[NDArray[np.uint8], Letterbox]:
    """`decode` and `letterbox` in one: a JPEG larger than the square is decoded at 1/2, 1/4 or 1/8 by its own scaling.

    What it decodes is never smaller than what the square shows, so the last step always shrinks. Raises as `decode`.
    """
    with opened(data, max_pixels, max_frames) as image:
        width, height = image.size
        ratio = size / max(width, height)
        image.draft(None, (math.ceil(width * ratio), math.ceil(height * ratio)))  # formats but JPEG ignore it
        rgb = upright(image)  # before EXIF is asked for: a damaged PNG must fail here
        return letterbox(rgb, size, (width, height) if orientation(image) >= 5 else (height, width))


@contextmanager
def opened(data: bytes, max_pixels: int, max_frames: int) -> Iterator[Image.Image]:
    """The checked image, not decoded yet. What goes wrong, then or inside the block, is told as AppErrors."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(image, data, max_pixels, max_frames)
        yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"the image has more than {max_pixels} pixels") from error
    except DAMAGED as error:
        supported = any(accept(data[:16]) is True for _, accept in map(Image.OPEN.__getitem__, FORMATS) if accept)
        heif = data[8:12] in (b"mif1", b"msf1") and b"av01" not in data  # of the AVIF family, but no AVIF
        if data and (heif or not supported):
            raise UnsupportedFormat(f"not an image in one of the formats {', '.join(FORMATS)}") from error
        reason = "its header is damaged" if isinstance(error, UnidentifiedImageError) else error
        raise CorruptImage(f"the image is empty, damaged or cut off: {reason}") from error


def upright(image: Image.Image) -> NDArray[np.uint8]:
    """Decodes: RGB uint8 (H, W, 3), turned as EXIF says."""
    image.load()
    turn = TURNS.get(orientation(image))
    return to_rgb(image.transpose(turn) if turn is not None else image)


def check_size(image: Image.Image, data: bytes, max_pixels: int, max_frames: int) -> None:
    """Raises ImageTooLarge or ImageTooComplex, before any pixel is decoded."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(f"the image has {width} x {height} pixels, the limit is {max_pixels} in all")
    if image.format == "TIFF" and tile_pixels(image) > max_pixels:
        raise ImageTooLarge(f"the image is stored in tiles of more than {max_pixels} pixels")
    if image.format in ("JPEG", "MPO") and jpeg_scans(data) > MAX_JPEG_SCANS:
        raise ImageTooComplex(f"a JPEG of more than {MAX_JPEG_SCANS} scans")
    if has_more_frames(image, data, max_frames):
        raise ImageTooComplex(f"the image has more than {max_frames} frames")


def orientation(image: Image.Image) -> int:
    """EXIF's 1 to 8. A photo whose EXIF cannot be read is taken as it lies, and the log says so."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except DAMAGED as error:
        logger.warning("EXIF not readable, the photo is taken as it lies: %s", error)
        return 1


def jpeg_scans(data: bytes) -> int:
    """The number of scans, or one more than is allowed. Walks the segments, as a thumbnail or comment may hold more."""
    at = scans = 0
    while (marker := MARKER.search(data, at)) and scans <= MAX_JPEG_SCANS:
        kind, at = marker.group()[1], marker.end()
        if kind == 0xD9:
            break
        scans += kind == 0xDA
        if kind not in (0xD8, 0x01):
            at += int.from_bytes(data[at : at + 2])
    return scans


def tile_pixels(image: Image.Image) -> int:
    """Pixels of the largest piece that a TIFF decoder takes at a time; it may be larger than the image."""
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(322, 0)) * int(tags.get(323, 0))


def has_more_frames(image: Image.Image, data: bytes, limit: int) -> bool:
    """Counts no further than it must: a TIFF costs 60 us a frame, a GIF 1.6 us (20 MB: 1.4 s), the others know."""
    # Every GIF frame but the first starts with these two bytes; in pixels they are rare, about 300 in 20 MB.
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


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Any Pillow mode as RGB uint8 (H, W, 3); 16-bit gray keeps its upper byte. Raises UnsupportedFormat."""
    if image.mode in ("I", "F"):
        raise UnsupportedFormat("32-bit pixels have no defined white: send 8 or 16 bits")
    if image.mode.startswith("I;16"):
        levels = np.asarray(image)
        gray = (levels >> 8).astype(np.uint8)
        gray[levels == image.info.get("transparency", -1)] = 255
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image.getchannel("A"))
        image = paper
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def letterbox(
    image_hwc: NDArray[np.uint8], size: int, shape: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scales RGB uint8 (H, W, 3) to fit the middle of a grey square (size, size, 3), keeping its shape.

    `shape` is the photo's own (height, width), where `image_hwc` is a smaller version of it. Enlarges bilinearly, as
    the network was trained; shrinks by area, which does not alias.
    """
    height, width = shape or image_hwc.shape[:2]
    ratio = min(size / width, size / height)
    w, h = max(round(width * ratio), 1), max(round(height * ratio), 1)
    how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
    scaled = image_hwc if (h, w) == image_hwc.shape[:2] else cv2.resize(image_hwc, (w, h), interpolation=how)
    left, top = (size - w) // 2, (size - h) // 2
    square = np.full((size, size, 3), GREY, np.uint8)
    square[top : top + h, left : left + w] = scaled
    return square, Letterbox(width, height, w / width, h / height, left, top)
