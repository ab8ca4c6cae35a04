"""Whether the engine still answers: what runs now, since when, and when it last ended well."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HUNG_S = 20.0  # a batch takes 0.02 s on a GPU, 2 s on two busy cores
QUIET_S = 10.0  # traffic is the best test; without any for so long, the engine is asked


class Hung(Exception):
    """The engine has not answered for HUNG_S."""


class Watch:
    """Of one replica's engine; for its event loop only."""

    def __init__(self) -> None:
        self._began: dict[object, float] = {}
        self._succeeded = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around each use of the engine."""
        this = object()
        self._began[this] = time.monotonic()
        try:
            yield
            self._succeeded = time.monotonic()
        finally:
            del self._began[this]

    async def check(self, probe: Callable[[], object]) -> None:
        """Raises Hung, or what the probe raises: one use of the engine, tried when there was no success lately."""
        if self._began:
            age = time.monotonic() - min(self._began.values())
            if age > HUNG_S:
                raise Hung(f"a batch has been running for {age:.0f} s")
        if time.monotonic() - self._succeeded > QUIET_S:
            with self.running():
                try:
                    await asyncio.wait_for(asyncio.to_thread(probe), HUNG_S)
                except TimeoutError as error:
                    raise Hung(f"the engine has not answered for {HUNG_S:g} s") from error
