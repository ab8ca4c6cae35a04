"""Batch admission: decides when an image may join a batch, so that batches grow while the engine is busy.

`@serve.batch` alone closes a batch `batch_wait_timeout_s` after its first image, even when the engine is busy, and
queues the closed batch. With 5 ms and 200 images/s it forms batches of two, however many images wait, because
`batching.py` of Ray 2.60 takes its semaphore only after a batch is formed. Here images wait until the engine has room
for one more batch, and then join it together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager


class BatchAdmission:
    """Admits at most `size` images to the forming batch, and none while `concurrent_batches` are running.

    Callers take turns: one that brings many images, the tiles of a photo, holds up another by one image, not by all.
    For one event loop only.
    """

    def __init__(self, concurrent_batches: int, size: int = 1) -> None:
        self.size = size  # images in the largest batch; may change while images wait
        self._concurrent, self._running = concurrent_batches, 0
        self._forming: set[object] = set()
        self._late: set[object] = set()  # admitted, but Serve closed the batch without them: they form the next one
        # Images by caller, in order. The first caller is the next one.
        self._waiting: dict[object, dict[object, asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def admitted(self, image: object, caller: object) -> AsyncIterator[None]:
        """Waits until the image may join the forming batch. Those of one caller are admitted in order of arrival."""
        admitted = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, {})[image] = admitted
        self._admit()
        try:
            await admitted
            yield
        finally:
            for batch in (self._forming, self._late):
                batch.discard(image)  # still there if the caller left before the batch started
            self._leave(image, caller)
            self._admit()

    @contextmanager
    def running(self, batch: Sequence[object]) -> Iterator[None]:
        """Marks a batch as running in the engine, until the block ends."""
        self._forming.difference_update(batch)
        self._late.difference_update(batch)
        self._running += 1
        if self._running == self._concurrent:
            self._late |= self._forming
            self._forming.clear()
        self._admit()
        try:
            yield
        finally:
            self._running -= 1
            self._admit()

    def _admit(self) -> None:
        # Late images take the next batch. If others formed one beside them, both would stay small for ever.
        taken = self._running + bool(self._late)
        while self._waiting and taken < self._concurrent and len(self._forming) < self.size:
            caller = next(iter(self._waiting))
            image, admitted = next(iter(self._waiting[caller].items()))
            self._leave(image, caller)
            if images := self._waiting.pop(caller, None):
                self._waiting[caller] = images  # its next turn comes after all others
            if not admitted.done():  # done here means cancelled
                self._forming.add(image)
                admitted.set_result(None)

    def _leave(self, image: object, caller: object) -> None:
        """Takes an image out of those that wait, if it is there."""
        images = self._waiting.get(caller, {})
        images.pop(image, None)
        if not images:
            self._waiting.pop(caller, None)
