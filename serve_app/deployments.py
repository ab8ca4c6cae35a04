"""The three stages as Ray Serve deployments, in data order. Thin: the work is in `image`, `model` and `boxes`.

Each stage adds its time to the record it passes on, because the ingress awaits only the end. Arrays go from stage
to stage by reference and never pass through the ingress.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from ray import serve

from serve_app import boxes, image, metrics
from serve_app.settings import AppSettings, BatchSettings, DetectOptions
from serve_app.weights import Weights

if TYPE_CHECKING:
    from serve_app.model import Model

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A letterboxed photo on its way to the Detector: uint8 (S, S, 3), and how to undo the letterbox."""

    square_hwc: NDArray[np.uint8]
    letterbox: image.Letterbox
    options: DetectOptions
    preprocess_s: float


@dataclass(frozen=True, slots=True)
class Detected:
    """Candidate boxes in pixels of the square, best first, before NMS, and the weights they came from."""

    found: boxes.Detections
    letterbox: image.Letterbox
    options: DetectOptions
    weights: Weights
    preprocess_s: float
    queue_s: float
    inference_s: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Final boxes in pixels of the upright photo (height, width), best first."""

    found: boxes.Detections
    shape: tuple[int, int]
    weights: Weights
    preprocess_s: float
    queue_s: float
    inference_s: float
    postprocess_s: float
    batch_size: int


# Any: Ray's types know batched functions, not methods. The sizes are those of `user_config`, see `reconfigure`.
dynamic_batch: Any = serve.batch


class Stage:
    """What all stages share: an answer to "are you up?", which comes only after `__init__` has finished."""

    def ready(self) -> None:
        """Returns when the replica takes requests."""


class Preprocessor(Stage):
    """Bytes → letterboxed square. Refuses bad images here, before they can share a batch with good ones."""

    def __init__(self, settings: AppSettings) -> None:
        self._size, self._max_pixels = settings.image_size, settings.max_image_pixels
        self._seconds = metrics.stage_seconds()

    def __call__(self, data: bytes, options: DetectOptions) -> Prepared:
        """Raises UnsupportedFormat, ImageTooLarge or CorruptImage."""
        started = time.perf_counter()
        square, box = image.letterbox(image.decode(data, self._max_pixels), self._size)
        elapsed = time.perf_counter() - started
        self._seconds.observe(elapsed, {"stage": "preprocess"})
        return Prepared(square, box, options, elapsed)


class Detector(Stage):
    """Squares → candidate boxes, in dynamic batches."""

    def __init__(self, settings: AppSettings, weights: Path) -> None:
        from serve_app.model import TorchModel  # torch and Ultralytics load in this process only

        self._size = settings.image_size
        self._model: Model = TorchModel(weights, settings.cpu_threads)
        self._seconds, self._queue = metrics.stage_seconds(), metrics.queue_seconds()
        self._refused = metrics.settings_refused_total()
        self._adopt(BatchSettings())
        self._warm_up(BatchSettings())

    def _warm_up(self, batch: BatchSettings) -> None:
        """Runs the smallest and the largest batch; a network that fails here takes its replica down, unseen."""
        started = time.perf_counter()
        for n in {1, batch.max_batch_size}:
            head = self._model(np.zeros((n, self._size, self._size, 3), np.uint8))
            if not np.isfinite(head).all():
                raise RuntimeError(f"the weights {self._model.weights.name} answer with numbers that are not finite")
        logger.info(
            "warm: %s on %s in %.1f s", self._model.weights.name, self._model.device, time.perf_counter() - started
        )

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes new batch settings live. Never raises, as that would kill the replica: bad ones are refused."""
        try:
            batch = BatchSettings.model_validate(user_config)
        except ValidationError as error:
            self._refused.inc()
            logger.error("user_config refused, the old one stays in force: %s", error)
            return
        self._adopt(batch)
        logger.info("user_config in force: %s", batch)

    def _adopt(self, batch: BatchSettings) -> None:
        self._detect.set_max_batch_size(batch.max_batch_size)
        self._detect.set_batch_wait_timeout_s(batch.batch_wait_timeout_s)

    def serving(self) -> tuple[Weights, str]:
        """The live weights and the device they run on."""
        return self._model.weights, self._model.device

    async def __call__(self, prepared: Prepared) -> Detected:
        """Waits for its batch. Never raises for what is in the image: that was checked before."""
        detected: Detected = await self._detect(prepared, time.perf_counter())
        return detected

    @dynamic_batch()
    async def _detect(self, batch: list[Prepared], arrived: list[float]) -> list[Detected]:
        """One forward pass. All members are valid by now, so only a fault of our own can fail them together."""
        return await asyncio.to_thread(self._forward, batch, arrived)

    def _forward(self, batch: list[Prepared], arrived: list[float]) -> list[Detected]:
        started = time.perf_counter()
        heads = self._model(np.stack([p.square_hwc for p in batch]))
        found = [boxes.candidates(h, p.options.conf, p.options.classes) for h, p in zip(heads, batch, strict=True)]
        elapsed = time.perf_counter() - started
        self._seconds.observe(elapsed, {"stage": "detect"})
        for since in arrived:
            self._queue.observe(started - since)
        return [
            Detected(f, p.letterbox, p.options, self._model.weights, p.preprocess_s, started - a, elapsed, len(batch))
            for f, p, a in zip(found, batch, arrived, strict=True)
        ]


class Postprocessor(Stage):
    """Candidates → final boxes in the photo's pixels."""

    def __init__(self) -> None:
        self._seconds = metrics.stage_seconds()

    def __call__(self, d: Detected) -> Finished:
        """NMS with the request's own limits, then back to the photo's pixels."""
        started = time.perf_counter()
        kept = boxes.non_max_suppression(d.found, d.options.iou, d.options.max_det)
        found = boxes.to_photo(kept, d.letterbox)
        elapsed = time.perf_counter() - started
        self._seconds.observe(elapsed, {"stage": "postprocess"})
        shape = (d.letterbox.height, d.letterbox.width)
        return Finished(found, shape, d.weights, d.preprocess_s, d.queue_s, d.inference_s, elapsed, d.batch_size)
