"""The masks of objects, from prototypes and coefficients (YOLACT, Bolya et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from serve_app.errors import ImageTooComplex
from serve_app.vision.boxes import Detections
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks import outlines
from serve_app.vision.tasks.task import Floats

Mask = tuple[NDArray[np.uint8], tuple[int, int]]  # 0 and 1 (h, w) of the part inside a box, and its left, top
EMPTY = np.zeros((0, 0), np.uint8)
QUARTER = 4  # pixels of the network input for one of a prototype
MOST_PIXELS = 100_000_000  # of all masks of a photo at its own size: about 2 s; 300 objects could have 15 billion


def of_boxes(kept: Detections, prototypes: Floats) -> Iterator[Mask]:
    """The mask of each box, in pixels of the network input."""
    height, width = (side * QUARTER for side in prototypes.shape[1:])
    for logits, box in zip(weighted(kept, prototypes), kept.xyxy.tolist(), strict=True):
        x1, y1, x2, y2 = inside(box, width, height)
        if x1 == x2 or y1 == y2:
            yield EMPTY, (x1, y1)
            continue
        # One more pixel of the prototypes on each side, so that enlarging this part is the same as enlarging all.
        left, top = max(x1 // QUARTER - 1, 0), max(y1 // QUARTER - 1, 0)
        part = logits[top : (y2 - 1) // QUARTER + 2, left : (x2 - 1) // QUARTER + 2]
        large = cv2.resize(part, None, fx=QUARTER, fy=QUARTER, interpolation=cv2.INTER_LINEAR)
        x, y = x1 - left * QUARTER, y1 - top * QUARTER
        yield (large[y : y + y2 - y1, x : x + x2 - x1] > 0).astype(np.uint8), (x1, y1)


def native(kept: Detections, found: Detections, prototypes: Floats, letterbox: Letterbox) -> Iterator[Mask]:
    """The mask of each box, computed at the photo's own size. Raises ImageTooComplex."""
    size = found.xyxy[:, 2:] - found.xyxy[:, :2]
    if (pixels := float(size.prod(1).sum())) > MOST_PIXELS:
        raise ImageTooComplex(
            f"`retina_masks`: the masks would have {pixels / 1e6:.0f} million pixels, the limit is "
            f"{MOST_PIXELS / 1e6:.0f}: lower `max_det`, or leave it out"
        )
    height, width = (side * QUARTER for side in prototypes.shape[1:])
    inner_w, inner_h = letterbox.width * letterbox.scale_x, letterbox.height * letterbox.scale_y
    padding = (width - round(inner_w)) | (height - round(inner_h))
    # The prototypes are enlarged until the photo lies on whole pixels of them, as Ultralytics does.
    finer = QUARTER // math.gcd(QUARTER, padding | padding // 2)
    left, top = letterbox.left * finer // QUARTER, letterbox.top * finer // QUARTER
    w, h = (max(round(side * finer / QUARTER), 1) for side in (inner_w, inner_h))
    for logits, box in zip(weighted(kept, prototypes), found.xyxy.tolist(), strict=True):
        large = cv2.resize(logits, None, fx=finer, fy=finer, interpolation=cv2.INTER_LINEAR)
        x1, y1, x2, y2 = inside(box, letterbox.width, letterbox.height)
        columns = (np.arange(x1, x2) + 0.5) * w / letterbox.width - 0.5
        rows = (np.arange(y1, y2) + 0.5) * h / letterbox.height - 0.5
        logits_there = outlines.sampled(large[top : top + h, left : left + w], columns, rows)
        yield (logits_there > 0).astype(np.uint8), (x1, y1)


def weighted(kept: Detections, prototypes: Floats) -> Floats:
    """The sum of the prototypes for each box, float32 (N, h / 4, w / 4)."""
    assert kept.extra is not None
    return (kept.extra @ prototypes.reshape(len(prototypes), -1)).reshape(-1, *prototypes.shape[1:])


def inside(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """The pixels x1 <= x < x2, y1 <= y < y2 of an image that lie in a box."""
    x1, y1, x2, y2 = (math.ceil(value) for value in box)
    x1, y1 = min(max(x1, 0), width), min(max(y1, 0), height)
    return x1, y1, min(max(x2, x1), width), min(max(y2, y1), height)
