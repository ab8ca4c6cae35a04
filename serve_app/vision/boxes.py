"""From a network's head to boxes: threshold, NMS, and back to the photo's pixels. The tasks build on these steps.

Boxes are `xyxy`: x1, y1, x2, y2 in pixels, origin at the top left. Uses NumPy only and must not know the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serve_app.vision.image import Letterbox

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
# What two boxes have in common, as a share of both together, of the smaller one, or of the other one.
Measure = Literal["iou", "ios", "covered"]


@dataclass(frozen=True, slots=True)
class Detections:
    """N boxes: xyxy float32 (N, 4), confidence float32 (N,) in 0..1, class_id int64 (N,).

    `extra` float32 (N, E) has what else the head says of each box; its task knows what that is.
    """

    xyxy: Floats
    confidence: Floats
    class_id: Ints
    extra: Floats | None = None

    def __len__(self) -> int:
        return len(self.confidence)

    def take(self, keep: NDArray[np.intp] | NDArray[np.bool_] | list[int]) -> Detections:
        """The boxes selected by `keep`: int indices, or a bool mask (N,)."""
        keep = np.array(keep, np.intp) if isinstance(keep, list) else keep
        extra = None if self.extra is None else self.extra[keep]
        return Detections(self.xyxy[keep], self.confidence[keep], self.class_id[keep], extra)


def candidates(head: Floats, conf: float | Floats) -> Detections:
    """Every anchor whose best class has a score of at least `conf`, best first, in pixels of the network input.

    `head` is float32 (6 + E, A) of one image: centre x, centre y, width, height, score, class id, and what the task
    adds. `conf` is one number for all classes, or float32 (C,) with one for each class id.
    """
    confidence = head[4]
    chosen = np.flatnonzero(confidence >= np.min(conf))
    if isinstance(conf, np.ndarray):
        chosen = chosen[confidence[chosen] >= conf[head[5, chosen].astype(np.int64)]]
    best_first = chosen[np.argsort(-confidence[chosen], kind="stable")]
    xyxy = np.ascontiguousarray(corners(head[:4, best_first]))
    extra = np.ascontiguousarray(head[6:, best_first].T) if len(head) > 6 else None
    return Detections(xyxy, confidence[best_first], head[5, best_first].astype(np.int64), extra)


def corners(xywh: Floats) -> Floats:
    """Maps boxes (4, N) of centre x, centre y, width and height to boxes xyxy (N, 4)."""
    centre, half = xywh[:2], xywh[2:] / 2
    return np.concatenate([centre - half, centre + half]).T


def non_max_suppression(found: Detections, iou: float, max_det: int, agnostic: bool = False) -> Detections:
    """Greedy NMS: drops boxes whose IoU with a better box is above `iou`. `found` must be best first.

    Within each class or, if `agnostic`, whatever their classes.

    Stops at `max_det` boxes, so it costs O(max_det x N). The worst case, 300 boxes kept of 8,400, takes 20 ms, so it
    needs no time limit.
    """
    x1, y1, x2, y2 = np.ascontiguousarray(found.xyxy.T)
    area, class_id = (x2 - x1) * (y2 - y1), np.zeros_like(found.class_id) if agnostic else found.class_id
    alive = np.ones(len(found), bool)
    kept: list[int] = []
    while len(kept) < max_det and alive.any():
        best = int(alive.argmax())
        kept.append(best)
        alive[best] = False
        worse = slice(best + 1, None)
        width = np.minimum(x2[worse], x2[best]) - np.maximum(x1[worse], x1[best])
        height = np.minimum(y2[worse], y2[best]) - np.maximum(y1[worse], y1[best])
        overlap = width.clip(min=0) * height.clip(min=0)
        union = area[worse] + area[best] - overlap
        alive[worse] &= (overlap <= iou * union) | (class_id[worse] != class_id[best])
    return found.take(np.array(kept, np.intp))


def to_photo(found: Detections, letterbox: Letterbox) -> Detections:
    """Converts boxes from pixels of the network input to pixels of the photo, and clips them at its edges."""
    corners_xy = found.xyxy.reshape(-1, 2, 2)
    return replace(found, xyxy=points_to_photo(corners_xy, letterbox).reshape(-1, 4))


def points_to_photo(points: Floats, letterbox: Letterbox) -> Floats:
    """Converts points (…, 2) from pixels of the network input to pixels of the photo.

    Clips them at the edges of the photo, or of the tile that the network has seen.
    """
    offset = np.array((letterbox.left, letterbox.top), np.float32)
    scale = np.array((letterbox.scale_x, letterbox.scale_y), np.float32)
    limit = np.array((letterbox.width, letterbox.height), np.float32)
    corner = np.array((letterbox.tile_x, letterbox.tile_y), np.float32)
    return ((points - offset) / scale).clip(0, limit) + corner


def overlaps(one: Detections, others: Detections, measure: Measure) -> Floats:
    """How far one box overlaps with each of N others, float32 (N,)."""
    first, rest = one.xyxy[0], others.xyxy
    size = np.minimum(rest[:, 2:], first[2:]) - np.maximum(rest[:, :2], first[:2])
    return shares(
        size.clip(min=0).prod(1), (first[2:] - first[:2]).prod(), (rest[:, 2:] - rest[:, :2]).prod(1), measure
    )


def shares(common: Floats, area: np.float32, areas: Floats, measure: Measure) -> Floats:
    """The `measure` of what one area has in common with N others, float32 (N,); 0 without any area."""
    whole = {"iou": area + areas - common, "ios": np.minimum(area, areas), "covered": areas}[measure]
    found: Floats = np.divide(common, whole, out=np.zeros_like(common), where=whole > 0)
    return found


def around(one: Detections, other: Detections) -> Detections:
    """The smallest box around two; the rest is that of the first."""
    corners_xy = np.minimum(one.xyxy[:, :2], other.xyxy[:, :2]), np.maximum(one.xyxy[:, 2:], other.xyxy[:, 2:])
    return replace(one, xyxy=np.concatenate(corners_xy, 1))


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return shared / (sum(areas) - shared) if shared else 0.0
