"""The second stage, Detector: network inputs in, candidates out, in dynamic batches.

Serve's `@serve.batch` forms the batches, `batch_admission.py` decides when an image may join one, and `live_weights.py`
holds the engine. Must not know the engine's framework.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve

from serve_app import metrics, tracing
from serve_app.errors import Overloaded, Timeout
from serve_app.graph.batch_admission import BatchAdmission
from serve_app.graph.engine_watchdog import Watchdog
from serve_app.graph.forward import forward
from serve_app.graph.live_settings import LiveSettings
from serve_app.graph.live_weights import LiveWeights
from serve_app.graph.payloads import Detected, Prepared, Serving
from serve_app.graph.stage import Stage
from serve_app.settings import AppSettings, DetectorSettings
from serve_app.vision.tasks.task import Found
from serve_app.weights.loader import Loaded

logger = logging.getLogger("ray.serve")
# Any, because Ray's types cover batched functions but not methods. `reconfigure` sets size and wait from `user_config`.
dynamic_batch: Any = serve.batch
# One batch is stacked and filtered while the other is in the engine: 40 instead of 31 images/s on two cores.
CONCURRENT_BATCHES = 2
MOST_REQUESTS = 2  # whose photos may have `max_tiles` at a time: 0.6 GB of network inputs of 640 pixels


@dataclass(slots=True, eq=False)
class QueuedPhoto:
    """A photo in the Detector. `wanted` becomes false when its caller leaves."""

    prepared: Prepared
    arrived: float  # seconds of `perf_counter`
    wanted: bool = True
    live: Loaded | None = None  # those of its first batch: a swap must not change the weights between two tiles


@dataclass(slots=True, eq=False)
class QueuedInput:
    """One network input in the queue, and what its batch made of it."""

    photo: QueuedPhoto
    input_hwc: NDArray[np.uint8]
    candidates: Found | None = None
    started: float = 0.0  # the batch, in seconds of `perf_counter`
    ended: float = 0.0
    batch_size: int = 0


class Detector(Stage):
    """Turns network inputs, uint8 (H, W, 3), into candidates."""

    def __init__(self, settings: AppSettings, weights: str, size: int, task: str) -> None:
        # Ray's booking decides, because with `num_gpus: 0` a process still sees the GPUs of its node.
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU")
        self._weights = LiveWeights(settings, weights, size, task, "cuda" if gpus else "cpu")
        self._seconds, self._queue = metrics.stage_seconds(), metrics.queue_seconds()
        self._engine = metrics.engine_seconds_total()
        self._live_settings = LiveSettings(self._adopt, self._weights)
        self._watchdog = Watchdog()
        self._admission = BatchAdmission(CONCURRENT_BATCHES)
        self._tiles, self._most_tiles = 0, MOST_REQUESTS * settings.max_tiles  # that wait or run
        self._replica = serve.get_replica_context().replica_id.unique_id

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Applies new settings and weights, see `LiveSettings`."""
        await self._live_settings.change(user_config)

    def _adopt(self, wanted: DetectorSettings) -> str | None:
        """Applies the settings; returns the reason if the weights are refused.

        The smallest and the largest batch run once before they are used.
        """
        reason = self._weights.switch_to(wanted.weights, {1, wanted.max_batch_size})
        self._detect.set_max_batch_size(wanted.max_batch_size)
        self._admission.size = wanted.max_batch_size
        self._detect.set_batch_wait_timeout_s(wanted.batch_wait_timeout_s)
        logger.info("user_config active: %s", wanted)
        return reason

    def serving(self) -> Serving:
        """What this replica serves."""
        return self._weights.report()

    async def __call__(self, prepared: Prepared) -> Detected:
        """Waits for the batches of the photo's network inputs.

        Raises Timeout, or Overloaded if too many tiles wait. Bad images never get here: the Preprocessor refuses them.
        """
        photo, tiles = QueuedPhoto(prepared, time.perf_counter()), len(prepared.inputs_hwc) - 1
        if tiles and self._tiles + tiles > self._most_tiles:
            raise Overloaded(f"{self._tiles} tiles are running or waiting, {tiles} more are too many: try again later")
        queued = [QueuedInput(photo, input_hwc) for input_hwc in prepared.inputs_hwc]
        self._tiles += tiles
        try:
            await asyncio.gather(*map(self._in_turn, queued))
        except BaseException:
            photo.wanted = False
            raise
        finally:
            self._tiles -= tiles
        detected = self._detected(photo, queued)
        if tiles:
            prepared.inputs_hwc.clear()  # 0.3 GB; else the ingress, which holds the results of stages, would keep it
        return detected

    async def _in_turn(self, queued: QueuedInput) -> None:
        async with self._admission.admitted(queued, queued.photo):
            await self._detect(queued)

    def _detected(self, photo: QueuedPhoto, queued: list[QueuedInput]) -> Detected:
        """What the batches found. Raises Timeout if the deadline passed before the last one."""
        candidates = [one.candidates for one in queued if one.candidates is not None]
        if len(candidates) < len(queued):
            raise Timeout("the deadline passed before the image was processed: try again later")
        assert photo.live
        p, took, ran_until = photo.prepared, 0.0, 0.0
        for one in sorted(queued, key=lambda one: one.started):  # batches that ran at the same time count once
            took += max(one.ended - max(one.started, ran_until), 0.0)
            ran_until = max(ran_until, one.ended)
        waited = ran_until - photo.arrived - took
        self._queue.observe(waited)
        tracing.add_span("queue", waited, ago_s=took)
        tracing.add_span("detect", took)
        return Detected(
            candidates, p.letterboxes, p.tile, p.options, p.photo, p.expires_at, photo.live.weights,
            p.preprocess_s, waited, took, max(one.batch_size for one in queued), self._replica,
        )  # fmt: skip

    @dynamic_batch(max_concurrent_batches=CONCURRENT_BATCHES)
    async def _detect(self, batch: list[QueuedInput]) -> list[None]:
        """One batch. All images in the batch are valid, so only a bug or a broken engine can fail them all."""
        now = time.time()
        with self._admission.running(batch):
            if awaited := [one for one in batch if one.photo.wanted and now < one.photo.prepared.expires_at]:
                current = self._weights.current
                for one in awaited:  # here and not in a thread, so that two batches of a photo agree
                    one.photo.live = one.photo.live or current
                with self._watchdog.running():
                    await asyncio.to_thread(self._forward, awaited)
        return [None] * len(batch)

    def _forward(self, batch: list[QueuedInput]) -> None:
        """Runs a batch; in two parts only after a swap, while a photo of before has tiles that wait."""
        by_weights: dict[int, list[QueuedInput]] = {}
        for one in batch:
            by_weights.setdefault(id(one.photo.live), []).append(one)
        for group in by_weights.values():
            self._run(group)

    def _run(self, batch: list[QueuedInput]) -> None:
        started, live = time.perf_counter(), batch[0].photo.live
        assert live
        found, elapsed = forward(live, [(one.input_hwc, one.photo.prepared.options) for one in batch])
        self._seconds.observe(elapsed, {"stage": "detect"})
        self._engine.inc(elapsed)
        for candidates, one in zip(found, batch, strict=True):
            one.candidates, one.started, one.ended = candidates, started, started + elapsed
            one.batch_size = len(batch)

    async def check_health(self) -> None:
        """Serve calls this every few seconds and replaces the replica after three failures. Raises EngineHung."""
        await super().check_health()
        if self._weights.started:
            self._weights.set_gauge()
            await self._watchdog.check(self._weights.run_once)
