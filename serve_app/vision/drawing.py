"""Draws labelled boxes on a photo.

Must not know where the boxes come from.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Labelled = tuple[float, float, float, float, int, str]  # x1, y1, x2, y2 in pixels, class id, text
# DejaVu Sans of matplotlib, which Ultralytics needs: Latin, Greek, Cyrillic, Arabic. Pillow's own font is ASCII only.
FONT = Path(str(getattr(find_spec("matplotlib"), "origin", ""))).with_name("mpl-data") / "fonts/ttf/DejaVuSans.ttf"
GOLDEN_RATIO = 0.618034  # as a step around the colour wheel, it keeps the colours of neighbouring ids far apart


def colour(class_id: int) -> tuple[int, int, int]:
    """A bright RGB colour (0 to 255 each), always the same for a class id."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * GOLDEN_RATIO % 1, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(photo: Image.Image, boxes: Iterable[Labelled]) -> Image.Image:
    """A copy of the upright RGB photo with a frame and a label for each box.

    `boxes` come most confident first. Lines and text scale with the shorter side of the photo.
    """
    canvas = photo.copy()
    pen = ImageDraw.Draw(canvas)
    unit = max(min(photo.size) / 400, 1)
    font = ImageFont.truetype(FONT, size=11 * unit)
    missing = bytes(font.getmask("\uffff"))  # the glyph that stands for all that the font does not have
    for x1, y1, x2, y2, class_id, name in reversed(list(boxes)):  # the most confident on top
        text = "".join(c if drawable(c, font, missing) else c.encode("unicode_escape").decode() for c in name)
        pen.rectangle((x1, y1, x2, y2), outline=colour(class_id), width=round(2 * unit))
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        width, height = right - left + 4 * unit, bottom - top + 4 * unit
        x, y = min(x1, max(photo.width - width, 0)), max(y1 - height, 0)
        pen.rectangle((x, y, x + width, y + height), fill=colour(class_id))
        light = sum(colour(class_id)) > 380
        pen.text((x + 2 * unit - left, y + 2 * unit - top), text, fill="black" if light else "white", font=font)
    return canvas


def drawable(character: str, font: ImageFont.FreeTypeFont, missing: bytes) -> bool:
    """Whether the font has the character. One that it has not is written as Python would escape it."""
    return character.isprintable() and bytes(font.getmask(character)) != missing


def to_jpeg(picture: Image.Image) -> bytes:
    """The picture as a JPEG file of quality 90."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()
