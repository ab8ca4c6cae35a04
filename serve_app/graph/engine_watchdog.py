"""The watchdog: notices an engine that no longer answers. Knows no engine, only when its uses start and end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HUNG_S = 20.0  # a batch takes 0.02 s on a GPU and 2 s on two busy cores
QUIET_S = 10.0  # the engine is probed after this long without a successful batch


class EngineHung(Exception):
    """The engine has not answered for HUNG_S (20 s)."""


class Watchdog:
    """Observes one replica's engine. For one event loop only."""

    def __init__(self) -> None:
        self._began: dict[object, float] = {}
        self._succeeded = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Marks one use of the engine, until the block ends."""
        this = object()
        self._began[this] = time.monotonic()
        try:
            yield
            self._succeeded = time.monotonic()
        finally:
            del self._began[this]

    async def check(self, probe: Callable[[], object]) -> None:
        """Calls `probe`, one use of the engine, if none has succeeded for QUIET_S.

        Raises EngineHung, or what `probe` raises.
        """
        if self._began:
            age = time.monotonic() - min(self._began.values())
            if age > HUNG_S:
                raise EngineHung(f"a batch has been running for {age:.0f} s, the limit is {HUNG_S:g} s")
        if time.monotonic() - self._succeeded > QUIET_S:
            with self.running():
                try:
                    await asyncio.wait_for(asyncio.to_thread(probe), HUNG_S)
                except TimeoutError as error:
                    raise EngineHung(f"the engine has not answered for {HUNG_S:g} s") from error
