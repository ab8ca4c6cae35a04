"""The front door as a Ray Serve deployment: sends each image through the graph, and tells Ray's errors as ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf
from typing import Any, TypeVar

from fastapi import FastAPI
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app import deadline, metrics
from serve_app.api import build_api
from serve_app.deployments import Detector, Postprocessor, Preprocessor
from serve_app.errors import AppError, NotReady, Overloaded, Timeout
from serve_app.placement import Local
from serve_app.records import Finished, Serving
from serve_app.scaling import Waits
from serve_app.settings import AppSettings, PredictOptions

READY_TIMEOUT_S = 5.0
RETRIES = 2  # of one image; each goes to a replica that is alive, if there is one
Stage = DeploymentHandle[Any] | Local
Answer = TypeVar("Answer")


class StageLost(NotReady):
    """A replica died with a request in it, or none is there."""

    def __init__(self) -> None:
        super().__init__("a stage has no running replica")


class Ingress:
    """Holds the three stages: handles of replicas, or `Local` ones."""

    def __init__(
        self,
        settings: AppSettings,
        preprocess: Stage,
        detect: Stage,
        postprocess: Stage,
    ) -> None:
        self.settings = settings
        self._preprocess, self._detect, self._postprocess = preprocess, detect, postprocess
        self._images, self._retries = metrics.images_total(), metrics.retries_total()
        self._live: Serving | None = None
        self._waits = Waits()

    def __serve_build_asgi_app__(self) -> FastAPI:  # the name is Serve's: it asks for the app once we are constructed
        return build_api(self)

    async def recognise(self, image: bytes, options: PredictOptions, moment: float) -> Finished:
        """One image through the graph; again, when a replica died with it: to look twice at a photo harms nobody."""
        code = "ok"
        with self._waits.waiting() as wait:
            try:
                done = await self._again(partial(self._through, image, options, moment), moment)
            except BaseException as error:
                gone = isinstance(error, asyncio.CancelledError)
                code = "cancelled" if gone else getattr(error, "code", AppError.code)
                wait.counts = gone or isinstance(error, Timeout)  # its time ran out in here, or out there
                raise
            else:
                wait.counts, wait.worked_s = True, done.preprocess_s + done.inference_s + done.postprocess_s
                return done
            finally:
                self._images.inc(tags={"code": code})

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's autoscaler asks for; the name is Serve's."""
        return self._waits.report()

    async def _again(self, attempt: Callable[[], Awaitable[Answer]], moment: float) -> Answer:
        for _ in range(RETRIES):
            with suppress(StageLost):
                return await attempt()
            self._retries.inc()
            deadline.check(moment)
        return await attempt()

    async def _through(self, image: bytes, options: PredictOptions, moment: float) -> Finished:
        """No await between the stages: arrays go straight from one to the next."""
        prepared = self._preprocess.remote(image, options, moment)
        detected = self._detect.remote(prepared)
        finished = self._postprocess.remote(detected)
        try:
            async with ours():
                done: Finished = await finished
                return done
        except BaseException:
            for stage in (finished, detected, prepared):  # what a refused or timed-out request started is not wanted
                with suppress(RayError, RayServeException):  # to cancel what has failed raises its failure
                    stage.cancel()
            raise

    async def serving(self) -> Serving:
        """What a Detector has loaded."""
        return await self._again(self._serving, inf)

    async def _serving(self) -> Serving:
        async with ours():
            live: Serving = await self._detect.serving.remote()  # type: ignore[assignment]
            return live

    async def ready(self) -> Serving:
        """Answers when every stage has; each does so only after it is loaded and warm. Raises NotReady.

        A stage that was up once and is now too busy to say so is up: an overloaded pod must keep its traffic.
        """
        try:
            async with asyncio.timeout(READY_TIMEOUT_S), ours():
                stages = self.serving(), self._preprocess.ready.remote(), self._postprocess.ready.remote()
                self._live, *_ = await asyncio.gather(*stages)
        except (TimeoutError, Overloaded) as error:
            if self._live is None:
                raise NotReady("a stage is still loading") from error
        assert self._live
        return self._live


class Together(Ingress):
    """The front door with all stages in its own process."""

    def __init__(self, settings: AppSettings, weights: str, size: int) -> None:
        self._detector = Detector(settings, weights, size)
        stages = Preprocessor(settings, size), self._detector, Postprocessor(settings)
        super().__init__(settings, *(Local(stage, settings.max_waiting_images) for stage in stages))

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """The Detector's."""
        await self._detector.reconfigure(user_config)

    async def check_health(self) -> None:
        """The Detector's."""
        await self._detector.check_health()


@asynccontextmanager
async def ours() -> AsyncIterator[None]:
    """Unwraps what a stage raised, and turns Serve's refusals into AppErrors."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, RayError | RayServeException):  # what it was to work on is lost
            raise StageLost from error
        raise error.cause from error
    except BackPressureError as error:
        raise Overloaded("too many requests at the moment") from error
    except (RayError, RayServeException) as error:  # its replica died, or there is none
        raise StageLost from error
