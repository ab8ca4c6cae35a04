"""The ingress, the HTTP deployment: sends each image through the graph, and translates Ray's errors into AppErrors.

The only module of `http` that knows Ray. Must not know routes or bodies: `api.py` builds the application around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from math import inf
from typing import Any, TypeVar

from fastapi import FastAPI
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app import deadline, metrics
from serve_app.errors import AppError, NotReady, Overloaded, Timeout
from serve_app.graph import quarantine
from serve_app.graph.autoscaling import QueueingTimer
from serve_app.graph.detector import Detector
from serve_app.graph.local_handle import LocalHandle
from serve_app.graph.payloads import Finished, Serving
from serve_app.graph.postprocessor import Postprocessor
from serve_app.graph.preprocessor import Preprocessor
from serve_app.graph.quarantine import Quarantine
from serve_app.graph.replica import Replica
from serve_app.http.api import build_api
from serve_app.settings import AppSettings, PredictOptions

READY_TIMEOUT_S = 5.0
RETRIES = 2  # of one image; Serve sends each to a live replica, if there is one
# Photos with tiles in one process; each may take 0.3 GB, with masks 0.9. One is decoded while another is in the engine.
TILED_AT_A_TIME = 2
StageHandle = DeploymentHandle[Any] | LocalHandle
Answer = TypeVar("Answer")


class StageLost(NotReady):
    """A replica died while it had the request, or no replica is running. `died` names the replica that did."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(f"a stage has no running replica: try again after {self.retry_after_s} s")
        # A stage whose input was lost with the stage before it raises an error that has the death as its cause.
        deaths = [one for one in (error, getattr(error, "__cause__", None)) if isinstance(one, ActorDiedError)]
        self.died = deaths[0].actor_id if deaths else None


class Ingress(Replica):
    """The ingress; its three stages are replicas, or behind `LocalHandle`s. Implements `RecognitionService`."""

    def __init__(
        self,
        settings: AppSettings,
        preprocess: StageHandle,
        detect: StageHandle,
        postprocess: StageHandle,
    ) -> None:
        self.settings = settings
        self._preprocess, self._detect, self._postprocess = preprocess, detect, postprocess
        self._images, self._retries = metrics.images_total(), metrics.retries_total()
        self._last_ready: Serving | None = None  # what `ready` returned last
        self._waits = QueueingTimer()
        self._quarantine = Quarantine(quarantine.folder())

    def __serve_build_asgi_app__(self) -> FastAPI:  # Serve calls this once the replica is constructed
        return build_api(self)

    async def recognise(self, image: bytes, options: PredictOptions, most_tiles: int, expires_at: float) -> Finished:
        """Sends one image through the graph. Retries if a replica dies, because predicting twice does no harm.

        Raises AppErrors; any other exception is a bug. Counts the image by its outcome.
        """
        code = "ok"
        with self._waits.waiting() as wait:
            try:
                done = await self._with_retries(
                    partial(self._send_through, image, options, most_tiles, expires_at), expires_at
                )
            except BaseException as error:
                cancelled = isinstance(error, asyncio.CancelledError)
                code = "cancelled" if cancelled else getattr(error, "code", AppError.code)
                wait.counts = cancelled or isinstance(error, Timeout)  # out of time, here or at the client
                raise
            else:
                wait.counts, wait.worked_s = True, done.preprocess_s + done.inference_s + done.postprocess_s
                return done
            finally:
                self._images.inc(tags={"code": code})

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The queueing latency for Serve's autoscaler. Serve calls this method by its name."""
        return self._waits.report()

    async def _with_retries(self, attempt: Callable[[], Awaitable[Answer]], expires_at: float) -> Answer:
        for _ in range(RETRIES):
            with suppress(StageLost):
                return await attempt()
            self._retries.inc()
            deadline.check(expires_at)
        return await attempt()

    async def _send_through(
        self, image: bytes, options: PredictOptions, most_tiles: int, expires_at: float
    ) -> Finished:
        """Sends it once. Raises ImageQuarantined for an image that would take down a third process."""
        async with self._quarantine.holding(image) as held:
            try:
                return await self._through_stages(image, options, most_tiles, expires_at)
            except StageLost as lost:
                if lost.died:
                    self._quarantine.strike(held, lost.died)
                raise

    async def _through_stages(
        self, image: bytes, options: PredictOptions, most_tiles: int, expires_at: float
    ) -> Finished:
        """Does not await between stages, so that arrays go from one stage to the next without passing here."""
        prepared = self._preprocess.remote(image, options, most_tiles, expires_at)
        detected = self._detect.remote(prepared)
        finished = self._postprocess.remote(detected)
        try:
            async with translate_ray_errors():
                done: Finished = await finished
                return done
        except BaseException:
            for call in (finished, detected, prepared):  # else the stages would go on for nobody
                with suppress(RayError, RayServeException):  # cancelling a failed call raises its error
                    call.cancel()
            raise

    async def serving(self) -> Serving:
        """What one Detector replica serves. Raises NotReady or Overloaded."""
        return await self._with_retries(self._serving, inf)

    async def _serving(self) -> Serving:
        async with translate_ray_errors():
            live: Serving = await self._detect.serving.remote()  # type: ignore[assignment]
            return live

    async def ready(self) -> Serving:
        """Asks every stage, which answers once it is loaded and warm. Raises NotReady, after 5 s at the latest.

        Once all stages were up, one that is too busy to answer counts as up: an overloaded pod must keep its traffic.
        """
        try:
            async with asyncio.timeout(READY_TIMEOUT_S), translate_ray_errors():
                stages = self.serving(), self._preprocess.ready.remote(), self._postprocess.ready.remote()
                self._last_ready, *_ = await asyncio.gather(*stages)
        except (TimeoutError, Overloaded) as error:
            if self._last_ready is None:
                raise NotReady(f"a stage is still loading: try again after {NotReady.retry_after_s} s") from error
        assert self._last_ready
        return self._last_ready


class SingleProcessIngress(Ingress):
    """The ingress with all stages in its own process (`placement: together`)."""

    def __init__(self, settings: AppSettings, weights: str, size: int, task: str) -> None:
        self._detector = Detector(settings, weights, size, task)
        stages = Preprocessor(settings, size, task), self._detector, Postprocessor(settings)
        super().__init__(settings, *(LocalHandle(stage, settings.max_waiting_images) for stage in stages))
        self._tiled = asyncio.Semaphore(TILED_AT_A_TIME)

    async def _send_through(
        self, image: bytes, options: PredictOptions, most_tiles: int, expires_at: float
    ) -> Finished:
        """Photos with tiles wait for each other before they are decoded, because of their memory."""
        async with self._tiled if options.tile else nullcontext():
            return await super()._send_through(image, options, most_tiles, expires_at)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Reconfigures the Detector."""
        await self._detector.reconfigure(user_config)

    async def check_health(self) -> None:
        """Checks the Detector. Raises EngineHung."""
        await self._detector.check_health()


@asynccontextmanager
async def translate_ray_errors() -> AsyncIterator[None]:
    """Raises what a stage raised, Overloaded for a full queue, and StageLost for a lost replica."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, RayError | RayServeException):  # the stage's input was lost with its replica
            raise StageLost(error.cause) from error
        raise error.cause from error
    except BackPressureError as error:
        raise Overloaded("the queue of a stage is full: try again later") from error
    except (RayError, RayServeException) as error:  # the replica died, or there is none
        raise StageLost(error) from error
