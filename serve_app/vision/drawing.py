"""Draws what was found on a photo: masks, boxes, skeletons and labels.

Takes results in the shape of an answer, with coordinates in pixels. Must not know where they come from.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Result = Mapping[str, Any]  # `class`, `name`, `confidence`, and what it has of `box`, `segments`, `keypoints`
Point = tuple[float, float]
Colour = tuple[int, int, int]
# DejaVu Sans of matplotlib, which Ultralytics needs: Latin, Greek, Cyrillic, Arabic. Pillow's own font is ASCII only.
FONT = Path(str(getattr(find_spec("matplotlib"), "origin", ""))).with_name("mpl-data") / "fonts/ttf/DejaVuSans.ttf"
GOLDEN_RATIO = 0.618034  # as a step around the colour wheel, it keeps the colours of neighbouring ids far apart
COVER = 110  # of 255: how much a mask covers the photo
SEEN = 0.5  # least visibility of a key point that is drawn
# Chains of COCO's 17 key points of a person: legs with hips, arms with shoulders, sides, and the face with the ears.
SKELETON = ((15, 13, 11, 12, 14, 16), (9, 7, 5, 6, 8, 10), (5, 11), (6, 12), (5, 3, 1, 2, 4, 6), (1, 0, 2))
PERSON_POINTS = 17


def colour(class_id: int) -> Colour:
    """A bright RGB colour (0 to 255 each), always the same for a class id."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * GOLDEN_RATIO % 1, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(photo: Image.Image, results: Iterable[Result]) -> Image.Image:
    """A copy of the upright RGB photo with each result on it.

    `results` come most confident first. Lines and text scale with the shorter side of the photo. A result without a box
    belongs to the whole photo: its label stands in a list at the top left.
    """
    best_first = list(results)
    canvas = covered(photo, best_first)
    pen = ImageDraw.Draw(canvas)
    unit = max(min(photo.size) / 400, 1)
    for result in reversed(best_first):  # the most confident on top
        outline(pen, result, unit)
        skeleton(pen, result, unit)
    label = Label(pen, photo.size, unit)
    below = 0.0
    for result in (r for r in best_first if "box" not in r):
        below += label.write(result, (0, below))
    for result in reversed([r for r in best_first if "box" in r]):
        label.write(result, min(corners(result), key=lambda corner: (corner[1], corner[0])), above=True)
    return canvas


def covered(photo: Image.Image, results: list[Result]) -> Image.Image:
    """A copy of the photo under the masks of the results."""
    canvas = photo.copy()
    for result in reversed(results):
        line = points(result.get("segments", {"x": (), "y": ()}))
        if len(line) > 1:
            mask = Image.new("L", photo.size)
            ImageDraw.Draw(mask).polygon(line, fill=COVER)
            canvas.paste(colour(result["class"]), (0, 0), mask)
    return canvas


def outline(pen: ImageDraw.ImageDraw, result: Result, unit: float) -> None:
    """The frame around a box, upright or turned."""
    if "box" in result:
        around = corners(result)
        pen.line([*around, *around[:2]], fill=colour(result["class"]), width=round(2 * unit), joint="curve")


def skeleton(pen: ImageDraw.ImageDraw, result: Result, unit: float) -> None:
    """The key points that are seen, and between those of a person the bones."""
    if "keypoints" not in result:
        return
    where = points(result["keypoints"])
    seen = [visible >= SEEN for visible in result["keypoints"].get("visible", [1] * len(where))]
    for chain in SKELETON if len(where) == PERSON_POINTS else ():
        for one, other in pairwise(chain):
            if seen[one] and seen[other]:
                pen.line([where[one], where[other]], fill=colour(result["class"]), width=round(1.5 * unit))
    for (x, y), shown in zip(where, seen, strict=True):
        if shown:
            pen.circle((x, y), 2 * unit, fill="white", outline=colour(result["class"]), width=round(unit))


class Label:
    """Writes labels on a photo."""

    def __init__(self, pen: ImageDraw.ImageDraw, size: tuple[int, int], unit: float) -> None:
        self._pen, (self._width, _), self._unit = pen, size, unit
        self._font = ImageFont.truetype(FONT, size=11 * unit)
        self._missing = bytes(self._font.getmask("\uffff"))  # the glyph for all that the font does not have

    def write(self, result: Result, at: Point, above: bool = False) -> float:
        """Writes name and confidence at a corner, or above it where there is room. Returns the label's height."""
        unit, name = self._unit, f"{result['name']} {result['confidence']:.0%}"
        text = "".join(c if self._drawable(c) else c.encode("unicode_escape").decode() for c in name)
        left, top, right, bottom = self._pen.textbbox((0, 0), text, font=self._font)
        width, height = right - left + 4 * unit, bottom - top + 4 * unit
        x, y = min(at[0], max(self._width - width, 0)), max(at[1] - height, 0) if above else at[1]
        self._pen.rectangle((x, y, x + width, y + height), fill=colour(result["class"]))
        fill = "black" if sum(colour(result["class"])) > 380 else "white"
        self._pen.text((x + 2 * unit - left, y + 2 * unit - top), text, fill=fill, font=self._font)
        return height

    def _drawable(self, character: str) -> bool:
        """Whether the font has the character. One that it has not is written as Python would escape it."""
        return character.isprintable() and bytes(self._font.getmask(character)) != self._missing


def points(line: Mapping[str, list[float]]) -> list[Point]:
    """The points of `x` and `y`."""
    return list(zip(line["x"], line["y"], strict=True))


def corners(result: Result) -> list[Point]:
    """The corners of a box, in their order around it."""
    values = list(result["box"].values())
    if len(values) == 4:
        x1, y1, x2, y2 = values
        return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    return list(zip(values[::2], values[1::2], strict=True))


def to_jpeg(picture: Image.Image) -> bytes:
    """The picture as a JPEG file of quality 90."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()
