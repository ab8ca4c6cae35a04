"""A stage in this process, called as a stage in a replica of its own is: the same graph, without a hop.

On one small node the hops between processes cost more than decoding does; `placement: together` takes them away.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from serve_app.errors import Overloaded


class Local:
    """What a `DeploymentHandle` offers: `stage.remote(...)` and `stage.method.remote(...)` start a call and return it.

    A call is awaited, cancelled, or given to the next stage, which waits for it. `most` calls run or wait at a time;
    more are refused, as a replica's queue would.
    """

    def __init__(self, stage: Any, most: int) -> None:  # noqa: ANN401 - any stage
        self._stage, self._most, self._calls = stage, most, 0

    def remote(self, *args: object) -> asyncio.Task[Any]:
        """Starts `stage(*args)`."""
        return asyncio.ensure_future(self._call(self._stage, args))

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._stage, name))

    async def _call(self, target: Callable[..., Any], args: tuple[object, ...]) -> object:
        if self._calls >= self._most:
            raise Overloaded("too many requests at the moment")
        self._calls += 1
        try:
            ready = [await arg if isinstance(arg, asyncio.Task) else arg for arg in args]
            if inspect.iscoroutinefunction(type(target).__call__):
                return await target(*ready)
            return await asyncio.to_thread(target, *ready)  # the worst NMS takes 20 ms, drawing a large photo 1 s
        finally:
            self._calls -= 1


class _Method:
    """One method of a stage."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    async def remote(self, *args: object) -> object:
        """Calls it."""
        answer = self._method(*args)
        return await answer if inspect.isawaitable(answer) else answer
