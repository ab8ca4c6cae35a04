"""Mean average precision as COCO computes it, in NumPy only: the image has no pycocotools.

Knows neither networks nor files. tests/weights/test_train.py compares it with pycocotools.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve_app.vision.boxes import Detections

MOST = 100  # boxes of one class in one photo that count, as in COCO
RECALLS = np.linspace(0, 1, 101)


def mean_ap(found: list[Detections], labels: list[NDArray[np.float32]], ious: Sequence[float] = (0.5,)) -> float:
    """The mean over `ious` and over the classes that occur in the labels; 0 without labels.

    `found[i]` and `labels[i]` belong to photo i. Labels are float32 (N, 5): class id, x1, y1, x2, y2 in pixels. An IoU
    is the least overlap of a box with the label that it finds: 0.5 gives mAP50, 0.5 to 0.95 in ten steps mAP50-95.
    """
    classes = sorted({int(k) for rows in labels for k in rows[:, 0]})
    scores = [average_precision(found, labels, k, iou) for k in classes for iou in ious]
    return float(np.mean(scores)) if scores else 0.0


def average_precision(found: list[Detections], labels: list[NDArray[np.float32]], class_id: int, iou: float) -> float:
    """The precision of one class, averaged over 101 levels of recall."""
    scores, hits, wanted = [], [], 0
    for one, rows in zip(found, labels, strict=True):
        mine = one.take(one.class_id == class_id)
        best_first = mine.take(np.argsort(-mine.confidence, kind="stable")[:MOST])
        boxes = rows[rows[:, 0] == class_id, 1:]
        scores.append(best_first.confidence)
        hits.append(match(best_first.xyxy, boxes, iou))
        wanted += len(boxes)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    true = np.cumsum(np.concatenate(hits)[order])
    precision = true / np.arange(1, len(true) + 1)
    # The precision at a recall is the best one at that recall or any higher.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(true / wanted, RECALLS)
    return float(np.append(envelope, 0)[at].mean())


def match(boxes: NDArray[np.float32], labels: NDArray[np.float32], least: float) -> NDArray[np.bool_]:
    """Which boxes (N, 4), best first, find a label (M, 4) that no better box has found; bool (N,)."""
    corners = np.maximum(boxes[:, None, :2], labels[None, :, :2]), np.minimum(boxes[:, None, 2:], labels[None, :, 2:])
    shared = (corners[1] - corners[0]).clip(min=0).prod(2)
    area, wanted = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, labels))
    iou = shared / (area[:, None] + wanted[None] - shared)
    hit = np.zeros(len(boxes), bool)
    for i in range(len(boxes) if len(labels) else 0):
        nearest = int(iou[i].argmax())
        if iou[i, nearest] >= least:
            hit[i] = True
            iou[:, nearest] = -1
    return hit
