"""COCO results (`format=coco`), and COCO's category ids by class name.

COCO's ids go from 1 to 90 with ten gaps, YOLO's from 0 to 79 without gaps. Names, ids and order are those of COCO's
annotations (instances_val2017.json, `categories`).
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from serve_app.graph.payloads import Finished
from serve_app.http.schemas import results_of
from serve_app.settings import PredictOptions
from serve_app.vision.tasks.by_name import TASKS

_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, "
    "laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, "
    "scissors, teddy bear, hair drier, toothbrush"
)
_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # street sign, hat, shoe, ...: listed by COCO, but never annotated

CATEGORY_IDS = dict(zip(_NAMES.split(", "), (i for i in range(1, 91) if i not in _GAPS), strict=True))


class CocoResult(BaseModel):
    """One entry of a COCO results file: `bbox` is left, top, width, height. pycocotools scores all of its fields."""

    image_id: int = Field(description="position of the image in the request, from 0")
    category_id: int = Field(description="COCO's, 1 to 90, if COCO has all classes of the model; else class id + 1")
    score: float
    bbox: tuple[float, float, float, float]
    segmentation: list[list[float]] | None = Field(None, description="a polygon x, y, x, y, … (segment, obb)")
    keypoints: list[float] | None = Field(None, description="x, y, visible of each point in turn (pose)")

    @classmethod
    def of(cls, image_id: int, done: Finished, options: PredictOptions) -> list[CocoResult]:
        """The entries of one image."""
        ids, found = category_ids(done.weights.class_names), results_of(done, options)
        fields = TASKS[done.weights.task].coco(found, options.digits)
        return [
            cls(image_id=image_id, category_id=ids[one["class"]], score=one["confidence"], **more)
            for one, more in zip(found, fields, strict=True)
        ]


def category_ids(class_names: tuple[str, ...]) -> list[int]:
    """The category id of each class id: COCO's if COCO has all of these names, else 1, 2, 3 … as Ultralytics writes."""
    ids = [CATEGORY_IDS.get(name) for name in class_names]
    return list(range(1, len(ids) + 1)) if None in ids else ids  # type: ignore[return-value] # none is None
