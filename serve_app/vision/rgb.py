"""Pixels of any kind as RGB. Pillow gives their values, but not always what the values mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serve_app.errors import UnsupportedFormat

# Tags of a TIFF (TIFF 6.0, sections 8 and 18)
BITS, PHOTOMETRIC, EXTRA_SAMPLES = 258, 262, 338
WHITE_IS_ZERO = 0


def to_rgb(image: Image.Image, tags: dict[int, Any], *, bmp: bool = False) -> NDArray[np.uint8]:
    """An image of any Pillow mode as RGB uint8 (H, W, 3), transparent pixels white; of more than 8 bits the upper ones.

    `tags` are those of a TIFF, else none. Raises UnsupportedFormat for 32-bit pixels.
    """
    if image.mode in ("I", "F"):
        raise UnsupportedFormat("32-bit pixels have no defined white level: send 8 or 16 bits")
    if image.mode.startswith("I;16"):
        return grey(image, tags)
    if image.has_transparency_data and not opaque(image, tags, bmp=bmp):
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        background = Image.new("RGB", image.size, "white")
        background.paste(image, mask=image.getchannel("A"))
        image = background
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def grey(image: Image.Image, tags: dict[int, Any]) -> NDArray[np.uint8]:
    """Grey of 9 to 16 bits, of which a TIFF says how many, and whether 0 is white."""
    levels = np.asarray(image)
    upper = (levels >> (int(tags.get(BITS, (16,))[0]) - 8)).astype(np.uint8)
    upper[levels == image.info.get("transparency", -1)] = 255
    return np.repeat((255 - upper if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else upper)[:, :, None], 3, axis=2)


def opaque(image: Image.Image, tags: dict[int, Any], *, bmp: bool) -> bool:
    """Whether the fourth value of a pixel is not its transparency.

    In a TIFF it is that only if ExtraSamples says so. Many programs leave it 0 in a BMP, which then would be all white.
    """
    if image.mode != "RGBA":
        return False
    return (bool(tags) and EXTRA_SAMPLES not in tags) or (bmp and image.getchannel("A").getextrema() == (0, 0))
