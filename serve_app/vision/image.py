"""Decodes an encoded image and letterboxes it into the network input, a uint8 RGB image.

The shape of the network input depends on the image alone, so its answer does not depend on the other images of its
batch. This module must not know Ray, HTTP or the network.
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
import pi_heif
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from serve_app.errors import CorruptImage, ImageTooLarge, UnsupportedFormat
from serve_app.vision import jpeg2000
from serve_app.vision.image_limits import check_size
from serve_app.vision.jpeg import with_end
from serve_app.vision.png import without_texts
from serve_app.vision.rgb import to_rgb

# JPEG includes MPO, and HEIF is HEIC: phones write both.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF", "JPEG2000")
JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL ")  # how such a file begins; nothing here decodes it
GREY = 114  # the letterbox colour YOLO was trained with
STRIDE = 32  # pixels: sides of a network input are multiples of the network's largest stride
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
Image.init()  # else Pillow loads what opens most formats only once it needs them
pi_heif.register_heif_opener(thumbnails=False)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where an image of (width, height) pixels lies in its network input.

    An image pixel x is at x * scale_x + left in the network input; the same holds for y with `scale_y` and `top`.
    If the image is a tile, its own top left corner is at `tile_x`, `tile_y` in the photo.
    """

    width: int
    height: int
    scale_x: float
    scale_y: float
    left: int
    top: int
    tile_x: int = 0
    tile_y: int = 0


def decode(data: bytes, max_pixels: int, max_frames: int = 1000) -> NDArray[np.uint8]:
    """The upright first frame as RGB uint8 (H, W, 3). Transparent pixels become white, as in a browser.

    Raises ImageTooLarge or ImageTooComplex before any pixel is decoded, UnsupportedFormat, or CorruptImage.
    """
    with opened(data, max_pixels, max_frames) as image:
        return upright(image)


def prepare(
    data: bytes, size: int, max_pixels: int, max_frames: int = 1000, *, crops: bool = False
) -> tuple[NDArray[np.uint8], Letterbox]:
    """`decode`, then `letterbox` or, with `crops`, `middle_square`: returns the network input and its Letterbox.

    A JPEG larger than the network input is decoded at 1/2, 1/4 or 1/8 of its size by the JPEG's own scaling. The
    decoded image is never smaller than the scaled one, so the last step always shrinks. Raises the errors of `decode`.
    """
    with opened(data, max_pixels, max_frames) as image:
        rgb, shape = reduced(image, size / (min if crops else max)(image.size))
        return middle_square(rgb, size, shape) if crops else letterbox(rgb, size, shape)


def reduced(image: Image.Image, ratio: float) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """`upright`, decoded at 1/2, 1/4 or 1/8 if it is a JPEG and that is not smaller than its size times `ratio`.

    Also returns the photo's own (height, width).
    """
    width, height = image.size
    image.draft(None, (math.ceil(width * ratio), math.ceil(height * ratio)))  # only has an effect on JPEG
    rgb = upright(image)  # must come before `orientation`: a damaged PNG has to fail here
    return rgb, ((width, height) if orientation(image) >= 5 else (height, width))


@contextmanager
def opened(data: bytes, max_pixels: int, max_frames: int) -> Iterator[Image.Image]:
    """The checked image, not decoded yet. Errors from opening it or from inside the block become AppErrors."""
    try:
        if jpeg2000.accepts(data):
            image = jpeg2000.opened(data, max_pixels)
        else:
            image = Image.open(io.BytesIO(without_texts(data)), formats=FORMATS)
        check_size(image, data, max_pixels, max_frames)
        if image.format in ("JPEG", "MPO") and (ended := with_end(data)) is not data:
            image = Image.open(io.BytesIO(ended), formats=FORMATS)
        yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"the image has more than {max_pixels} pixels") from error
    except DAMAGED as error:
        supported = any(accept(data[:16]) is True for _, accept in map(Image.OPEN.__getitem__, FORMATS) if accept)
        if data and not supported:
            kind = "a JPEG XL, and " if data.startswith(JPEG_XL) else ""
            raise UnsupportedFormat(f"{kind}not an image in one of the formats {', '.join(FORMATS)}") from error
        reason = "its header is damaged" if isinstance(error, UnidentifiedImageError) else error
        raise CorruptImage(f"the image is empty, damaged or cut off: {reason}") from error


