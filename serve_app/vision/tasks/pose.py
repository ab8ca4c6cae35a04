"""Pose: boxes, and the key points of each object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serve_app.settings import PredictOptions
from serve_app.vision import boxes
from serve_app.vision.boxes import Detections
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks.detect import Detect
from serve_app.vision.tasks.task import PIXELS, Output, Part, Units

# COCO's constants of how far people differ about a point, for its 17 points of a person (its `kpt_oks_sigmas`).
SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
SURE = 0.5  # least visibility of a point that is drawn, and of one that counts in COCO's `num_keypoints`


class Pose(Detect):
    """Output: the head (6 + 3 K, A), see `Detect`.

    Each of K points adds x and y in pixels of the network input, and how likely it is visible, 0 to 1; -1 where the
    network does not say it.
    """

    name = "pose"
    network = "PoseModel"
    tensors: Sequence[dict[str, Any]] = (
        *Detect.tensors,
        {"name": "keypoints", "datatype": "FP32", "shape": [-1, -1, 3]},
    )

    def final(self, candidates: Detections, letterbox: Letterbox, options: PredictOptions) -> Detections:
        """See `Task`. `extra` then has x, y, visible of each point (N, 3 K), clipped at the photo's edges."""
        kept = boxes.non_max_suppression(candidates, options.iou, options.max_det, options.agnostic_nms)
        assert kept.extra is not None
        points = kept.extra.reshape(len(kept), -1, 3).copy() if len(kept) else kept.extra.reshape(0, 0, 3)
        points[..., :2] = boxes.points_to_photo(points[..., :2], letterbox)
        return replace(boxes.to_photo(kept, letterbox), extra=points.reshape(kept.extra.shape))

    def parts(self, found: Detections, units: Units = PIXELS) -> list[Part]:
        """`box`, and `keypoints` with x, y and, if the network says it, visible of each."""
        made = super().parts(found, units)
        if made:
            assert found.extra is not None
            points = found.extra.reshape(len(found), -1, 3)
            written, visible = units.write(points[..., :2]), points[..., 2].astype(float).round(5)
            for part, xy, seen in zip(made, written, visible, strict=True):
                part["keypoints"] = {"x": xy[:, 0].tolist(), "y": xy[:, 1].tolist()}
                if (seen >= 0).all():
                    part["keypoints"]["visible"] = seen.tolist()
        return made

    def coco(self, parts: Sequence[Part], digits: int) -> list[dict[str, Any]]:
        """`bbox`, and `keypoints`: x, y, visible of each point in turn. Without its visibility, a point counts as 1."""
        return [
            result | {"keypoints": triples(part)}
            for result, part in zip(super().coco(parts, digits), parts, strict=True)
        ]

    def columns(self, parts: Sequence[Part]) -> list[tuple[list[Any], list[int]]]:
        """See `Task`."""
        points = [triples(part) for part in parts]
        shape = [len(parts), len(points[0]) // 3 if points else 0, 3]
        return [*super().columns(parts), ([value for row in points for value in row], shape)]

    def overlap(self, one: Part, other: Part) -> float:
        """COCO's object keypoint similarity, with the area of the box of `one`, as if all points were visible."""
        points = [np.array([part["keypoints"]["x"], part["keypoints"]["y"]]) for part in (one, other)]
        x1, y1, x2, y2 = one["box"].values()
        count = points[0].shape[1]
        sigmas = SIGMAS if count == len(SIGMAS) else np.full(count, 1 / count)
        distance = ((points[0] - points[1]) ** 2).sum(0)
        area = max((x2 - x1) * (y2 - y1), 1e-6)
        return float(np.exp(-distance / (2 * area * (2 * sigmas) ** 2)).mean())

    def moved(self, output: Output, left: int, top: int, shape: tuple[int, int]) -> Output:
        """See `Task`."""
        (head,) = super().moved(output, left, top, shape)
        head[6::3] -= left
        head[7::3] -= top
        return (head,)


def triples(part: Part) -> list[float]:
    """x, y and visible of each point in turn."""
    points = part["keypoints"]
    visible = points.get("visible") or [1.0] * len(points["x"])
    return [value for point in zip(points["x"], points["y"], visible, strict=True) for value in point]
