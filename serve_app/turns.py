"""Whose turn it is to join a batch: so batches grow with the queue, as long as the engine is busy.

`@serve.batch` alone closes a batch `batch_wait_timeout_s` after its first image, whether the engine is free or not, and
queues it closed: with 5 ms and 200 images/s there are batches of two, however many wait (Ray 2.60: `batching.py` takes
its semaphore after the batch is formed). Here images wait until the engine has a place for one more batch, and then go
in together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager


class Turns:
    """At most `size` images wait in the batch that forms, and none while `lanes` batches run. All on one event loop."""

    def __init__(self, lanes: int, size: int = 1) -> None:
        self.size = size  # of the largest batch; may change while images wait
        self._lanes, self._running = lanes, 0
        self._forming: set[object] = set()
        self._late: set[object] = set()  # came as the last lane was taken: Serve closes them as a batch of their own
        self._waiting: deque[tuple[object, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def awaited(self, image: object) -> AsyncIterator[None]:
        """Entered when the image may join the batch that forms; in the order in which they came."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((image, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            for batch in (self._forming, self._late):
                batch.discard(image)  # its caller has gone before the batch began
            self._admit()

    @contextmanager
    def running(self, batch: Sequence[object]) -> Iterator[None]:
        """While it is in the engine."""
        self._forming.difference_update(batch)
        self._late.difference_update(batch)
        self._running += 1
        if self._running == self._lanes:
            self._late |= self._forming
            self._forming.clear()
        self._admit()
        try:
            yield
        finally:
            self._running -= 1
            self._admit()

    def _admit(self) -> None:
        # The late ones have the next lane: beside them there would be two small batches, one after the other for ever.
        taken = self._running + bool(self._late)
        while self._waiting and taken < self._lanes and len(self._forming) < self.size:
            image, turn = self._waiting.popleft()
            if not turn.done():  # cancelled
                self._forming.add(image)
                turn.set_result(None)
