"""Segmentation: boxes, and the outline of each object's mask.

The network gives 32 coefficients for each box, and 32 prototype masks of the whole image at a quarter of its size. An
object's mask is where the sum of the prototypes, weighted with its coefficients, is above 0 inside its box (YOLACT,
Bolya et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.settings import PredictOptions
from serve_app.vision import boxes
from serve_app.vision.boxes import Detections
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks import masks, merging, outlines
from serve_app.vision.tasks.detect import Detect
from serve_app.vision.tasks.outlines import Outline
from serve_app.vision.tasks.task import OF_BOXES, PIXELS, Check, Floats, Output, Part, Units


@dataclass(frozen=True, slots=True)
class Candidates(Detections):
    """Boxes whose `extra` has their coefficients (N, 32), and the prototypes (32, h / 4, w / 4) if masks are wanted."""

    prototypes: Floats | None = None


@dataclass(frozen=True, slots=True)
class Segments(Detections):
    """Boxes, and the outline of each in pixels of the photo; None if masks are not wanted."""

    outlines: tuple[Outline, ...] | None = None


class Segment(Detect):
    """Output: the head (6 + 32, A), see `Detect`, and the prototypes (32, h / 4, w / 4)."""

    name = "segment"
    network = "SegmentationModel"
    options = OF_BOXES | {"masks", "retina_masks"}
    tensors: Sequence[dict[str, Any]] = (
        *Detect.tensors,
        {"name": "outline_points", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "outline_sizes", "datatype": "INT64", "shape": [-1]},  # points of each box's outline
    )

    def candidates(self, output: Output, least: float | Floats, options: PredictOptions) -> Candidates:
        """See `Task`. The prototypes, 3.3 MB at 640 px, travel on only where they are needed."""
        head, prototypes = output
        found = boxes.candidates(head, least)
        wanted = prototypes if options.masks and len(found) else None
        return Candidates(found.xyxy, found.confidence, found.class_id, found.extra, wanted)

    def final(self, candidates: Detections, letterbox: Letterbox, options: PredictOptions) -> Segments:
        """See `Task`. Raises ImageTooComplex for `retina_masks` of more than masks.MOST_PIXELS."""
        kept = boxes.non_max_suppression(candidates, options.iou, options.max_det, options.agnostic_nms)
        return self._outlined(kept, candidates, letterbox, options)

    def _outlined(
        self, kept: Detections, candidates: Detections, letterbox: Letterbox, options: PredictOptions
    ) -> Segments:
        """The kept ones of the candidates in pixels of the photo, with their outlines if they are wanted."""
        found = boxes.to_photo(kept, letterbox)
        prototypes = getattr(candidates, "prototypes", None)
        lines = () if prototypes is None else _outlines(kept, found, prototypes, letterbox, native=options.retina_masks)
        drawn = tuple(lines) if options.masks else None
        return Segments(found.xyxy, found.confidence, found.class_id, found.extra, drawn)

    def merged(
        self,
        candidates: Sequence[Detections],
        letterboxes: Sequence[Letterbox],
        options: PredictOptions,
        in_time: Check,
    ) -> Segments:
        """See `Task`. The outline of a merged object is around the masks of all that are in it.

        Masks take most of the time, so they are made only of boxes that are left.
        """
        kept, parts, each = list[Detections](), list[Detections](), merging.options_of_tile(options)
        for one, letterbox in zip(candidates, letterboxes, strict=True):
            in_time()
            kept.append(boxes.non_max_suppression(one, each.iou, each.max_det, each.agnostic_nms))
            parts.append(boxes.to_photo(kept[-1], letterbox))
            merging.check_count(parts)
        found, members = merging.merged(parts, letterboxes, options, self.geometry, in_time)
        if not options.masks:
            return Segments(found.xyxy, found.confidence, found.class_id, found.extra)
        wanted, outline_of, first = {n for inside in members for n in inside}, dict[int, Outline](), 0
        for of_tile, one, letterbox in zip(kept, candidates, letterboxes, strict=True):
            in_time()
            places = [n for n in range(len(of_tile)) if first + n in wanted]
            made = self._outlined(of_tile.take(places), one, letterbox, options).outlines or ()
            outline_of |= zip((first + n for n in places), made, strict=True)
            first += len(of_tile)
        lines = []
        for inside in members:
            in_time()
            lines.append(outlines.union([outline_of[n] for n in inside]))
        return Segments(found.xyxy, found.confidence, found.class_id, found.extra, tuple(lines))

    def parts(self, found: Detections, units: Units = PIXELS) -> list[Part]:
        """`box`, and `segments` with the x and y of the outline. Several pieces are one line that returns on itself."""
        made = super().parts(found, units)
        for part, outline in zip(made, getattr(found, "outlines", None) or (), strict=False):
            x, y = units.write(outlines.joined(outline)).T.tolist()
            part["segments"] = {"x": x, "y": y}
        return made

    def coco(self, parts: Sequence[Part], digits: int) -> list[dict[str, Any]]:
        """`bbox`, and `segmentation`, a polygon. COCO wants three points at least; an empty mask has one of no area."""
        results = super().coco(parts, digits)
        for result, part in zip(results, parts, strict=True):
            if "segments" in part:
                points = list(zip(part["segments"]["x"], part["segments"]["y"], strict=True))
                points += [points[-1] if points else result["bbox"][:2]] * (3 - len(points))
                result["segmentation"] = [[value for point in points for value in point]]
        return results

    def columns(self, parts: Sequence[Part]) -> list[tuple[list[Any], list[int]]]:
        """See `Task`."""
        lines = [part.get("segments", {"x": [], "y": []}) for part in parts]
        points = [value for line in lines for point in zip(line["x"], line["y"], strict=True) for value in point]
        sizes = [len(line["x"]) for line in lines]
        return [*super().columns(parts), (points, [sum(sizes), 2]), (sizes, [len(parts)])]

    def overlap(self, one: Part, other: Part) -> float:
        """The IoU of the masks; of the boxes where one has no mask."""
        lines = [part.get("segments", {"x": ()}) for part in (one, other)]
        return outlines.overlap(*lines) if all(line["x"] for line in lines) else super().overlap(one, other)

    def moved(self, output: Output, left: int, top: int, shape: tuple[int, int]) -> Output:
        """See `Task`. Images lie at multiples of 16 pixels, so the prototypes' part for them is exact."""
        (head,) = super().moved(output[:1], left, top, shape)
        (x, y), (h, w) = (left // masks.QUARTER, top // masks.QUARTER), (side // masks.QUARTER for side in shape)
        return head, output[1][:, y : y + h, x : x + w]


def _outlines(
    kept: Detections, found: Detections, prototypes: Floats, letterbox: Letterbox, *, native: bool
) -> Iterator[Outline]:
    """The outline of each box's mask, in pixels of the photo. Raises ImageTooComplex."""
    if native:
        for mask, corner in masks.native(kept, found, prototypes, letterbox):
            yield outlines.of(mask, *corner)
        return
    for mask, corner in masks.of_boxes(kept, prototypes):
        yield [boxes.points_to_photo(piece, letterbox) for piece in outlines.of(mask, *corner)]
