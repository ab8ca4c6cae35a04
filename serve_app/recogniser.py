"""What the HTTP side needs of the service behind it: the border between routes and Ray."""

from __future__ import annotations

from typing import Protocol

from serve_app.records import Finished, Serving
from serve_app.settings import AppSettings, PredictOptions


class Recogniser(Protocol):
    """All methods raise AppErrors only."""

    settings: AppSettings

    async def recognise(self, image: bytes, options: PredictOptions, moment: float) -> Finished:
        """One image through all stages, which give up at that moment, in seconds since 1970."""
        ...

    async def serving(self) -> Serving:
        """What is live."""
        ...

    async def ready(self) -> Serving:
        """What is live, once every stage is up. Raises NotReady."""
        ...
