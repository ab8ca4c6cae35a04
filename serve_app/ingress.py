"""The front door as a Ray Serve deployment: sends each image through the graph, and tells Ray's errors as ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app import metrics
from serve_app.api import build_api
from serve_app.deployments import Finished
from serve_app.errors import AppError, NotReady, Overloaded
from serve_app.settings import AppSettings, DetectOptions
from serve_app.weights import Weights

READY_TIMEOUT_S = 5.0


class Ingress:
    """Holds the handles of the three stages."""

    def __init__(
        self,
        settings: AppSettings,
        preprocess: DeploymentHandle[Any],
        detect: DeploymentHandle[Any],
        postprocess: DeploymentHandle[Any],
    ) -> None:
        self.settings = settings
        self._preprocess, self._detect, self._postprocess = preprocess, detect, postprocess
        self._images = metrics.images_total()

    def __serve_build_asgi_app__(self) -> FastAPI:  # the name is Serve's: it asks for the app once we are constructed
        return build_api(self)

    async def recognise(self, image: bytes, options: DetectOptions) -> Finished:
        """One image through the graph. No await between the stages: arrays go straight from one to the next."""
        try:
            async with ours():
                prepared = self._preprocess.remote(image, options)
                detected = self._detect.remote(prepared)
                finished: Finished = await self._postprocess.remote(detected)
        except Exception as error:
            self._images.inc(tags={"code": getattr(error, "code", AppError.code)})
            raise
        self._images.inc(tags={"code": "ok"})
        return finished

    async def serving(self) -> tuple[Weights, str]:
        """The live weights and the device they run on."""
        async with ours():
            live: tuple[Weights, str] = await self._detect.serving.remote()
            return live

    async def ready(self) -> Weights:
        """Answers when every stage has; each does so only after it is loaded and warm. Raises NotReady."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                (weights, _), *_ = await asyncio.gather(
                    self.serving(), self._preprocess.ready.remote(), self._postprocess.ready.remote()
                )
        except (TimeoutError, RayError, DeploymentUnavailableError) as error:
            raise NotReady("a stage is still loading") from error
        return weights


@asynccontextmanager
async def ours() -> AsyncIterator[None]:
    """Unwraps what a stage raised, and turns Serve's refusals into AppErrors."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from error
    except BackPressureError as error:
        raise Overloaded("too many requests at the moment") from error
    except DeploymentUnavailableError as error:
        raise NotReady("a stage has no running replica") from error
