"""Pinned photos and what must be found on them: the last test of weights before they serve.

The photos lie in the set itself (JPEG, at most 640 px), so that one hash pins them together with what is expected.
Knows nothing of Ray or torch.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, PositiveFloat

from serve_app import boxes, drawing, image
from serve_app.errors import GoldenFailed

Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
SURE = 0.5  # an object found with less confidence is not counted as extra
MAX_PIXELS, SIDE = 52_000_000, 640  # of a photo that is put into the set, and of what is kept of it
TIMED = 5  # forward passes of each network, alternating; the fastest counts, as others may disturb the rest


class Expected(BaseModel):
    """An object that must be found: corners x1 y1 x2 y2 in pixels of the upright photo."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    box: tuple[float, float, float, float]
    score: float


class Photo(BaseModel):
    """A JPEG and all that is on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    jpeg: Base64Bytes
    objects: tuple[Expected, ...]


class Limits(BaseModel):
    """How far new weights may stray from what the set says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iou: float = Field(0.6, description="least overlap with the expected box")
    score_drop: float = Field(0.3, description="most confidence that an object may lose")
    missed: float = Field(0.1, description="most objects not found, as a fraction of those expected")
    extra: float = Field(0.25, description="most objects found with confidence of 0.5 that are not expected, likewise")
    slowdown: PositiveFloat = Field(3.0, description="most time for an image, as a multiple of the weights before")


class Golden(BaseModel):
    """The golden set of a service. It outlives weights: what was right once must stay right."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    photos: tuple[Photo, ...]
    limits: Limits = Limits()


def found(forward: Forward, names: tuple[str, ...], photo: bytes, size: int, conf: float) -> list[Expected]:
    """What a network finds on a photo, surest first."""
    square, box = image.prepare(photo, size, MAX_PIXELS)
    at = boxes.final(forward(square[None])[0], box, conf)
    rows = zip(at.xyxy.astype(float).round(1).tolist(), at.confidence.tolist(), at.class_id.tolist(), strict=True)
    return [Expected(name=names[k], box=tuple(xyxy), score=round(score, 3)) for xyxy, score, k in rows]


def make(forward: Forward, names: tuple[str, ...], photos: list[Path], size: int) -> Golden:
    """A set that says what this network is sure of. Raises AppErrors for a photo that cannot be read."""
    made = []
    for path in photos:
        picture = Image.fromarray(image.decode(path.read_bytes(), MAX_PIXELS))
        picture.thumbnail((SIDE, SIDE))
        jpeg = drawing.to_jpeg(picture)
        sure = tuple(o for o in found(forward, names, jpeg, size, SURE))
        made.append(Photo(file=path.name, jpeg=base64.b64encode(jpeg), objects=sure))
    return Golden(photos=tuple(made))


def check(golden: Golden, forward: Forward, names: tuple[str, ...], size: int) -> None:
    """Raises GoldenFailed, with the first objects that are missing or too many."""
    limits = golden.limits
    missed: list[str] = []
    extra: list[str] = []
    for photo in golden.photos:
        left = found(forward, names, photo.jpeg, size, conf=0.05)
        for want in photo.objects:
            good = [f for f in left if f.name == want.name and f.score >= want.score - limits.score_drop]
            best = max(good, key=lambda f: overlap(f.box, want.box), default=None)
            if best and overlap(best.box, want.box) >= limits.iou:
                left.remove(best)
            else:
                missed.append(f"{want.name} on {photo.file}")
        extra += [f"{f.name} on {photo.file}" for f in left if f.score >= SURE]
    expected = sum(len(photo.objects) for photo in golden.photos)
    for what, stray, most in (("missed", missed, limits.missed), ("too many", extra, limits.extra)):
        if len(stray) > most * expected:
            some = ", ".join(stray[:3])
            raise GoldenFailed(f"golden set: {len(stray)} {what} of {expected} objects, at most {most:.0%}: {some}")


def check_speed(golden: Golden, forward: Forward, before: Forward, size: int) -> None:
    """Raises GoldenFailed when an image takes longer than the limit allows, relative to the weights before."""
    square = np.zeros((1, size, size, 3), np.uint8)
    times: dict[Forward, list[float]] = {forward: [], before: []}
    for _ in range(TIMED):
        for one, took in times.items():
            started = time.perf_counter()
            one(square)
            took.append(time.perf_counter() - started)
    ratio = min(times[forward]) / min(times[before])
    if ratio > golden.limits.slowdown:
        raise GoldenFailed(f"golden set: {ratio:.1f} times as slow as before, at most {golden.limits.slowdown:g}")


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes x1 y1 x2 y2."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return shared / (sum(areas) - shared) if shared else 0.0
