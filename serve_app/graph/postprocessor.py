"""The third stage, Postprocessor: candidates in, objects in pixels of the photo out.

What the stage does with them is the task's, see `vision/tasks/`.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image

from serve_app import deadline, metrics, tracing
from serve_app.graph.payloads import Detected, Finished, Tiles
from serve_app.graph.stage import Stage
from serve_app.settings import AppSettings
from serve_app.vision import drawing, image
from serve_app.vision.tasks import results
from serve_app.vision.tasks.by_name import TASKS
from serve_app.vision.tasks.results import Result
from serve_app.vision.tasks.task import Found


class Postprocessor(Stage):
    """Turns candidates into objects in pixels of the photo."""

    def __init__(self, settings: AppSettings) -> None:
        self._settings = settings
        self._seconds, self._detections = metrics.stage_seconds(), metrics.detections_total()
        self._tiled = ThreadPoolExecutor(1, "tiled")  # it may need seconds, and must not take the threads of others

    async def __call__(self, d: Detected) -> Finished:
        """`finish` in a thread: NMS takes up to 20 ms, drawing a large photo 1 s. Photos with tiles wait for others."""
        context = contextvars.copy_context()  # of the trace
        pool = self._tiled if len(d.candidates) > 1 else None
        return await asyncio.get_running_loop().run_in_executor(pool, context.run, self.finish, d)

    def finish(self, d: Detected) -> Finished:
        """Finishes them with the request's own options, and draws them if requested.

        Raises ImageTooComplex or Timeout.
        """
        started = time.perf_counter()
        task, names = TASKS[d.weights.task], d.weights.class_names
        found = self._found(d)
        drawn = self._draw(d.photo, results.of(found, task, names)) if d.photo else None
        elapsed = time.perf_counter() - started
        self._seconds.observe(elapsed, {"stage": "postprocess"})
        tracing.add_span("postprocess", elapsed)
        for class_id, count in zip(*np.unique(task.counted(found), return_counts=True), strict=True):
            self._detections.inc(float(count), {"class_name": names[class_id]})
        whole, *cut = d.letterboxes
        tiles = Tiles(d.tile, len(cut)) if d.tile else None
        times = d.preprocess_s, d.queue_s, d.inference_s, elapsed
        return Finished(found, (whole.height, whole.width), tiles, drawn, d.weights, *times, d.batch_size, d.replica)

    def _found(self, d: Detected) -> Found:
        """What is on the photo, merged from its tiles. Raises ImageTooComplex or Timeout."""
        task = TASKS[d.weights.task]
        if len(d.candidates) == 1:
            return task.final(d.candidates[0], d.letterboxes[0], d.options)
        in_time = partial(deadline.check, d.expires_at)  # the masks of many tiles take seconds
        return task.merged(d.candidates, d.letterboxes, d.options, in_time)

    def _draw(self, photo: bytes, found: list[Result]) -> bytes:
        """The upright photo with what was found, as a JPEG. Decodes the photo again, because few requests need it."""
        rgb = image.decode(photo, self._settings.max_image_pixels, self._settings.max_image_frames)
        return drawing.to_jpeg(drawing.draw(Image.fromarray(rgb), found))