def upright(image: Image.Image) -> NDArray[np.uint8]:
    """Decodes an image to RGB uint8 (H, W, 3), rotated as EXIF says."""
    image.load()
    if image.format == "JPEG2000":
        return to_rgb(jpeg2000.as_meant(image), {})
    turn = TURNS.get(orientation(image))
    tags = getattr(image, "tag_v2", {})  # a TIFF's
    return to_rgb(image.transpose(turn) if turn is not None else image, tags, bmp=image.format == "BMP")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Without one, or with EXIF data that is damaged, it is 1: the photo as it lies."""
    try:
        stated = int(image.getexif().get(0x0112, 1))
    except DAMAGED as error:
        logger.warning("cannot read the EXIF data, the photo is not rotated: %s", error)
        return 1
    return stated if stated in TURNS else 1


def letterbox(
    image_hwc: NDArray[np.uint8], size: int, shape: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scales RGB uint8 (H, W, 3) so that its longer side has `size` pixels, and pads the other with grey on both sides.

    Returns uint8 (h, w, 3), where h and w are the smallest multiples of STRIDE that hold the image. A 4:3 photo needs
    0.75 of the square's pixels, and so of the time. `shape` is the photo's own (height, width) if `image_hwc` is a
    smaller version of it. Enlarges bilinearly, as in the network's training. Shrinks by area, which does not alias.
    """
    height, width = shape or image_hwc.shape[:2]
    ratio = min(size / width, size / height)
    w, h = max(round(width * ratio), 1), max(round(height * ratio), 1)
    interpolation = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
    scaled = image_hwc if (h, w) == image_hwc.shape[:2] else cv2.resize(image_hwc, (w, h), interpolation=interpolation)
    padded_h, padded_w = (math.ceil(side / STRIDE) * STRIDE for side in (h, w))
    network_input = np.empty((padded_h, padded_w, 3), np.uint8)
    left, top = centre(network_input, scaled)  # type: ignore[arg-type] # OpenCV's types know no dtype
    return network_input, Letterbox(width, height, w / width, h / height, left, top)


def middle_square(
    image_hwc: NDArray[np.uint8], size: int, shape: tuple[int, int]
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scales RGB uint8 (H, W, 3) so that its shorter side has `size` pixels, and returns the square in its middle.

    Scales by Pillow and rounds as the training's own transforms do (torchvision's Resize and CenterCrop). `shape` is
    the photo's own (height, width). Returns uint8 (size, size, 3); `left` and `top` of its Letterbox are not positive.
    """
    height, width = shape
    short = min(height, width)
    h, w = (size if side == short else int(size * side / short) for side in shape)
    scaled = np.asarray(Image.fromarray(image_hwc).resize((w, h), Image.Resampling.BILINEAR))
    left, top = round((w - size) / 2), round((h - size) / 2)
    square = scaled[top : top + size, left : left + size].copy()
    return square, Letterbox(width, height, w / width, h / height, -left, -top)


def centre(place: NDArray[np.uint8], image_hwc: NDArray[np.uint8]) -> tuple[int, int]:
    """Writes an image into the middle of a larger one, uint8 (H, W, 3), grey around it. Returns its left and top."""
    (h, w), (height, width) = image_hwc.shape[:2], place.shape[:2]
    left, top = (width - w) // 2, (height - h) // 2
    if (h, w) != (height, width):
        place[...] = GREY
    place[top : top + h, left : left + w] = image_hwc
    return left, top
