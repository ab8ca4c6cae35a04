"""Mosaics of labelled photos: large photos of small objects, made from a data set of small photos.

A mosaic has 3 x 3 photos, each at its own size in the middle of a square cell of CELL pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

ACROSS, CELL = 3, 640
GREY = (114, 114, 114)


def write(photos: Sequence[Path], labels: Path, folder: Path) -> list[Path]:
    """Writes mosaics of these photos and their labels, in YOLO's format, to `folder`. Leaves the last few photos out.

    Returns the mosaics.
    """
    written = []
    for directory in ("images", "labels"):
        (folder / directory).mkdir(parents=True, exist_ok=True)
    for first in range(0, len(photos) - ACROSS**2 + 1, ACROSS**2):
        mosaic, lines = Image.new("RGB", (ACROSS * CELL, ACROSS * CELL), GREY), list[str]()
        for place, photo in enumerate(photos[first : first + ACROSS**2]):
            with Image.open(photo) as image:
                rgb = image.convert("RGB")
            row, column = divmod(place, ACROSS)
            left, top = column * CELL + (CELL - rgb.width) // 2, row * CELL + (CELL - rgb.height) // 2
            mosaic.paste(rgb, (left, top))
            lines += moved(labels / f"{photo.stem}.txt", rgb.size, (left, top))
        written.append(folder / "images" / f"{first:05d}.jpg")
        mosaic.save(written[-1], quality=95, subsampling=0)
        (folder / "labels" / f"{first:05d}.txt").write_text("".join(lines))
    return written


def moved(labels: Path, size: tuple[int, int], corner: tuple[int, int]) -> list[str]:
    """The lines of a photo's label file as they are in the mosaic; none without a file."""
    side, lines = ACROSS * CELL, []
    for line in labels.read_text().splitlines() if labels.exists() else ():
        k, *values = line.split()
        x, y, w, h = map(float, values)
        x, y = (x * size[0] + corner[0]) / side, (y * size[1] + corner[1]) / side
        lines.append(f"{k} {x:.6f} {y:.6f} {w * size[0] / side:.6f} {h * size[1] / side:.6f}\n")
    return lines
