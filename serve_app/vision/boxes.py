"""Turns the network's raw head into final boxes: threshold, NMS, and back to the photo's pixels.

Boxes are `xyxy`: x1, y1, x2, y2 in pixels, origin at the top left. Uses NumPy only and must not know the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.vision.image import Letterbox

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
        """The boxes selected by `keep`: int indices, or a bool mask (N,)."""
        return Detections(self.xyxy[keep], self.confidence[keep], self.class_id[keep])


def candidates(head: Floats, conf: float | Floats) -> Detections:
    """Every anchor whose best class has a score of at least `conf`, best first, in pixels of the network input.

    `head` is float32 (6, A) of one image, see `Engine`: centre x, centre y, width, height, score, class id. `conf` is
    one number for all classes, or float32 (C,) with one for each class id.
    """
    confidence = head[4]
    chosen = np.flatnonzero(confidence >= np.min(conf))
    if isinstance(conf, np.ndarray):
        chosen = chosen[confidence[chosen] >= conf[head[5, chosen].astype(np.int64)]]
    best_first = chosen[np.argsort(-confidence[chosen], kind="stable")]
    xyxy = np.ascontiguousarray(corners(head[:4, best_first]))
    return Detections(xyxy, confidence[best_first], head[5, best_first].astype(np.int64))


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


def final(head: Floats, letterbox: Letterbox, conf: float, iou: float = 0.7, max_det: int = 300) -> Detections:
    """The detections of one image in pixels of the photo: `candidates`, NMS and `to_photo`, as the stages run them."""
    return to_photo(non_max_suppression(candidates(head, conf), iou, max_det), letterbox)


def to_photo(found: Detections, letterbox: Letterbox) -> Detections:
    """Converts boxes from pixels of the network input to pixels of the photo, and clips them at its edges."""
    offset = np.array([letterbox.left, letterbox.top] * 2, np.float32)
    scale = np.array([letterbox.scale_x, letterbox.scale_y] * 2, np.float32)
    limit = np.array([letterbox.width, letterbox.height] * 2, np.float32)
    return Detections(((found.xyxy - offset) / scale).clip(0, limit), found.confidence, found.class_id)
