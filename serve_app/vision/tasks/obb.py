"""Oriented bounding boxes: boxes that are turned by an angle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serve_app.settings import PredictOptions
from serve_app.vision.boxes import Detections
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks import merging, outlines, turned_boxes
from serve_app.vision.tasks.detect import Detect
from serve_app.vision.tasks.task import PIXELS, Part, Units


class Obb(Detect):
    """Output: the head (7, A), see `Detect`; its last row is an angle in radians.

    A box is turned by it around its centre, clockwise as y points down. `xyxy` has the corners before the turn.
    """

    name = "obb"
    network = "OBBModel"
    tensors: Sequence[dict[str, Any]] = ({"name": "corners", "datatype": "FP32", "shape": [-1, 4, 2]},)
    geometry = merging.Geometry(turned_boxes.extent, turned_boxes.overlaps, turned_boxes.around)

    def final(self, candidates: Detections, letterbox: Letterbox, options: PredictOptions) -> Detections:
        """See `Task`. Corners may lie outside of the photo: clipping them would change the angle."""
        kept = turned_boxes.non_max_suppression(candidates, options.iou, options.max_det, options.agnostic_nms)
        centre, size = turned_boxes.middles(kept)
        scale = np.array((letterbox.scale_x, letterbox.scale_y), np.float32)
        centre, size = (centre - np.array((letterbox.left, letterbox.top), np.float32)) / scale, size / scale
        centre += np.array((letterbox.tile_x, letterbox.tile_y), np.float32)
        return replace(kept, xyxy=np.concatenate([centre - size / 2, centre + size / 2], 1))

    def parts(self, found: Detections, units: Units = PIXELS) -> list[Part]:
        """`box`: the four corners, x1, y1 to x4, y4, in their order around the box."""
        rows = units.write(turned_boxes.corners(found)).reshape(-1, 8).tolist()
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
