"""The three stages as Ray Serve deployments, in data order. Thin: the work is in `image`, `model` and `boxes`.

Arrays go from stage to stage by reference, in the `records`, and never pass through the ingress.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from PIL import Image
from pydantic import ValidationError
from ray import serve

from serve_app import boxes, deadline, drawing, image, metrics, tracing
from serve_app.errors import ImageTooComplex, Timeout
from serve_app.live import LiveWeights
from serve_app.records import Detected, Finished, Prepared, Serving
from serve_app.settings import AppSettings, DetectorSettings, PredictOptions
from serve_app.turns import Turns
from serve_app.watch import Watch

logger = logging.getLogger("ray.serve")


# Any: Ray's types know batched functions, not methods. The sizes are those of `user_config`, see `reconfigure`.
dynamic_batch: Any = serve.batch
# One is stacked and looked through while the other has the engine: 40 instead of 31 images/s on two cores.
CONCURRENT_BATCHES = 2


class Stage:
    """What all stages share: an answer to "are you up?", which comes only after `__init__` has finished."""

    def ready(self) -> None:
        """Returns when the replica takes requests."""


class Preprocessor(Stage):
    """Bytes → letterboxed square. Refuses bad images here, before they can share a batch with good ones."""

    def __init__(self, settings: AppSettings, size: int) -> None:
        self._settings, self._size = settings, size
        self._threads = asyncio.Semaphore(settings.decode_threads)
        self._seconds = metrics.stage_seconds()

    async def __call__(self, data: bytes, options: PredictOptions, moment: float) -> Prepared:
        """Raises UnsupportedFormat, ImageTooLarge, ImageTooComplex, CorruptImage or Timeout."""
        await self._threads.acquire()
        job = asyncio.get_running_loop().run_in_executor(None, self._prepare, data, options, moment)
        job.add_done_callback(self._release)
        try:
            # Nothing can stop a thread inside a decoder: it keeps its place until it ends, only the answer comes now.
            prepared = await asyncio.wait_for(asyncio.shield(job), self._settings.decode_timeout_s)
        except TimeoutError:
            limit = self._settings.decode_timeout_s
            raise ImageTooComplex(f"the image took more than {limit:g} s to decode") from None
        tracing.stage("preprocess", prepared.preprocess_s)
        return prepared

    def _release(self, job: asyncio.Future[Prepared]) -> None:
        self._threads.release()
        job.cancelled() or job.exception()  # asyncio complains of an error that nobody saw

    def _prepare(self, data: bytes, options: PredictOptions, moment: float) -> Prepared:
        deadline.check(moment)
        started = time.perf_counter()
        limits = self._settings.max_image_pixels, self._settings.max_image_frames
        square, box = image.prepare(data, self._size, *limits)
        elapsed = time.perf_counter() - started
        self._seconds.observe(elapsed, {"stage": "preprocess"})
        return Prepared(square, box, options, data if options.format == "image" else None, elapsed, moment)


@dataclass(slots=True, eq=False)
class Place:
    """An image in the Detector's queue; no longer wanted when its caller has gone."""

    prepared: Prepared
    arrived: float  # perf_counter
    wanted: bool = True
    detected: Detected | None = None


