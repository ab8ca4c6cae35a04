"""COCO's category ids by class name. They go from 1 to 90 with ten gaps; YOLO's go from 0 to 79 without.

From COCO's own annotations (instances_val2017.json, `categories`), in their order.
"""

from __future__ import annotations

_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, "
    "laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, "
    "scissors, teddy bear, hair drier, toothbrush"
)
_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # street sign, hat, shoe, ...: named once, never annotated

CATEGORY_IDS = dict(zip(_NAMES.split(", "), (i for i in range(1, 91) if i not in _GAPS), strict=True))
