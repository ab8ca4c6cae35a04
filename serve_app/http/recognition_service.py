"""The interface between the HTTP routes and the service behind them, so that routes need not know Ray.

`Ingress` implements it.
"""

from __future__ import annotations

from typing import Protocol

from serve_app.graph.payloads import Finished, Serving
from serve_app.settings import AppSettings, PredictOptions


class RecognitionService(Protocol):
    """The service as the routes see it. Its methods raise AppErrors; any other exception is a bug."""

    settings: AppSettings

    async def recognise(self, image: bytes, options: PredictOptions, most_tiles: int, expires_at: float) -> Finished:
        """Runs one encoded image through all stages, cut into at most `most_tiles` tiles.

        They give up at `expires_at`, in seconds since 1970.
        """
        ...

    async def serving(self) -> Serving:
        """What a Detector replica serves."""
        ...

    async def ready(self) -> Serving:
        """What a Detector replica serves, once every stage is up. Raises NotReady."""
        ...