class Detector(Stage):
    """Squares → candidate boxes, in dynamic batches."""

    def __init__(self, settings: AppSettings, weights: str, size: int) -> None:
        # Asked of Ray, as with `num_gpus: 0` a process still sees the GPUs of its node.
        booked = ray.get_runtime_context().get_accelerator_ids().get("GPU")
        self._live = LiveWeights(settings, weights, size, "cuda" if booked else "cpu")
        self._seconds, self._queue = metrics.stage_seconds(), metrics.queue_seconds()
        self._engine = metrics.engine_seconds_total()
        self._refused = metrics.settings_refused_total()
        self._changes, self._watch = asyncio.Lock(), Watch()
        self._turns = Turns(CONCURRENT_BATCHES)
        self._replica = serve.get_replica_context().replica_id.unique_id

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Loads the weights at start; later, takes new settings and weights while batches go on.

        Raises only at start, when there is nothing to serve: later that would kill the replica. What is bad is refused.
        """
        async with self._changes:
            try:
                await asyncio.to_thread(self._adopt, DetectorSettings.model_validate(user_config))
            except (ValidationError, RuntimeError) as error:  # RuntimeError: out of memory, say
                self._refused.inc()
                logger.error("user_config refused, the old one stays in force: %s", error)
                if not self._live.started:
                    await asyncio.to_thread(self._adopt, DetectorSettings())

    def _adopt(self, wanted: DetectorSettings) -> None:
        """The smallest and the largest batch run before they are used."""
        self._live.turn_to(wanted.weights, {1, wanted.max_batch_size})
        self._detect.set_max_batch_size(wanted.max_batch_size)
        self._turns.size = wanted.max_batch_size
        self._detect.set_batch_wait_timeout_s(wanted.batch_wait_timeout_s)
        logger.info("user_config in force: %s", wanted)

    def serving(self) -> Serving:
        """What is live in this replica."""
        return self._live.report()

    async def __call__(self, prepared: Prepared) -> Detected:
        """Waits for its batch. Raises Timeout, and nothing for what is in the image: that was checked before."""
        place = Place(prepared, time.perf_counter())
        try:
            async with self._turns.awaited(place):
                await self._detect(place)
        except asyncio.CancelledError:
            place.wanted = False
            raise
        if place.detected is None:
            raise Timeout("its time was over before its turn came")
        tracing.stage("queue", place.detected.queue_s, ago_s=place.detected.inference_s)
        tracing.stage("detect", place.detected.inference_s)
        return place.detected

    @dynamic_batch(max_concurrent_batches=CONCURRENT_BATCHES)
    async def _detect(self, batch: list[Place]) -> list[None]:
        """One forward pass. All members are valid by now, so only a fault of our own can fail them together."""
        now = time.time()
        with self._turns.running(batch):
            if awaited := [place for place in batch if place.wanted and now < place.prepared.moment]:
                with self._watch.running():
                    await asyncio.to_thread(self._forward, awaited)
        return [None] * len(batch)

    def _forward(self, batch: list[Place]) -> None:
        started, live = time.perf_counter(), self._live.now  # the same to the end, whatever is swapped meanwhile
        heads = live.model(np.stack([place.prepared.square_hwc for place in batch]))
        found = [
            boxes.candidates(h, p.prepared.options.conf, p.prepared.options.classes)
            for h, p in zip(heads, batch, strict=True)
        ]
        elapsed = time.perf_counter() - started
        self._seconds.observe(elapsed, {"stage": "detect"})
        self._engine.inc(elapsed)
        for candidates, place in zip(found, batch, strict=True):
            p, waited = place.prepared, started - place.arrived
            self._queue.observe(waited)
            place.detected = Detected(
                candidates, p.letterbox, p.options, p.photo, live.weights,
                p.preprocess_s, waited, elapsed, len(batch), self._replica,
            )  # fmt: skip

    async def check_health(self) -> None:
        """Serve asks every few seconds, and replaces a replica when this has raised three times. Raises Hung."""
        if self._live.started:
            self._live.show()
            await self._watch.check(self._live.probe)


class Postprocessor(Stage):
    """Candidates → final boxes in the photo's pixels."""

    def __init__(self, settings: AppSettings) -> None:
        self._settings = settings
        self._seconds, self._detections = metrics.stage_seconds(), metrics.detections_total()

    def __call__(self, d: Detected) -> Finished:
        """NMS with the request's own limits, then back to the photo's pixels."""
        started = time.perf_counter()
        kept = boxes.non_max_suppression(d.found, d.options.iou, d.options.max_det)
        found = boxes.to_photo(kept, d.letterbox)
        drawn = self._draw(d.photo, found, d.weights.class_names) if d.photo else None
        elapsed = time.perf_counter() - started
        self._seconds.observe(elapsed, {"stage": "postprocess"})
        tracing.stage("postprocess", elapsed)
        for class_id, count in zip(*np.unique(found.class_id, return_counts=True), strict=True):
            self._detections.inc(float(count), {"class_name": d.weights.class_names[class_id]})
        shape = (d.letterbox.height, d.letterbox.width)
        times = d.preprocess_s, d.queue_s, d.inference_s, elapsed
        return Finished(found, shape, drawn, d.weights, *times, d.batch_size, d.replica)

    def _draw(self, photo: bytes, found: boxes.Detections, names: tuple[str, ...]) -> bytes:
        """A JPEG of the upright photo with its boxes. Decodes again: only few requests ask for it."""
        rows = zip(found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist(), strict=True)
        labelled = [(x1, y1, x2, y2, k, f"{names[k]} {score:.0%}") for (x1, y1, x2, y2), score, k in rows]
        rgb = image.decode(photo, self._settings.max_image_pixels, self._settings.max_image_frames)
        return drawing.to_jpeg(drawing.draw(Image.fromarray(rgb), labelled))
