"""Decodes an encoded image and letterboxes it into the network input, a square uint8 RGB image.

The network input has a fixed size, so the answer for an image does not depend on the other images of its batch. This
module must not know Ray, HTTP or the network.
"""

from __future__ import annotations

import io
import logging
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from serve_app.errors import CorruptImage, ImageTooLarge, UnsupportedFormat
from serve_app.vision.image_limits import check_size

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # JPEG includes MPO, which many phones write
GREY = 114  # the letterbox colour YOLO was trained with
# Pillow documents only OSError, but its decoders raise all of these on damaged data, as on its own test images.
DAMAGED = (
    OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, AttributeError, EOFError, struct.error,
    OverflowError, RuntimeError,
)  # fmt: skip
TURNS = {  # the operation that undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

logger = logging.getLogger("ray.serve")

warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where an image of (width, height) pixels lies in its network input.

    An image pixel x is at x * scale_x + left in the network input; the same holds for y with `scale_y` and `top`.
    """

    width: int
    height: int
    scale_x: float
    scale_y: float
    left: int
    top: int


def decode(data: bytes, max_pixels: int, max_frames: int = 1000) -> NDArray[np.uint8]:
    """The upright first frame as RGB uint8 (H, W, 3). Transparent pixels become white, as in a browser.

    Raises ImageTooLarge or ImageTooComplex before any pixel is decoded, UnsupportedFormat, or CorruptImage.
    """
    with opened(data, max_pixels, max_frames) as image:
        return upright(image)


def prepare(data: bytes, size: int, max_pixels: int, max_frames: int = 1000) -> tuple[NDArray[np.uint8], Letterbox]:
    """`decode` and `letterbox` in one: returns the network input (size, size, 3) and its Letterbox.

    A JPEG larger than the network input is decoded at 1/2, 1/4 or 1/8 of its size by the JPEG's own scaling. The
    decoded image is never smaller than the letterboxed one, so the last step always shrinks. Raises the errors of
    `decode`.
    """
    with opened(data, max_pixels, max_frames) as image:
        width, height = image.size
        ratio = size / max(width, height)
        image.draft(None, (math.ceil(width * ratio), math.ceil(height * ratio)))  # only has an effect on JPEG
        rgb = upright(image)  # must come before `orientation`: a damaged PNG has to fail here
        return letterbox(rgb, size, (width, height) if orientation(image) >= 5 else (height, width))


@contextmanager
def opened(data: bytes, max_pixels: int, max_frames: int) -> Iterator[Image.Image]:
    """The checked image, not decoded yet. Errors from opening it or from inside the block become AppErrors."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(image, data, max_pixels, max_frames)
        yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"the image has more than {max_pixels} pixels") from error
    except DAMAGED as error:
        supported = any(accept(data[:16]) is True for _, accept in map(Image.OPEN.__getitem__, FORMATS) if accept)
        heif = data[8:12] in (b"mif1", b"msf1") and b"av01" not in data  # AVIF's container without AV1 data
        if data and (heif or not supported):
            raise UnsupportedFormat(f"not an image in one of the formats {', '.join(FORMATS)}") from error
        reason = "its header is damaged" if isinstance(error, UnidentifiedImageError) else error
        raise CorruptImage(f"the image is empty, damaged or cut off: {reason}") from error


def upright(image: Image.Image) -> NDArray[np.uint8]:
    """Decodes an image to RGB uint8 (H, W, 3), rotated as EXIF says."""
    image.load()
    turn = TURNS.get(orientation(image))
    return to_rgb(image.transpose(turn) if turn is not None else image)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Logs unreadable EXIF data and returns 1, so the photo is not rotated."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except DAMAGED as error:
        logger.warning("cannot read the EXIF data, the photo is not rotated: %s", error)
        return 1


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """An image of any Pillow mode as RGB uint8 (H, W, 3), transparent pixels white; 16-bit grey keeps its upper byte.

    Raises UnsupportedFormat for 32-bit pixels.
    """
    if image.mode in ("I", "F"):
        raise UnsupportedFormat("32-bit pixels have no defined white level: send 8 or 16 bits")
    if image.mode.startswith("I;16"):
        levels = np.asarray(image)
        grey = (levels >> 8).astype(np.uint8)
        grey[levels == image.info.get("transparency", -1)] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        background = Image.new("RGB", image.size, "white")
        background.paste(image, mask=image.getchannel("A"))
        image = background
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def letterbox(
    image_hwc: NDArray[np.uint8], size: int, shape: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scales RGB uint8 (H, W, 3) to fit the middle of a grey image (size, size, 3), keeping its aspect ratio.

    `shape` is the photo's own (height, width) if `image_hwc` is a smaller version of it. Enlarges bilinearly, as in the
    network's training. Shrinks by area, which does not alias.
    """
    height, width = shape or image_hwc.shape[:2]
    ratio = min(size / width, size / height)
    w, h = max(round(width * ratio), 1), max(round(height * ratio), 1)
    interpolation = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
    scaled = image_hwc if (h, w) == image_hwc.shape[:2] else cv2.resize(image_hwc, (w, h), interpolation=interpolation)
    left, top = (size - w) // 2, (size - h) // 2
    network_input = np.full((size, size, 3), GREY, np.uint8)
    network_input[top : top + h, left : left + w] = scaled
    return network_input, Letterbox(width, height, w / width, h / height, left, top)
