"""Detection: boxes. Also the base of the tasks that add something to each box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve_app.settings import PredictOptions
from serve_app.vision import boxes
from serve_app.vision.boxes import Detections
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks import merging
from serve_app.vision.tasks.task import OF_BOXES, PIXELS, Check, Floats, Found, Ints, Output, Part, Units


class Detect:
    """Output: the head float32 (6, A), one column for each anchor.

    A column is the box's centre x, centre y, width and height in pixels of the network input, then the score of the
    best class in 0..1 and the id of that class. The scores of the other classes are never used, so the network's full
    head (84 rows for COCO, 2.8 MB an image) is cut to these 6 rows. Other tasks add rows.
    """

    name = "detect"
    network = "DetectionModel"
    image_size = 640
    crops = False
    least = 0.25
    options = OF_BOXES
    in_coco = True
    tensors: Sequence[dict[str, Any]] = ({"name": "boxes", "datatype": "FP32", "shape": [-1, 4]},)
    geometry = merging.Geometry(lambda found: found.xyxy, boxes.overlaps, boxes.around)

    def candidates(self, output: Output, least: float | Floats, options: PredictOptions) -> Detections:
        """See `Task`."""
        return boxes.candidates(output[0], least)

    def final(self, candidates: Detections, letterbox: Letterbox, options: PredictOptions) -> Detections:
        """See `Task`. NMS, then the inverse of the letterbox."""
        kept = boxes.non_max_suppression(candidates, options.iou, options.max_det, options.agnostic_nms)
        return boxes.to_photo(kept, letterbox)

    def merged(
        self,
        candidates: Sequence[Detections],
        letterboxes: Sequence[Letterbox],
        options: PredictOptions,
        in_time: Check,
    ) -> Detections:
        """See `Task`."""
        parts, of_tile = [], merging.options_of_tile(options)
        for one, letterbox in zip(candidates, letterboxes, strict=True):
            in_time()
            parts.append(self.final(one, letterbox, of_tile))
            merging.check_count(parts)
        return merging.merged(parts, letterboxes, options, self.geometry, in_time)[0]

    def parts(self, found: Detections, units: Units = PIXELS) -> list[Part]:
        """`box`: x1, y1, x2, y2."""
        rows = units.write(found.xyxy.reshape(-1, 2, 2)).reshape(-1, 4).tolist()
        return [{"box": dict(zip(("x1", "y1", "x2", "y2"), row, strict=True))} for row in rows]

    def coco(self, parts: Sequence[Part], digits: int) -> list[dict[str, Any]]:
        """`bbox`: left, top, width, height."""
        corners = [part["box"].values() for part in parts]
        return [{"bbox": (x1, y1, round(x2 - x1, digits), round(y2 - y1, digits))} for x1, y1, x2, y2 in corners]

    def columns(self, parts: Sequence[Part]) -> list[tuple[list[Any], list[int]]]:
        """See `Task`."""
        return [([value for part in parts for value in part["box"].values()], [len(parts), 4])]

    def overlap(self, one: Part, other: Part) -> float:
        """The IoU of the boxes."""
        return boxes.overlap(tuple(one["box"].values()), tuple(other["box"].values()))

    def counted(self, found: Found) -> Ints:
        """All of them."""
        return found.class_id

    def moved(self, output: Output, left: int, top: int, shape: tuple[int, int]) -> Output:
        """See `Task`."""
        output[0][0] -= left
        output[0][1] -= top
        return output
