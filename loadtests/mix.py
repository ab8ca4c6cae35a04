"""The photos that a load test sends: a round of sizes and formats as they come from phones, pages and thumbnails."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from serve_app import photos

# Of twenty: (how many, how much larger or smaller than the photo, format). A page's photo has 1 MP, a phone's 12 MP.
SHARES = {
    "1 MP JPEG": (10, 1.0, "JPEG"),
    "thumbnail JPEG": (4, 0.4, "JPEG"),
    "1 MP WebP": (2, 1.0, "WEBP"),
    "small PNG": (2, 0.5, "PNG"),
    "12 MP JPEG": (2, 3.7, "JPEG"),
}


class Photo(NamedTuple):
    """A request's body."""

    name: str
    media_type: str
    content: bytes


def photos_of(folder: Path | None) -> list[bytes]:
    """Real photos, JPEGs: those of the folder, else the two that every installation has."""
    if folder and folder.exists():
        return [p.read_bytes() for p in sorted(folder.glob("*.jpg"))]
    return [photos.bus(), photos.zidane()]


def mix(folder: Path | None = None) -> list[Photo]:
    """Twenty photos in a fixed order without a pattern."""
    originals = photos_of(folder)
    made: list[Photo] = []
    for name, (count, times, kind) in SHARES.items():
        for _ in range(count):
            data = originals[len(made) % len(originals)]
            content = data if (times, kind) == (1.0, "JPEG") else resized(data, times, kind)
            made.append(Photo(name, f"image/{kind.lower()}", content))
    random.Random(0).shuffle(made)
    return made


def resized(data: bytes, times: float, kind: str = "JPEG") -> bytes:
    """The same photo with more pixels or fewer; as a JPEG of a camera's quality."""
    with Image.open(io.BytesIO(data)) as photo:
        size = round(photo.width * times), round(photo.height * times)
        other = photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    other.save(file, kind, quality=92)
    return file.getvalue()
