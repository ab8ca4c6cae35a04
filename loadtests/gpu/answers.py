"""The parts that check answers: against float32, beside a swap, and with full GPU memory. Each returns JSON."""

from __future__ import annotations

import io
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from loadtests.gpu.plan import MAX_PIXELS, Found, Plan
from models.accuracy import mean_ap
from models.augment import read_labels
from serve_app.errors import OutOfMemory
from serve_app.vision import boxes, image
from serve_app.vision.engines.cuda import DTYPES, batch_sizes
from serve_app.vision.tasks.task import recognise

if TYPE_CHECKING:
    from serve_app.vision.engines.engine import Engine, Images

IOUS = tuple(np.arange(0.5, 1, 0.05))


def heads(engine: Engine, images: Images) -> NDArray[np.float32]:
    """The heads (N, 6, A) of N images of one shape."""
    return np.array([head for (head,) in engine(images)])


def difference(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> tuple[float, float, int]:
    """(largest difference of a score, of a box in pixels, other classes), over anchors with a score of 0.25 or more."""
    sure = wanted[:, 4] >= 0.25
    off = np.abs(got - wanted).transpose(0, 2, 1)[sure]
    return float(off[:, 4].max(initial=0)), float(off[:, :4].max(initial=0)), int((off[:, 5] > 0).sum())


def correct(plan: Plan) -> Found:
    """The answers of every captured batch size, of both lanes, and of other sizes of the input, against float32."""
    engine, reference = plan.engine(), plan.reference()
    photos = plan.inputs(plan.most)
    wanted = heads(reference, photos)
    rows: list[tuple[float, float, int]] = []
    for n in batch_sizes(plan.most) * 2:  # one call takes the first lane, the next one the other
        rows += [difference(heads(engine, photos[-n:]), wanted[-n:]), difference(heads(engine, photos[:n]), wanted[:n])]
        assert n == 1 or np.isfinite(heads(engine, photos[: n - 1])).all()
    others = {}
    for size in (320, 1280) if not plan.dry else (96,):
        small = plan.inputs(2, size)
        others[str(size)] = difference(heads(plan.engine(size=size), small), heads(reference, small))
    score, pixels, classes = map(max, zip(*rows, strict=True))
    return {"calls": len(rows), "score": score, "pixels": pixels, "other_classes": classes, "other_sizes": others}


def accuracy(plan: Plan) -> Found:
    """COCO's mean average precision of the photos in each precision, and what they find otherwise than float32."""
    labels = [labels_of(plan, n) for n in range(len(plan.files))] if plan.labels else None
    found: Found = {}
    first: list[boxes.Detections] = []
    engines: dict[str, Engine] = {"reference": plan.reference()} | {p: plan.engine(p) for p in DTYPES}
    for name, engine in engines.items():
        detections = [detect(engine, data, plan.size) for data in plan.encoded]
        first = first or detections
        rows = [compare(one, other) for one, other in zip(first, detections, strict=True)]
        found[name] = {
            "objects": sum(r[0] for r in rows),
            "missed": sum(r[1] for r in rows),
            "score": max(r[2] for r in rows),
            "iou": min(r[3] for r in rows),
        }
        if labels:
            found[name] |= {"map50_95": mean_ap(detections, labels, IOUS), "map50": mean_ap(detections, labels, (0.5,))}
    return found


def detect(engine: Engine, data: bytes, size: int) -> boxes.Detections:
    """All detections from a confidence of 0.001, as in COCO's evaluation."""
    network_input, letterbox = image.prepare(data, size, MAX_PIXELS)
    found = recognise(engine.task, engine([network_input])[0], letterbox, 0.001)
    assert isinstance(found, boxes.Detections)
    return found


def labels_of(plan: Plan, n: int) -> NDArray[np.float32]:
    """The labels of a photo: class id, x1, y1, x2, y2 in pixels; float32 (N, 5)."""
    assert plan.labels
    with Image.open(io.BytesIO(plan.encoded[n])) as photo:
        return read_labels(plan.labels / f"{plan.files[n].stem}.txt", *photo.size)


def compare(wanted: boxes.Detections, got: boxes.Detections) -> tuple[int, int, float, float]:
    """(objects of at least 0.5, those not found, largest difference of a score, least IoU of those found)."""
    missed, score, iou = 0, 0.0, 1.0
    for box, confidence, k in zip(wanted.xyxy, wanted.confidence, wanted.class_id, strict=True):
        if confidence < 0.5:
            continue
        same = got.take((got.class_id == k) & (np.abs(got.confidence - confidence) < 0.2))
        inner = (np.minimum(same.xyxy[:, 2:], box[2:]) - np.maximum(same.xyxy[:, :2], box[:2])).clip(0).prod(1)
        area = (box[2:] - box[:2]).prod() + (same.xyxy[:, 2:] - same.xyxy[:, :2]).prod(1)
        overlap = inner / (area - inner)
        if not len(same) or overlap.max() < 0.5:
            missed += 1
            continue
        best = int(overlap.argmax())
        score, iou = max(score, float(abs(same.confidence[best] - confidence))), min(iou, float(overlap[best]))
    return int((wanted.confidence >= 0.5).sum()), missed, score, iou


def swap(plan: Plan) -> Found:
    """Loads an engine while another serves, whose answers must stay the same to the last bit, and its pauses short."""
    old, photos = plan.engine(), plan.inputs(min(plan.most, 16))
    wanted = heads(old, photos)
    waits: list[tuple[float, float]] = []  # (when it began, seconds)
    wrong, stop = 0, threading.Event()

    def serve() -> None:
        nonlocal wrong
        while not stop.is_set():
            started = time.perf_counter()
            wrong += not np.array_equal(heads(old, photos), wanted)
            waits.append((started, time.perf_counter() - started))

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(max(plan.seconds, 0.1))
    began = time.perf_counter()
    new = plan.engine()
    new(plan.inputs(plan.most))
    took = time.perf_counter() - began
    stop.set()
    for thread in threads:
        thread.join()
    before, during = ([s for t, s in waits if (t < began) == calm] for calm in (True, False))
    return {
        "load_s": took,
        "batches": len(waits),
        "wrong": wrong,
        "new_differs": float(np.abs(heads(new, photos) - wanted).max()),
        "slowest_before_ms": 1000 * max(before),
        "slowest_during_ms": 1000 * max(during, default=0),
        "median_before_ms": 1000 * float(np.median(before)),
        "median_during_ms": 1000 * float(np.median(during)) if during else 0.0,
    }


def memory(plan: Plan) -> Found:
    """What an engine takes by its largest batch; and whether one that does not fit is refused, and harms no other."""
    found: Found = {}
    first, photos = plan.engine(), plan.inputs(1)
    wanted = heads(first, photos)
    for most in (1, 8, 16, 32, 64) if not plan.dry else (1, 2):
        free, engine = plan.stream.free_bytes(), plan.engine()
        engine(plan.inputs(most))
        found[f"mb_for_{most}"] = (free - plan.stream.free_bytes()) >> 20
        del engine
    if plan.dry:
        return found
    everything = torch.empty(plan.stream.free_bytes() - (300 << 20), dtype=torch.uint8, device="cuda")
    try:
        plan.engine()(plan.inputs(plan.most))
        found["refused"] = "no, it fitted into 300 MB"
    except OutOfMemory as error:
        found["refused"] = str(error)
    found["other_still_right"] = bool(np.array_equal(heads(first, photos), wanted))
    del everything
    again = plan.engine()
    found["fits_again"] = bool(np.array_equal(heads(again, photos), wanted))
    return found
