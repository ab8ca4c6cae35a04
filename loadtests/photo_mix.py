"""The photo mix of the load tests: the sizes and formats of phones, web pages and thumbnails."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from serve_app.vision import sample_photos

# Of 20 photos: (count, scale, format). A photo of a web page has about 1 MP, one of a phone 12 MP.
SHARES = {
    "1 MP JPEG": (10, 1.0, "JPEG"),
    "thumbnail JPEG": (4, 0.4, "JPEG"),
    "1 MP WebP": (2, 1.0, "WEBP"),
    "small PNG": (2, 0.5, "PNG"),
    "12 MP JPEG": (2, 3.7, "JPEG"),
}


class Photo(NamedTuple):
    """A request body, its media type, and its name in SHARES."""

    name: str
    media_type: str
    content: bytes


def photos_of(folder: Path | None) -> list[bytes]:
    """The JPEGs of the folder; without a folder, the two sample photos of every installation."""
    if folder and folder.exists():
        return [p.read_bytes() for p in sorted(folder.glob("*.jpg"))]
    return [sample_photos.bus(), sample_photos.zidane()]


def photo_mix(folder: Path | None = None) -> list[Photo]:
    """Twenty photos, shuffled, in the same order each time."""
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
    """The photo scaled by `times`. Quality 92 is that of a camera's JPEG."""
    with Image.open(io.BytesIO(data)) as photo:
        size = round(photo.width * times), round(photo.height * times)
        other = photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    other.save(file, kind, quality=92)
    return file.getvalue()
