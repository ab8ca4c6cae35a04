"""The third stage, Postprocessor: candidates in, detections in pixels of the photo out.

NMS and the letterbox's inverse are in `vision/boxes.py`.
"""

from __future__ import annotations

import time

import numpy as np
from PIL import Image

from serve_app import metrics, tracing
from serve_app.graph.payloads import Detected, Finished
from serve_app.graph.stage import Stage
from serve_app.settings import AppSettings
from serve_app.vision import boxes, drawing, image


class Postprocessor(Stage):
    """Turns candidates into detections in pixels of the photo."""

    def __init__(self, settings: AppSettings) -> None:
        self._settings = settings
        self._seconds, self._detections = metrics.stage_seconds(), metrics.detections_total()

    def __call__(self, d: Detected) -> Finished:
        """Runs NMS with the request's own options, undoes the letterbox, and draws the boxes if requested."""
        started = time.perf_counter()
        options = d.options
        kept = boxes.non_max_suppression(d.candidates, options.iou, options.max_det, options.agnostic_nms)
        found = boxes.to_photo(kept, d.letterbox)
        drawn = self._draw(d.photo, found, d.weights.class_names) if d.photo else None
        elapsed = time.perf_counter() - started
        self._seconds.observe(elapsed, {"stage": "postprocess"})
        tracing.add_span("postprocess", elapsed)
        for class_id, count in zip(*np.unique(found.class_id, return_counts=True), strict=True):
            self._detections.inc(float(count), {"class_name": d.weights.class_names[class_id]})
        shape = (d.letterbox.height, d.letterbox.width)
        times = d.preprocess_s, d.queue_s, d.inference_s, elapsed
        return Finished(found, shape, drawn, d.weights, *times, d.batch_size, d.replica)

    def _draw(self, photo: bytes, found: boxes.Detections, names: tuple[str, ...]) -> bytes:
        """The upright photo with its boxes, as a JPEG. Decodes the photo again, because few requests need it."""
        rows = zip(found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist(), strict=True)
        labelled = [(x1, y1, x2, y2, k, f"{names[k]} {score:.0%}") for (x1, y1, x2, y2), score, k in rows]
        rgb = image.decode(photo, self._settings.max_image_pixels, self._settings.max_image_frames)
        return drawing.to_jpeg(drawing.draw(Image.fromarray(rgb), labelled))
