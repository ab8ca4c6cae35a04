"""The golden set: photos and the objects that must be found in them. It is the last test of weights before they serve.

The set contains the photos themselves (JPEG, longest side at most 640 px), so one hash pins the photos and the
expected objects together. This module must not know Ray or torch.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, PositiveFloat

from serve_app.errors import GoldenFailed
from serve_app.settings import PredictOptions
from serve_app.vision import drawing, image
from serve_app.vision.tasks import results
from serve_app.vision.tasks.task import Part, Task, Units, recognise

if TYPE_CHECKING:
    from serve_app.vision.engines.engine import Engine

SURE = 0.5  # least confidence of an expected object, and of one that counts as unexpected
MAX_PIXELS, SIDE = 52_000_000, 640  # largest photo to read; longest side of the copy in the set, in pixels
TIMED = 5  # forward passes of each network, alternating; the fastest counts, as other work slows some of them down


class Expected(BaseModel):
    """An object that must be found: `score` is 0 to 1, and the rest as in an answer, in pixels of the upright photo.

    `box` is x1, y1, x2, y2, or the four corners of a turned one; it is empty for a class of the whole photo.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    box: tuple[float, ...]
    score: float
    segments: dict[str, tuple[float, ...]] | None = None
    keypoints: dict[str, tuple[float, ...]] | None = None

    @property
    def part(self) -> Part:
        """Its part of an answer."""
        names = [f"{axis}{i + 1}" for i in range(len(self.box) // 2) for axis in ("x", "y")]
        given = {"box": dict(zip(names, self.box, strict=True)), "segments": self.segments, "keypoints": self.keypoints}
        return {key: value for key, value in given.items() if value}


class Photo(BaseModel):
    """A JPEG and all objects in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    jpeg: Base64Bytes
    objects: tuple[Expected, ...]


class Limits(BaseModel):
    """How much the results of new weights may differ from the golden set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iou: float = Field(0.6, description="least IoU with the expected box")
    score_drop: float = Field(0.3, description="largest loss of confidence of an expected object")
    missed: float = Field(0.1, description="most objects that may be missed, as a fraction of those expected")
    extra: float = Field(
        0.25, description="most unexpected objects with confidence of 0.5 or more, as a fraction of those expected"
    )
    slowdown: PositiveFloat = Field(3.0, description="longest time for an image, relative to the previous weights")


class Golden(BaseModel):
    """The golden set of a service. It outlives weights: new weights must find what earlier ones had to find."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    photos: tuple[Photo, ...]
    limits: Limits = Limits()


def found(engine: Engine, photo: bytes, size: int, conf: float) -> list[Expected]:
    """The objects a network finds in an encoded photo, most confident first.

    `size` is the side of the network input in pixels, `conf` the least confidence. Pixels are rounded to 0.1, scores to
    0.001. Raises AppErrors for a photo that cannot be read.
    """
    network_input, letterbox = image.prepare(photo, size, MAX_PIXELS, crops=engine.task.crops)
    return seen(engine, network_input, letterbox, conf)


def seen(engine: Engine, network_input: NDArray[np.uint8], letterbox: image.Letterbox, conf: float) -> list[Expected]:
    """As `found`, in a network input (H, W, 3)."""
    task, options = engine.task, PredictOptions(topk=1)
    objects = recognise(task, engine(network_input[None])[0], letterbox, conf, options)
    return [
        Expected(
            name=one["name"],
            box=tuple(one.get("box", {}).values()),
            score=round(one["confidence"], 3),
            segments=one.get("segments"),
            keypoints=one.get("keypoints"),
        )
        for one in results.of(objects, task, engine.class_names, Units(digits=1))
    ]


def nearest(task: Task, one: Expected, others: Sequence[Expected]) -> tuple[float, Expected | None]:
    """Which of the others of its class overlaps an object most, and how far; 0 and None if there is none."""
    shared = [(task.overlap(other.part, one.part), other) for other in others if other.name == one.name]
    return max(shared, key=lambda pair: pair[0], default=(0.0, None))


def make(engine: Engine, photos: list[Path], size: int) -> Golden:
    """A golden set of the objects this network finds with confidence of at least 0.5. Raises AppErrors, see `found`."""
    made = []
    for path in photos:
        picture = Image.fromarray(image.decode(path.read_bytes(), MAX_PIXELS))
        picture.thumbnail((SIDE, SIDE))
        jpeg = drawing.to_jpeg(picture)
        sure = tuple(o for o in found(engine, jpeg, size, SURE))
        name = path.name.encode(errors="backslashreplace").decode()  # a name that is not UTF-8 does not fit into JSON
        made.append(Photo(file=name, jpeg=base64.b64encode(jpeg), objects=sure))
    return Golden(photos=tuple(made))


def check(golden: Golden, engine: Engine, size: int) -> None:
    """Raises GoldenFailed, with the first three objects, when too many are missed or unexpected."""
    limits = golden.limits
    missed: list[str] = []
    extra: list[str] = []
    for photo in golden.photos:
        unmatched = found(engine, photo.jpeg, size, conf=0.05)
        for want in photo.objects:
            good = [f for f in unmatched if f.score >= want.score - limits.score_drop]
            same = [f for f in good if f.part.keys() == want.part.keys()]  # else the set is of another task
            overlap, best = nearest(engine.task, want, same)
            if best and overlap >= limits.iou:
                unmatched.remove(best)
            else:
                missed.append(f"{want.name} on {photo.file}")
        extra += [f"{f.name} on {photo.file}" for f in unmatched if f.score >= SURE]
    expected = sum(len(photo.objects) for photo in golden.photos)
    for what, stray, most in (("missed", missed, limits.missed), ("unexpected", extra, limits.extra)):
        if len(stray) > most * expected:
            some = ", ".join(stray[:3])
            raise GoldenFailed(f"golden set: {len(stray)} {what} objects, limit {most:.0%} of {expected}: {some}")


def check_speed(golden: Golden, engine: Engine, before: Engine, size: int) -> None:
    """Raises GoldenFailed when an image takes more than `limits.slowdown` times as long as with `before`.

    `before` is the network of the previous weights. Both run on a black image (1, size, size, 3).
    """
    network_input = np.zeros((1, size, size, 3), np.uint8)
    times: dict[Engine, list[float]] = {engine: [], before: []}
    for _ in range(TIMED):
        for one, took in times.items():
            started = time.perf_counter()
            one(network_input)
            took.append(time.perf_counter() - started)
    ratio = min(times[engine]) / min(times[before])
    if ratio > golden.limits.slowdown:
        limit = golden.limits.slowdown
        raise GoldenFailed(f"golden set: {ratio:.1f} times as slow as the previous weights, the limit is {limit:g}")
