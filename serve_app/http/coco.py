"""COCO results (`format=coco`), and COCO's category ids by class name.

COCO's ids go from 1 to 90 with ten gaps, YOLO's from 0 to 79 without gaps. Names, ids and order are those of COCO's
annotations (instances_val2017.json, `categories`).
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from serve_app.graph.payloads import Finished
from serve_app.http.schemas import rows
from serve_app.settings import PredictOptions

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
    """One entry of a COCO results file: `bbox` is left, top, width, height."""

    image_id: int = Field(description="position of the image in the request, from 0")
    category_id: int = Field(description="COCO's, 1 to 90, if COCO has all classes of the model; else class id + 1")
    bbox: tuple[float, float, float, float]
    score: float

    @classmethod
    def of(cls, image_id: int, done: Finished, options: PredictOptions) -> list[CocoResult]:
        """The entries of one image."""
        ids, digits = category_ids(done.weights.class_names), options.digits
        return [
            cls(
                image_id=image_id,
                category_id=ids[k],
                bbox=(b["x1"], b["y1"], round(b["x2"] - b["x1"], digits), round(b["y2"] - b["y1"], digits)),
                score=score,
            )
            for b, score, k in rows(done, options)
        ]


def category_ids(class_names: tuple[str, ...]) -> list[int]:
    """The category id of each class id: COCO's if COCO has all of these names, else 1, 2, 3 … as Ultralytics writes."""
    ids = [CATEGORY_IDS.get(name) for name in class_names]
    return list(range(1, len(ids) + 1)) if None in ids else ids  # type: ignore[return-value] # none is None
