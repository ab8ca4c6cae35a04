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

import ray
from pydantic import ValidationError
from ray import serve

from serve_app import metrics, tracing
from serve_app.errors import Timeout
from serve_app.graph.batch_admission import BatchAdmission
from serve_app.graph.engine_watchdog import Watchdog
from serve_app.graph.forward import forward
from serve_app.graph.live_weights import LiveWeights
from serve_app.graph.payloads import Detected, Prepared, Serving
from serve_app.graph.stage import Stage
from serve_app.settings import AppSettings, DetectorSettings

logger = logging.getLogger("ray.serve")
# Any, because Ray's types cover batched functions but not methods. `reconfigure` sets size and wait from `user_config`.
dynamic_batch: Any = serve.batch
# One batch is stacked and filtered while the other is in the engine: 40 instead of 31 images/s on two cores.
CONCURRENT_BATCHES = 2


@dataclass(slots=True, eq=False)
class QueuedImage:
    """An image in the Detector's queue. `wanted` becomes false when its caller leaves."""

    prepared: Prepared
    arrived: float  # seconds of `perf_counter`
    wanted: bool = True
    detected: Detected | None = None


class Detector(Stage):
    """Turns network inputs, uint8 (H, W, 3), into candidates."""

    def __init__(self, settings: AppSettings, weights: str, size: int, task: str) -> None:
        # Ray's booking decides, because with `num_gpus: 0` a process still sees the GPUs of its node.
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU")
        self._weights = LiveWeights(settings, weights, size, task, "cuda" if gpus else "cpu")
        self._seconds, self._queue = metrics.stage_seconds(), metrics.queue_seconds()
        self._engine = metrics.engine_seconds_total()
        self._refused = metrics.settings_refused_total()
        self._changing, self._watchdog = asyncio.Lock(), Watchdog()
        self._admission = BatchAdmission(CONCURRENT_BATCHES)
        self._replica = serve.get_replica_context().replica_id.unique_id

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Loads the weights at start; later applies new settings and weights while batches go on.

        Invalid settings are rejected, and the previous ones stay active. Raises WeightsError or RuntimeError only at
        start, when there is nothing to serve: raised later, they would kill the replica.
        """
        async with self._changing:
            try:
                await asyncio.to_thread(self._adopt, DetectorSettings.model_validate(user_config))
            except (ValidationError, RuntimeError) as error:  # RuntimeError: for example, out of memory
                self._refused.inc()
                logger.error("user_config refused, the previous one stays active: %s", error)
                if not self._weights.started:
                    await asyncio.to_thread(self._adopt, DetectorSettings())

    def _adopt(self, wanted: DetectorSettings) -> None:
        """Applies the settings. The smallest and the largest batch run once before they are used."""
        self._weights.switch_to(wanted.weights, {1, wanted.max_batch_size})
        self._detect.set_max_batch_size(wanted.max_batch_size)
        self._admission.size = wanted.max_batch_size
        self._detect.set_batch_wait_timeout_s(wanted.batch_wait_timeout_s)
        logger.info("user_config active: %s", wanted)

    def serving(self) -> Serving:
        """What this replica serves."""
        return self._weights.report()

    async def __call__(self, prepared: Prepared) -> Detected:
        """Waits for the image's batch. Raises Timeout. Bad images never get here: the Preprocessor refuses them."""
        queued = QueuedImage(prepared, time.perf_counter())
        try:
            async with self._admission.admitted(queued):
                await self._detect(queued)
        except asyncio.CancelledError:
            queued.wanted = False
            raise
        if queued.detected is None:
            raise Timeout("the deadline passed before the image was processed: try again later")
        tracing.add_span("queue", queued.detected.queue_s, ago_s=queued.detected.inference_s)
        tracing.add_span("detect", queued.detected.inference_s)
        return queued.detected

    @dynamic_batch(max_concurrent_batches=CONCURRENT_BATCHES)
    async def _detect(self, batch: list[QueuedImage]) -> list[None]:
        """One batch. All images in the batch are valid, so only a bug or a broken engine can fail them all."""
        now = time.time()
        with self._admission.running(batch):
            if awaited := [queued for queued in batch if queued.wanted and now < queued.prepared.expires_at]:
                with self._watchdog.running():
                    await asyncio.to_thread(self._forward, awaited)
        return [None] * len(batch)

    def _forward(self, batch: list[QueuedImage]) -> None:
        started, live = time.perf_counter(), self._weights.current  # a swap must not change it halfway
        found, elapsed = forward(live, [queued.prepared for queued in batch])
        self._seconds.observe(elapsed, {"stage": "detect"})
        self._engine.inc(elapsed)
        for candidates, queued in zip(found, batch, strict=True):
            p, waited = queued.prepared, started - queued.arrived
            self._queue.observe(waited)
            queued.detected = Detected(
                candidates, p.letterbox, p.options, p.photo, live.weights,
                p.preprocess_s, waited, elapsed, len(batch), self._replica,
            )  # fmt: skip

    async def check_health(self) -> None:
        """Serve calls this every few seconds and replaces the replica after three failures. Raises EngineHung."""
        if self._weights.started:
            self._weights.set_gauge()
            await self._watchdog.check(self._weights.run_once)
