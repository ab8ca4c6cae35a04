"""A handle for a stage in the same process, called like Serve's `DeploymentHandle`. Knows no particular stage.

On one small node the hops between processes cost more than decoding. `placement: together` removes them, and the graph
stays the same.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from serve_app.errors import Overloaded


class LocalHandle:
    """Offers what a `DeploymentHandle` offers: `handle.remote(...)` and `handle.method.remote(...)` start a call.

    The returned call can be awaited, cancelled, or passed to the next stage, which then awaits it. At most `max_calls`
    calls run or wait at a time; a further one raises Overloaded, as with a replica's full queue.
    """

    def __init__(self, stage: Any, max_calls: int) -> None:  # noqa: ANN401 - any stage
        self._stage, self._max_calls, self._calls = stage, max_calls, 0

    def remote(self, *args: object) -> asyncio.Task[Any]:
        """Starts `stage(*args)`."""
        return asyncio.ensure_future(self._call(self._stage, args))

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._stage, name))

    async def _call(self, target: Callable[..., Any], args: tuple[object, ...]) -> object:
        if self._calls >= self._max_calls:
            raise Overloaded(f"{self._max_calls} images are running or waiting, which is the limit: try again later")
        self._calls += 1
        try:
            values = [await arg if isinstance(arg, asyncio.Task) else arg for arg in args]
            if inspect.iscoroutinefunction(type(target).__call__):
                return await target(*values)
            # In a thread, to keep the event loop free: NMS takes up to 20 ms, drawing a large photo 1 s.
            return await asyncio.to_thread(target, *values)
        finally:
            self._calls -= 1


class _Method:
    """A handle for one method of a stage."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    async def remote(self, *args: object) -> object:
        """Calls the method, and awaits it if it is a coroutine."""
        result = self._method(*args)
        return await result if inspect.isawaitable(result) else result
