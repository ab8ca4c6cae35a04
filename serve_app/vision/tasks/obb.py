"""Oriented bounding boxes: boxes that are turned by an angle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serve_app.settings import PredictOptions
from serve_app.vision.boxes import Detections
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks import outlines
from serve_app.vision.tasks.detect import Detect
from serve_app.vision.tasks.task import PIXELS, Floats, Part, Units

TINY = 1e-7


class Obb(Detect):
    """Output: the head (7, A), see `Detect`; its last row is an angle in radians.

    A box is turned by it around its centre, clockwise as y points down. `xyxy` has the corners before the turn.
    """

    name = "obb"
    network = "OBBModel"
    tensors: Sequence[dict[str, Any]] = ({"name": "corners", "datatype": "FP32", "shape": [-1, 4, 2]},)

    def final(self, candidates: Detections, letterbox: Letterbox, options: PredictOptions) -> Detections:
        """See `Task`. Corners may lie outside of the photo: clipping them would change the angle."""
        kept = non_max_suppression(candidates, options.iou, options.max_det, options.agnostic_nms)
        centre, size = middles(kept)
        scale = np.array((letterbox.scale_x, letterbox.scale_y), np.float32)
        centre, size = (centre - np.array((letterbox.left, letterbox.top), np.float32)) / scale, size / scale
        return replace(kept, xyxy=np.concatenate([centre - size / 2, centre + size / 2], 1))

    def parts(self, found: Detections, units: Units = PIXELS) -> list[Part]:
        """`box`: the four corners, x1, y1 to x4, y4, in their order around the box."""
        rows = units.write(corners(found)).reshape(-1, 8).tolist()
        names = [f"{axis}{i}" for i in (1, 2, 3, 4) for axis in ("x", "y")]
        return [{"box": dict(zip(names, row, strict=True))} for row in rows]

    def coco(self, parts: Sequence[Part], digits: int) -> list[dict[str, Any]]:
        """`bbox` is the upright box around the turned one, which is the polygon in `segmentation`."""
        results = []
        for part in parts:
            polygon = list(part["box"].values())
            left, top = min(polygon[::2]), min(polygon[1::2])
            size = round(max(polygon[::2]) - left, digits), round(max(polygon[1::2]) - top, digits)
            results.append({"bbox": (left, top, *size), "segmentation": [polygon]})
        return results

    def columns(self, parts: Sequence[Part]) -> list[tuple[list[Any], list[int]]]:
        """See `Task`."""
        return [([value for part in parts for value in part["box"].values()], [len(parts), 4, 2])]

    def overlap(self, one: Part, other: Part) -> float:
        """The IoU of the turned boxes."""
        lines = [list(part["box"].values()) for part in (one, other)]
        return outlines.overlap(*({"x": line[::2], "y": line[1::2]} for line in lines))


def middles(found: Detections) -> tuple[Floats, Floats]:
    """Centre x, y and width, height of each box, float32 (N, 2) each."""
    return found.xyxy.reshape(-1, 2, 2).mean(1), found.xyxy[:, 2:] - found.xyxy[:, :2]


def corners(found: Detections) -> Floats:
    """The corners of the turned boxes, float32 (N, 4, 2), in the order of Ultralytics: +w +h, +w -h, -w -h, -w +h."""
    assert found.extra is not None
    centre, size = middles(found)
    cos, sin = np.cos(found.extra[:, :1]), np.sin(found.extra[:, :1])
    along = np.concatenate([cos, sin], 1) * size[:, :1] / 2
    across = np.concatenate([-sin, cos], 1) * size[:, 1:] / 2
    return np.stack(
        [centre + along + across, centre + along - across, centre - along - across, centre - along + across], 1
    )


def non_max_suppression(found: Detections, iou: float, max_det: int, agnostic: bool) -> Detections:
    """Drops a box if its probabilistic IoU with any better one of its class is above `iou`, as Ultralytics does.

    Also with one that is dropped itself (Fast NMS, Bolya et al. 2019). `found` must be best first. Stops once
    `max_det` boxes are certain.
    """
    a, b, c = covariances(found)
    (x, y), class_id = middles(found)[0].T, np.zeros_like(found.class_id) if agnostic else found.class_id
    alive = np.ones(len(found), bool)
    kept: list[int] = []
    for i in range(len(found)):
        if alive[i]:
            kept.append(i)
        if len(kept) == max_det:
            break
        rest = i + 1 + np.flatnonzero(alive[i + 1 :] & (class_id[i + 1 :] == class_id[i]))
        dx, dy = x[i] - x[rest], y[i] - y[rest]
        alive[rest] = probiou(dx, dy, (a[i], b[i], c[i]), (a[rest], b[rest], c[rest])) <= iou
    return found.take(np.array(kept, np.intp))


def covariances(found: Detections) -> tuple[Floats, Floats, Floats]:
    """The Gaussian of each box: the covariances a of x, b of y and c of both, float32 (N,) each."""
    if found.extra is None or not len(found):
        return (np.empty(0, np.float32),) * 3
    wide, high = middles(found)[1].T ** 2 / 12
    cos, sin = np.cos(found.extra[:, 0]), np.sin(found.extra[:, 0])
    return wide * cos**2 + high * sin**2, wide * sin**2 + high * cos**2, (wide - high) * cos * sin


def probiou(dx: Floats, dy: Floats, one: tuple[Any, Any, Any], other: tuple[Floats, Floats, Floats]) -> Floats:
    """1 - Hellinger distance of the boxes' Gaussians (Llerena et al. 2021, arXiv 2106.06072).

    `dx` and `dy` are the distances of their centres, `one` and `other` their covariances.
    """
    a, b, c = (first + second for first, second in zip(one, other, strict=True))
    determinant = a * b - c**2
    apart = (a * dy**2 + b * dx**2) / (determinant + TINY) / 4 - c * dx * dy / (determinant + TINY) / 2
    areas = [(k[0] * k[1] - k[2] ** 2).clip(0) for k in (one, other)]
    unlike = np.log(determinant / (4 * np.sqrt(areas[0] * areas[1]) + TINY) + TINY) / 2
    similar: Floats = 1 - np.sqrt(1 - np.exp(-(apart + unlike).clip(TINY, 100)) + TINY)
    return similar
