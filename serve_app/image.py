"""Bytes in, a square uint8 image out. Knows nothing of Ray, HTTP or the network that will look at it.

The square has a fixed size, so that an image's answer does not depend on its neighbours in a batch.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from serve_app.errors import CorruptImage, ImageTooLarge, UnsupportedFormat

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # JPEG includes MPO, which many phones write
GREY = 114  # the letterbox colour YOLO was trained with
# What Pillow's decoders raise on damaged data (seen on its own test images), beside its documented OSError.
DAMAGED = (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, EOFError, struct.error, OverflowError)

# `decode` checks the size itself, against its own limit and before any pixel is decoded.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How an image of (width, height) pixels lies in its square: x_square = x * scale_x + left, likewise y."""

    width: int
    height: int
    scale_x: float
    scale_y: float
    left: int
    top: int


def decode(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """The upright first frame as RGB uint8 (H, W, 3). Transparency lies on white, as a browser shows it.

    Raises UnsupportedFormat, ImageTooLarge (from the header alone) or CorruptImage.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if not data or any(accept(data[:16]) for _, accept in map(Image.OPEN.__getitem__, FORMATS) if accept):
            raise CorruptImage("the image is empty or its header is damaged") from error
        raise UnsupportedFormat(f"not an image in one of the formats {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"the image has more than {max_pixels} pixels") from error
    except DAMAGED as error:
        raise CorruptImage(f"the image header is damaged: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(f"the image has {width} x {height} pixels, the limit is {max_pixels} in all")
    try:
        return to_rgb(ImageOps.exif_transpose(image))
    except DAMAGED as error:
        raise CorruptImage(f"the image is damaged or cut off: {error}") from error


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
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


def letterbox(image_hwc: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scales RGB uint8 (H, W, 3) to fit the middle of a grey square (size, size, 3), keeping its shape.

    Enlarges bilinearly, as the network was trained; shrinks by area, which does not alias.
    """
    height, width = image_hwc.shape[:2]
    ratio = min(size / width, size / height)
    w, h = max(round(width * ratio), 1), max(round(height * ratio), 1)
    how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
    scaled = image_hwc if (w, h) == (width, height) else cv2.resize(image_hwc, (w, h), interpolation=how)
    left, top = (size - w) // 2, (size - h) // 2
    square = np.full((size, size, 3), GREY, np.uint8)
    square[top : top + h, left : left + w] = scaled
    return square, Letterbox(width, height, w / width, h / height, left, top)
