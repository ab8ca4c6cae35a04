"""The network's raw head in, final boxes out: threshold, NMS, back to the photo's pixels. NumPy only.

Boxes are `xyxy`: x1, y1, x2, y2 in pixels, origin at the top left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.image import Letterbox

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Detections:
    """N boxes: xyxy float32 (N, 4), confidence float32 (N,) in 0..1, class_id int64 (N,)."""

    xyxy: Floats
    confidence: Floats
    class_id: Ints

    def __len__(self) -> int:
        return len(self.confidence)

    def take(self, keep: NDArray[np.intp] | NDArray[np.bool_]) -> Detections:
        """The boxes that an index or a mask selects."""
        return Detections(self.xyxy[keep], self.confidence[keep], self.class_id[keep])


def candidates(head: Floats, conf: float, classes: frozenset[int] | None) -> Detections:
    """Every anchor whose best class reaches `conf`, best first; `classes` filters by that best class.

    `head` is one image's float32 (6, A), see `model.Model`: centre x, centre y, width, height, score, class id.
    """
    confidence = head[4]
    chosen = np.flatnonzero(confidence >= conf)
    if classes is not None:
        chosen = chosen[np.isin(head[5, chosen].astype(np.int64), list(classes))]
    best_first = chosen[np.argsort(-confidence[chosen], kind="stable")]
    centre, half = head[:2, best_first], head[2:4, best_first] / 2
    xyxy = np.concatenate([centre - half, centre + half]).T
    return Detections(np.ascontiguousarray(xyxy), confidence[best_first], head[5, best_first].astype(np.int64))


def non_max_suppression(found: Detections, iou: float, max_det: int) -> Detections:
    """Greedy NMS within each class. `found` comes best first; stops at `max_det` boxes, so costs O(max_det x N)."""
    alive = np.ones(len(found), bool)
    kept: list[int] = []
    areas = (found.xyxy[:, 2:] - found.xyxy[:, :2]).prod(1)
    while len(kept) < max_det and alive.any():
        best = int(alive.argmax())
        kept.append(best)
        rivals = np.flatnonzero(alive & (found.class_id == found.class_id[best]))
        corner = np.minimum(found.xyxy[rivals, 2:], found.xyxy[best, 2:])
        overlap = (corner - np.maximum(found.xyxy[rivals, :2], found.xyxy[best, :2])).clip(min=0).prod(1)
        union = areas[rivals] + areas[best] - overlap
        alive[rivals[overlap > iou * union]] = False
        alive[best] = False
    return found.take(np.array(kept, np.intp))


def to_photo(found: Detections, box: Letterbox) -> Detections:
    """Undoes the letterbox and cuts boxes at the photo's edge: from pixels of the square to pixels of the photo."""
    offset = np.array([box.left, box.top] * 2, np.float32)
    scale = np.array([box.scale_x, box.scale_y] * 2, np.float32)
    limit = np.array([box.width, box.height] * 2, np.float32)
    return Detections(((found.xyxy - offset) / scale).clip(0, limit), found.confidence, found.class_id)
